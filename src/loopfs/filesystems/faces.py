"""Two faces of a node: block special to look at, a regular file to open.

A FUSE mount of a user namespace is nodev: a special file on it cannot be opened. So a
lookup that is part of an open gets the node's data face, every other lookup its special
face. While the lookup waits for its answer, /proc/TID/syscall names the system call.

A lookup is answered without a look at the caller's memory, which may never come: everybody
else who looks the name up waits for the answer as well.
"""

from __future__ import annotations

import os
import struct
import threading

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
# i386 mount is x86-64 access, which treats both faces alike.
MOUNTING = frozenset(
    abi.numbers[name] for abi in abis() for name in ("mount", "move_mount", "open_tree")
)

# What a lookup is for.
LOOK = 0  # to look at the node: the special face
OPEN = 1  # the data face, which an OPEN follows
HOLD = 2  # the data face, which may stay in a descriptor without one: O_PATH, a bind mount

PF_IO_WORKER = 0x10  # include/linux/sched.h


class InMemory(Exception):
    """The flags lie in the caller's memory: ask again with :func:`flags_in_memory`."""


def purpose(process: Process) -> int:
    """What the lookup that a thread waits in is for.

    A worker of io_uring is in no system call that would say; /proc shows the one that its maker
    was in, whichever that was. An open that is given the special face fails, a statx that is
    given the data face is only told of a regular file.

    Raises:
        OSError: the thread is gone.
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
    """The lookup that a thread waits in is for a mount. Raises OSError: the thread is gone."""
    call = process.current_syscall()
    return call is not None and call[0] in MOUNTING


def writes_and_follows(process: Process) -> bool:
    """The lookup that a thread waits in is for an open(2), openat(2) or creat(2) for writing that
    follows links. Of openat2(2) it is not known.

    Raises:
        OSError: the thread is gone.
    """
    try:
        flags = open_flags(process)
    except InMemory:
        return False
    if flags is None or flags & (os.O_PATH | os.O_NOFOLLOW):
        return False
    return flags & os.O_ACCMODE != os.O_RDONLY


def is_io_worker(process: Process) -> bool:
    """A thread that carries out what was submitted to an io_uring (field 9 of /proc/TID/stat).

    One that /proc hides is of a process of ours.

    Raises:
        OSError: the thread is gone.
    """
    try:
        return bool(int(stat_fields(process)[6]) & PF_IO_WORKER)
    except FileNotFoundError:
        process.check_hidden()
        return False


def stat_fields(process: Process) -> list[bytes]:
    """The fields of /proc/TID/stat from the third on, which is the state."""
    with open(process.path("stat"), "rb", buffering=0) as file:
        return file.read(4096).rpartition(b")")[2].split()


class DataFaces:
    """The data faces that the kernel has been told of and has not forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lookups: dict[int, int] = {}  # by node id, as often as the kernel counts them
        self._held: set[int] = set()

    def given(self, nodeid: int, purpose: int) -> None:
        """A lookup is about to be answered with one."""
        with self._lock:
            self._lookups[nodeid] = self._lookups.get(nodeid, 0) + 1
            if purpose == HOLD:
                self._held.add(nodeid)

    def forgotten(self, nodeid: int, nlookup: int) -> None:
        """FUSE_FORGET of any node."""
        with self._lock:
            left = self._lookups.get(nodeid, 0) - nlookup
            if left > 0:
                self._lookups[nodeid] = left
            else:
                self._lookups.pop(nodeid, None)
                self._held.discard(nodeid)

    def held(self) -> bool:
        """One may be in a descriptor that no OPEN has told of."""
        return bool(self._held)


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
