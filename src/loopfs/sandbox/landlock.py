"""Restrict the workload's access to processes outside of the sandbox by Landlock, if available.

An engine that is a program runs as root of the workload's own user namespace, so its credentials do
not protect it from the workload. A process in a Landlock domain may neither trace processes outside
of the domain (ptrace(2), /proc/PID/mem, pidfd_getfd(2) and everything else that calls
ptrace_may_access()) nor, by this scope, signal them. Files, mounts and the network are not
restricted.
"""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.uapi.landlock import LANDLOCK_SCOPE_SIGNAL, RULESET_ATTR

# ENOSYS: not built in; EOPNOTSUPP: disabled; E2BIG, EINVAL: no scopes, before 6.7 and 6.12; EPERM:
# refused by a container.
_ABSENT = (errno.ENOSYS, errno.EOPNOTSUPP, errno.E2BIG, errno.EINVAL, errno.EPERM)


def restrict() -> bool:
    """Put this process and its descendants into a domain; return whether that was possible.

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
        if problem.errno != errno.E2BIG:  # nested in the maximum number of domains
            raise
        return False
    finally:
        os.close(ruleset)
    return True
