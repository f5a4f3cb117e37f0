"""The kernel's end of a FUSE connection, by hand: a socket pair instead of /dev/fuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import NamedTuple

from loopfs.fuse.operations import Operations
from loopfs.fuse.session import Session
from loopfs.uapi import fuse
from loopfs.uapi.fuse import Attr
from tests.support.patience import scaled

PATIENCE = scaled(10.0)  # seconds
PID = 4711


class Reply(NamedTuple):
    """A reply: an errno (0 for success) and the structures."""

    code: int
    data: bytes


class Directory(NamedTuple):
    """An entry as the kernel reads it from READDIR's answer."""

    ino: int
    offset: int
    kind: int
    name: bytes


class Kernel:
    """Sends requests to a session and reads its answers."""

    def __init__(self, sock: socket.socket, pid: int = PID) -> None:
        self._socket = sock
        self._pid = pid
        self._uniques = count(2, 2)

    def send(self, opcode: int, body: bytes = b"", nodeid: int = 1) -> int:
        """Send a request; returns its number."""
        unique = next(self._uniques)
        size = fuse.IN_HEADER.size + len(body)
        header = fuse.IN_HEADER.pack(size, opcode, unique, nodeid, 0, 0, self._pid, 0, 0)
        self._socket.send(header + body)
        return unique

    def receive(self) -> tuple[int, Reply]:
        """Return the next reply and the number of its request; a notification has number 0."""
        message = self._socket.recv(1 << 21)
        length, error, unique = fuse.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        data = message[fuse.OUT_HEADER.size :]
        if unique == 0:
            return 0, Reply(error, data)
        assert error <= 0
        assert not (error and data), "an error has no structures"
        return unique, Reply(-error, data)

    def ask(self, opcode: int, body: bytes = b"", nodeid: int = 1) -> Reply:
        """Send a request and return its reply, which must be the next message."""
        unique = self.send(opcode, body, nodeid)
        answered, reply = self.receive()
        assert answered == unique
        return reply


@contextmanager
def connected(filesystem: Operations) -> Iterator[Kernel]:
    """Serve ``filesystem`` in a thread; ended by DESTROY, which must be answered."""
    with served(lambda fd: Session(fd, filesystem).serve) as kernel:
        yield kernel


@contextmanager
def served(make: Callable[[int], Callable[[], None]], pid: int = PID) -> Iterator[Kernel]:
    """As :func:`connected`.

    Args:
        make: given the server's descriptor, returns what serves until DESTROY.
        pid: the thread that all requests come from.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(PATIENCE)
    with ours, theirs:
        thread = threading.Thread(target=make(theirs.fileno()), daemon=True)
        thread.start()
        kernel = Kernel(ours, pid)
        yield kernel
        assert thread.is_alive(), "the session has ended"
        assert kernel.ask(fuse.FUSE_DESTROY) == Reply(0, b"")
        thread.join(PATIENCE)
        assert not thread.is_alive()


def entries(data: bytes) -> list[Directory]:
    """Parse a reply to READDIR."""
    found = []
    while data:
        ino, offset, length, kind = fuse.DIRENT.unpack_from(data)
        end = fuse.DIRENT.size + length
        found.append(Directory(ino, offset, kind << 12, data[fuse.DIRENT.size : end]))
        data = data[end + -end % 8 :]
    return found


def attr_of(ino: int, mode: int = stat.S_IFREG | 0o644, size: int = 0) -> Attr:
    """Return attributes of a file."""
    return Attr(ino, size, mode, 1, 0, 0, 0, (1_000_000_001, 2_000_000_002, 3_000_000_003))


def refuse(code: int) -> OSError:
    """Return the exception that a filesystem raises for an errno."""
    return OSError(code, os.strerror(code))


NOT_IMPLEMENTED = Reply(errno.ENOSYS, b"")
