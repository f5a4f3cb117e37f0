"""A sandbox in a sandbox: the kernel lets only one supervisor trap a process's system calls, so
the one around us serves us too."""

from __future__ import annotations

import os

from loopfs import syscalls


def is_nested() -> bool:
    """Our system calls are trapped by a loopfs: it alone knows a filesystem of type loop.

    It is asked only if there is a seccomp filter, for the kernel looks for a module when a type
    is unknown. The caller needs CAP_SYS_ADMIN over its mount namespace.
    """
    with open("/proc/self/status", "rb") as status:
        if any(line.split() == [b"Seccomp:", b"0"] for line in status):
            return False
    try:
        os.close(syscalls.fsopen("loop"))
    except OSError:
        return False
    return True
