"""Messages with file descriptors between the processes of a sandbox: a SOCK_SEQPACKET pair."""

from __future__ import annotations

import _socket as socket
import errno
import fcntl
import os
import struct

from loopfs.lean import NamedTuple

MAX_MESSAGE = 1 << 16  # bytes; longer messages are sent in a memfd
MAX_LENGTH = 64 << 20  # bytes: the longest message
MAX_DESCRIPTORS = 253  # SCM_MAX_FD
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_INT = struct.calcsize("i")
_UCRED = struct.Struct("=iII")


class Message(NamedTuple):
    """A message. ``data`` is empty if the other end is closed; ``pid`` is the sender's."""

    data: bytes
    fds: list[int]
    pid: int


class Channel:
    """One end of a pair, close-on-exec."""

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
        """Return the channel for an end that was received as a descriptor."""
        return cls(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        """Send ``data``, which must not be empty, of any length up to MAX_LENGTH.

        A long message is sent as an empty one whose last descriptor is a memfd.

        Raises:
            OSError: EPIPE: the other end is closed; or another error of sendmsg(2).
        """
        if len(data) <= MAX_MESSAGE:
            self._send(data, fds)
            return
        memfd = _sealed(data)
        try:
            self._send(b"", (*fds, memfd))
        finally:
            os.close(memfd)

    def _send(self, data: bytes, fds: tuple[int, ...]) -> None:
        rights = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))]
            if fds
            else []
        )
        self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)

    def receive(self) -> Message:
        """Receive the next message. The caller owns its descriptors, which are close-on-exec.

        Raises:
            OSError: the message is lost, but the next one can be received. EMFILE: the process
                cannot have more descriptors; EMSGSIZE: it was not sent by :meth:`send`; ENOMEM.
        """
        room = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS) + socket.CMSG_SPACE(_UCRED.size)
        try:
            received = self._socket.recvmsg(MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # the other end was closed with unread messages
            return Message(b"", [], 0)
        data, control, flags, _ = received
        fds: list[int] = []
        pid = 0
        for _, kind, payload in control:
            if kind == socket.SCM_RIGHTS:
                fds += struct.unpack(
                    f"{len(payload) // _INT}i", payload[: len(payload) // _INT * _INT]
                )
            elif kind == socket.SCM_CREDENTIALS:
                pid = _UCRED.unpack_from(payload)[0]
        try:
            if flags & socket.MSG_CTRUNC:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            if flags & socket.MSG_TRUNC:
                raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
            if not data and fds:
                data = _unsealed(fds[-1])
                os.close(fds.pop())
        except BaseException:
            close_all(fds)
            raise
        return Message(data, fds, pid)

    def detach(self) -> int:
        """Return the descriptor, which the caller then owns."""
        return self._socket.detach()

    def shut_down(self) -> None:
        """Have both ends see its end, whoever has it open or waits for a message."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()


def _sealed(data: bytes) -> int:
    """Return a sealed memfd with ``data``."""
    memfd = os.memfd_create("message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(memfd, view) :]
        fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(memfd)
        raise
    return memfd


def _unsealed(memfd: int) -> bytes:
    """Return the contents of a sealed memfd. Raises OSError EMSGSIZE: not one, or too long."""
    try:
        sealed = fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # EINVAL: it is not a memfd
        sealed = False
    length = os.lseek(memfd, 0, os.SEEK_END) if sealed else 0
    if not 0 < length <= MAX_LENGTH:
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    data = b""
    while len(data) < length:
        data += os.pread(memfd, length - len(data), len(data))
    return data


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def close_all_but(*kept: int) -> None:
    """Close all descriptors except the standard ones and ``kept``."""
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = max(start, fd + 1)
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
