"""The socket by which a sandbox is found, for the supervisor and for ``loopfs ls``."""

from __future__ import annotations

import _socket
import errno
import os
import struct

PREFIX = "loopfs/"  # of the abstract name; the process id and random digits follow
BACKLOG = _socket.SOMAXCONN
SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
_UCRED = struct.Struct("=iII")
FAMILY, KIND = _socket.AF_UNIX, _socket.SOCK_SEQPACKET


def listen() -> _socket.socket:
    """Return a listening socket with a name that no other process can have taken."""
    listener = _socket.socket(FAMILY, KIND | _socket.SOCK_CLOEXEC)
    listener.bind(f"\0{PREFIX}{os.getpid()}/{os.urandom(8).hex()}")
    listener.listen(BACKLOG)
    return listener


def peer_credentials(sock: _socket.socket) -> tuple[int, int, int]:
    """Return process, user and group id of the peer in our namespaces (SO_PEERCRED, unix(7))."""
    data = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(data)
    return pid, uid, gid


def peer_pidfd(sock: _socket.socket) -> int | None:
    """Return a pidfd of the peer; None if its process id is not visible here.

    Before Linux 6.5 it can refer to another process, if the process id has been reused meanwhile.

    Raises:
        OSError: the peer has ended.
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
    """Whether a process has ended: then data read by its process id may be of another process."""
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
