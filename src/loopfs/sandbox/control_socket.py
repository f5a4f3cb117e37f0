"""The socket by which a sandbox is found: of the supervisor, and of who looks for it."""

from __future__ import annotations

import _socket
import os

PREFIX = "loopfs/"  # of the abstract name; what follows is of no meaning, and not to be guessed
BACKLOG = 16
FAMILY, KIND = _socket.AF_UNIX, _socket.SOCK_SEQPACKET


def listen() -> _socket.socket:
    """A listening socket with a name that nobody can have taken."""
    listener = _socket.socket(FAMILY, KIND | _socket.SOCK_CLOEXEC)
    listener.bind(f"\0{PREFIX}{os.getpid()}/{os.urandom(8).hex()}")
    listener.listen(BACKLOG)
    return listener


def namespace_identity(path: str = "/proc/self/ns/user") -> tuple[int, int]:
    """What tells a user namespace from all others: st_dev and inode number of its file."""
    found = os.stat(path)
    return found.st_dev, found.st_ino
