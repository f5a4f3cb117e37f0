"""The socket by which a sandbox is found: of the supervisor, and of who looks for it."""

from __future__ import annotations

import _socket
import errno
import os
import struct

PREFIX = "loopfs/"  # of the abstract name; what follows is of no meaning, and not to be guessed
BACKLOG = _socket.SOMAXCONN
SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
_UCRED = struct.Struct("=iII")
FAMILY, KIND = _socket.AF_UNIX, _socket.SOCK_SEQPACKET


def listen() -> _socket.socket:
    """A listening socket with a name that nobody can have taken."""
    listener = _socket.socket(FAMILY, KIND | _socket.SOCK_CLOEXEC)
    listener.bind(f"\0{PREFIX}{os.getpid()}/{os.urandom(8).hex()}")
    listener.listen(BACKLOG)
    return listener


def peer_credentials(sock: _socket.socket) -> tuple[int, int, int]:
    """Process, user and group id of who has connected or listens, as we see them (unix(7))."""
    data = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return pid, uid, gid


def peer_pidfd(sock: _socket.socket) -> int | None:
    """A pidfd of who has connected or listens; None if we see no process id of his.

    Before Linux 6.5 it can be of another one, who has got the process id meanwhile.

    Raises:
        OSError: he has ended.
    """
    pid, _, _ = peer_credentials(sock)
    if not pid:
        return None
    try:
        return sock.getsockopt(_socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as problem:
        if problem.errno != errno.ENOPROTOOPT:
            raise
    return os.pidfd_open(pid)


def has_ended(pidfd: int) -> bool:
    """The process has: what was read of its process id since may be another's."""
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
