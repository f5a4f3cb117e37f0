"""Two faces of a node: block special to look at, a regular file to open.

A FUSE mount of a user namespace is nodev: a special file on it cannot be opened. So a
lookup that is part of an open gets the node's data face, every other lookup its special
face. While the lookup waits for its answer, /proc/TID/syscall names the system call.
"""

from __future__ import annotations

import struct

from loopfs.process import Process
from loopfs.uapi.syscalls import abis

# Which argument has the O_* flags; creat(2) has none.
_FLAGS_ARGUMENT = {"open": 1, "openat": 2, "creat": None}
_OPEN_HOW_FLAGS = struct.Struct("=Q")

# One table for all ABIs of the machine, as /proc/TID/syscall does not say which it was.
# It need not: where the numbers collide, the other ABI's call looks up no path (i386 open
# is x86-64 fstat), or one that treats both faces alike (x86-64 creat is i386 readlink).
_OPENERS: dict[int, int | None] = {
    abi.numbers[name]: argument
    for abi in abis()
    for name, argument in _FLAGS_ARGUMENT.items()
    if name in abi.numbers
}
_OPENAT2 = abis()[0].numbers["openat2"]


class InMemory(Exception):
    """The flags lie in the caller's memory: ask again with :func:`flags_in_memory`."""


def open_flags(process: Process) -> int | None:
    """The O_* flags of the open that a thread waits in; None when it is no open.

    Raises:
        InMemory: it is openat2(2).
        OSError: the thread is gone.
    """
    call = process.current_syscall()
    if call is None:
        return None
    number, args = call
    if number == _OPENAT2:
        raise InMemory
    if number not in _OPENERS:
        return None
    argument = _OPENERS[number]
    return 0 if argument is None else args[argument] & 0xFFFFFFFF


def flags_in_memory(process: Process) -> int | None:
    """The flags of struct open_how. May wait until the caller's page is there."""
    call = process.current_syscall()
    if call is None or call[0] != _OPENAT2:
        return None
    (flags,) = _OPEN_HOW_FLAGS.unpack(process.read(call[1][2], _OPEN_HOW_FLAGS.size))
    return int(flags)
