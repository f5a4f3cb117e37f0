"""Messages with descriptors between the processes of a sandbox: a SOCK_SEQPACKET pair."""

from __future__ import annotations

import _socket as socket
import os
import struct

from loopfs.lean import NamedTuple

MAX_MESSAGE = 1 << 16
MAX_DESCRIPTORS = 16
_INT = struct.calcsize("i")
_UCRED = struct.Struct("=iII")


class Message(NamedTuple):
    """``data`` is empty when the other end is closed; ``pid`` is the sender's."""

    data: bytes
    fds: list[int]
    pid: int


class Channel:
    """One end of a pair; close-on-exec."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        return cls(ends[0]), cls(ends[1])

    @classmethod
    def of_descriptor(cls, fd: int) -> Channel:
        """The end that was sent to us as a descriptor."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
            if fds
            else []
        )
        self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    def receive(self) -> Message:
        """The next message; its descriptors are ours, close-on-exec."""
        room = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS) + socket.CMSG_SPACE(_UCRED.size)
        try:
            data, control, _, _ = self._socket.recvmsg(MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # closed with something unread
            return Message(b"", [], 0)
        fds: list[int] = []
        pid = 0
        for _, kind, payload in control:
            if kind == socket.SCM_RIGHTS:
                fds += struct.unpack(
                    f"{len(payload) // _INT}i", payload[: len(payload) // _INT * _INT]
                )
            elif kind == socket.SCM_CREDENTIALS:
                pid = _UCRED.unpack_from(payload)[0]
        return Message(data, fds, pid)

    def close(self) -> None:
        self._socket.close()


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def close_all_but(*kept: int) -> None:
    """Close all descriptors but standard ones and ``kept``."""
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = max(start, fd + 1)
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
