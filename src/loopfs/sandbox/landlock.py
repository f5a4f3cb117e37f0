"""The workload is kept from processes outside of the sandbox by Landlock, where the kernel has it.

An engine is a program that runs as root of the workload's own user namespace, so no rule on
credentials keeps the workload from it. A process in a Landlock domain may neither trace
(ptrace(2), /proc/PID/mem, pidfd_getfd(2) and all else that asks ptrace_may_access()) nor, by this
scope, signal one that is not in it. Files, mounts and the network are not restricted.
"""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.uapi.landlock import LANDLOCK_SCOPE_SIGNAL, RULESET_ATTR

# Not built in, switched off; without the scope: before 6.7, before 6.12; refused by a container.
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.E2BIG, errno.EINVAL, errno.EPERM)


def restrict() -> bool:
    """Put this process and all that it will start into a domain; whether there is one.

    The caller needs CAP_SYS_ADMIN in its user namespace.
    """
    try:
        ruleset = syscalls.landlock_create_ruleset(RULESET_ATTR.pack(0, 0, LANDLOCK_SCOPE_SIGNAL))
    except OSError as problem:
        if problem.errno not in _ABSENT:
            raise
        return False
    try:
        syscalls.landlock_restrict_self(ruleset)
    except OSError as problem:
        if problem.errno != errno.E2BIG:  # in as many domains as can be: sandboxes in sandboxes
            raise
        return False
    finally:
        os.close(ruleset)
    return True
