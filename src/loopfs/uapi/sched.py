"""include/uapi/linux/sched.h, prctl.h: namespaces and process attributes."""

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

CAP_SYS_ADMIN = 21
CAP_LAST_CAP_BIT = 63
