"""A sandbox inside a sandbox: the kernel permits only one supervisor to trap the system calls of a
process, so the outer supervisor serves the inner sandbox too."""

from __future__ import annotations

import os

from loopfs import syscalls


def is_nested() -> bool:
    """Whether our system calls are trapped by a loopfs: only then there is a filesystem type loop.

    The test is made only if there is a seccomp filter, because the kernel tries to load a module
    for an unknown type. The caller needs CAP_SYS_ADMIN over its mount namespace.
    """
    with open("/proc/self/status", "rb") as status:
        if any(line.split() == [b"Seccomp:", b"0"] for line in status):
            return False
    try:
        os.close(syscalls.fsopen("loop"))
    except OSError:
        return False
    return True
