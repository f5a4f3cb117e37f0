"""include/uapi/linux/seccomp.h, filter.h, audit.h: filters and user notification."""

from __future__ import annotations

import struct

from loopfs.lean import NamedTuple

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_ACTION_AVAIL = 2
SECCOMP_GET_NOTIF_SIZES = 3

SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5

SECCOMP_RET_ERRNO = 0x00050000  # with the errno in the low 16 bits
SECCOMP_RET_USER_NOTIF = 0x7FC00000
SECCOMP_RET_ALLOW = 0x7FFF0000

SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP = 1
SECCOMP_ADDFD_FLAG_SETFD = 1
SECCOMP_ADDFD_FLAG_SEND = 2  # 5.14

SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101
SECCOMP_IOCTL_NOTIF_ID_VALID = 0x40082102
SECCOMP_IOCTL_NOTIF_ADDFD = 0x40182103
SECCOMP_IOCTL_NOTIF_SET_FLAGS = 0x40082104

# struct seccomp_notif: id, pid, flags, then struct seccomp_data
NOTIF = struct.Struct("=QIIiIQ6Q")
NOTIF_RESP = struct.Struct("=QqiI")
NOTIF_ID = struct.Struct("=Q")
# struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
NOTIF_ADDFD = struct.Struct("=QIIII")

AUDIT_ARCH_X86_64 = 0xC000003E
AUDIT_ARCH_I386 = 0x40000003
AUDIT_ARCH_AARCH64 = 0xC00000B7
AUDIT_ARCH_ARM = 0x40000028

# offsets in struct seccomp_data, the data that a filter sees
DATA_NR = 0
DATA_ARCH = 4


def data_arg(index: int) -> int:
    """Return the offset of the low 32 bits of an argument (on little-endian machines)."""
    return 16 + 8 * index


BPF_LD_W_ABS = 0x20
BPF_JMP_JEQ_K = 0x15
BPF_JMP_JSET_K = 0x45
BPF_JMP_JA = 0x05
BPF_RET_K = 0x06
SOCK_FILTER = struct.Struct("=HBBI")


class Notification(NamedTuple):
    """struct seccomp_notif: a system call that waits for an answer.

    ``pid`` is the thread's id in the listener's pid namespace.
    """

    id: int
    pid: int
    flags: int
    nr: int
    arch: int
    ip: int
    a0: int
    a1: int
    a2: int
    a3: int
    a4: int
    a5: int
