"""Run a command for which some system calls fail, as with the seccomp profile of a container:
python3 -m tests.support.refusing ERRNO CALL[,CALL...] COMMAND..."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
import sys
from pathlib import Path

from loopfs.intercept.filter import program
from loopfs.uapi import seccomp
from loopfs.uapi.syscalls import abis

PR_SET_NO_NEW_PRIVS = 38


def numbers() -> dict[str, int]:
    """Return the numbers of all system calls of this machine, from the C library's headers."""
    headers = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
    text = Path("/usr/include", headers[platform.machine()]).read_text()
    found = re.findall(r"^#define __NR_(\w+)\s+(\d+)", text, re.M)
    return {name: int(number) for name, number in found}


def refuse(code: int, calls: list[str]) -> None:
    """Make these calls fail with an errno in this process and in programs that it executes."""
    abi = abis()[0]._replace(numbers=numbers())
    filters = program((), [abi], dict.fromkeys(calls, code))
    buffer = ctypes.create_string_buffer(filters, len(filters))

    class SockFprog(ctypes.Structure):
        _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    count = len(filters) // seccomp.SOCK_FILTER.size
    fprog = SockFprog(count, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    words = (ctypes.c_long(n) for n in (abi.numbers["seccomp"], seccomp.SECCOMP_SET_MODE_FILTER, 0))
    assert libc.syscall(*words, ctypes.byref(fprog)) == 0, os.strerror(ctypes.get_errno())


if __name__ == "__main__":
    refuse(getattr(errno, sys.argv[1]), sys.argv[2].split(","))
    os.execvp(sys.argv[3], sys.argv[3:])
