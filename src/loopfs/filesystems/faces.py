"""The two faces of a node: a block special file for stat(2), a regular file for open(2).

A FUSE mount of a user namespace is nodev: a special file on it cannot be opened. So a lookup that
is part of an open returns the data face of the node, every other lookup its special face. While a
lookup waits for its answer, /proc/TID/syscall shows the system call.

A lookup is answered without access to the caller's memory, which can block forever: all other
lookups of the same name wait for this answer.
"""

from __future__ import annotations

import os
import struct
import threading

from loopfs.process import Process
from loopfs.uapi.syscalls import abis

# The index of the argument with the O_* flags; creat(2) has none.
_FLAGS_ARGUMENT = {"open": 1, "openat": 2, "creat": None}
_OPEN_HOW_FLAGS = struct.Struct("=Q")

# One table for all ABIs of the machine, since /proc/TID/syscall does not show the ABI of the call.
# That does no harm: where numbers collide, the other ABI's call looks up no path (i386 open is
# x86-64 fstat), or treats both faces alike (x86-64 creat is i386 readlink).
_OPENERS: dict[int, int | None] = {
    abi.numbers[name]: argument
    for abi in abis()
    for name, argument in _FLAGS_ARGUMENT.items()
    if name in abi.numbers
}
_OPENAT2 = abis()[0].numbers["openat2"]
# i386 mount is x86-64 access, which treats both faces alike.
MOUNTING = frozenset(
    abi.numbers[name] for abi in abis() for name in ("mount", "move_mount", "open_tree")
)

# The purpose of a lookup.
LOOK = 0  # the special face is returned
OPEN = 1  # the data face is returned; an OPEN request follows
HOLD = 2  # as OPEN, but a descriptor can hold it without an OPEN request: O_PATH, a bind mount

PF_IO_WORKER = 0x10  # include/linux/sched.h


class InMemory(Exception):
    """The flags are in the caller's memory: call :func:`flags_in_memory`."""


def purpose(process: Process) -> int:
    """Return the purpose of the lookup that a thread waits for.

    A worker thread of io_uring is not in a system call; /proc shows whatever call its creator was
    in. An open that gets the special face would fail, whereas a statx that gets the data face
    only sees a regular file. So it gets the data face.

    Raises:
        OSError: the thread has ended.
    """
    call = process.current_syscall()
    number = -1 if call is None else call[0]
    if call is not None and number in _OPENERS:
        argument = _OPENERS[number]
        return OPEN if argument is None or not call[1][argument] & os.O_PATH else HOLD
    if number == _OPENAT2 or number in MOUNTING:
        return HOLD
    return HOLD if is_io_worker(process) else LOOK


def mounts(process: Process) -> bool:
    """Return whether a thread waits for a lookup of a call that mounts.

    Raises:
        OSError: the thread has ended.
    """
    call = process.current_syscall()
    return call is not None and call[0] in MOUNTING


def writes_and_follows(process: Process) -> bool:
    """Return whether a thread waits for a lookup of an open(2), openat(2) or creat(2) for writing
    that follows links. False for openat2(2), whose flags are in memory.

    Raises:
        OSError: the thread has ended.
    """
    try:
        flags = open_flags(process)
    except InMemory:
        return False
    if flags is None or flags & (os.O_PATH | os.O_NOFOLLOW):
        return False
    return flags & os.O_ACCMODE != os.O_RDONLY


def is_io_worker(process: Process) -> bool:
    """Return whether a thread is a worker of an io_uring (field 9 of /proc/TID/stat).

    A thread that /proc hides belongs to a process of ours.

    Raises:
        OSError: the thread has ended.
    """
    try:
        return bool(int(stat_fields(process)[6]) & PF_IO_WORKER)
    except FileNotFoundError:
        process.check_hidden()
        return False


def stat_fields(process: Process) -> list[bytes]:
    """Return the fields of /proc/TID/stat from the third one, the state, onwards."""
    with open(process.path("stat"), "rb", buffering=0) as file:
        return file.read(4096).rpartition(b")")[2].split()


class DataFaces:
    """The data faces that the kernel has looked up and not forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[int, int] = {}  # by node id; the kernel's lookup count
        self._held: set[int] = set()

    def given(self, nodeid: int, purpose: int) -> None:
        """Count a lookup whose answer is a data face."""
        with self._lock:
            self._lookups[nodeid] = self._lookups.get(nodeid, 0) + 1
            if purpose == HOLD:
                self._held.add(nodeid)

    def forgotten(self, nodeid: int, nlookup: int) -> None:
        """Account for FUSE_FORGET of any node."""
        with self._lock:
            left = self._lookups.get(nodeid, 0) - nlookup
            if left > 0:
                self._lookups[nodeid] = left
            else:
                self._lookups.pop(nodeid, None)
                self._held.discard(nodeid)

    def held(self) -> bool:
        """Return whether a descriptor may hold a data face without an OPEN request."""
        return bool(self._held)


def open_flags(process: Process) -> int | None:
    """Return the O_* flags of the open that a thread is blocked in; None if it is not an open.

    Raises:
        InMemory: the call is openat2(2).
        OSError: the thread has ended.
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
    """Return the flags in struct open_how. Can block until the caller's page is available."""
    call = process.current_syscall()
    if call is None or call[0] != _OPENAT2:
        return None
    (flags,) = _OPEN_HOW_FLAGS.unpack(process.read(call[1][2], _OPEN_HOW_FLAGS.size))
    return int(flags)
