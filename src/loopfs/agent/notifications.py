"""Trapped calls that are left to the kernel, and the first one of a container."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import time
from collections.abc import Sequence

from loopfs.channel import close_all
from loopfs.errors import LoopfsError
from loopfs.process import Process
from loopfs.uapi import seccomp as uapi
from loopfs.uapi.mount import NS_GET_MNTNS_ID

OPEN_WITHIN = 5.0  # seconds that a runtime may take to execute the container's program
_LOOK = 0.001  # seconds
_READ = os.O_RDONLY | os.O_CLOEXEC
_GONE = (errno.ENOENT, errno.EINPROGRESS)  # the caller was killed; the call is not received yet


def receive(listener: int) -> uapi.Notification | None:
    """Return the next call, which waits for an answer; None if no process is left."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        ((_, event),) = poller.poll()
        if not event & select.POLLIN:
            return None
        buffer = bytearray(uapi.NOTIF.size)
        try:
            fcntl.ioctl(listener, uapi.SECCOMP_IOCTL_NOTIF_RECV, buffer, True)
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, errno.EINTR):
                raise
            continue  # the caller was killed before we could read
        return uapi.Notification._make(uapi.NOTIF.unpack(buffer))


def let_go(listener: int, number: int) -> None:
    """Let the kernel carry out the call with that id, if it still waits."""
    flag = uapi.SECCOMP_USER_NOTIF_FLAG_CONTINUE
    try:
        fcntl.ioctl(
            listener, uapi.SECCOMP_IOCTL_NOTIF_SEND, uapi.NOTIF_RESP.pack(number, 0, 0, flag)
        )
    except OSError as problem:
        if problem.errno not in _GONE:
            raise


def let_next_go(listener: int) -> bool:
    """Let the kernel carry out the next call; return False if no process is left."""
    if (call := receive(listener)) is None:
        return False
    let_go(listener, call.id)
    return True


def _waits(listener: int, number: int) -> bool:
    """Whether the call with that id still waits."""
    try:
        fcntl.ioctl(listener, uapi.SECCOMP_IOCTL_NOTIF_ID_VALID, uapi.NOTIF_ID.pack(number))
    except FileNotFoundError:
        return False
    return True


def _name_of(mounts: int) -> str:
    """Return a name of a mount namespace, by its descriptor. It is never reused; before Linux 6.11
    it is unique among existing ones only."""
    try:
        return fcntl.ioctl(mounts, NS_GET_MNTNS_ID, bytes(8)).hex()
    except OSError as problem:
        if problem.errno not in (errno.ENOTTY, errno.EINVAL):
            raise
        return str(os.fstat(mounts).st_ino)


class First:
    """The first process of a listener, which waits until :meth:`go`.

    If the runtime itself has made the container's user namespace, an ordinary user may not examine
    the process before it executes the container's program. Then its execve(2) is continued, and the
    process is stopped before the program runs.

    Args:
        listener: the caller closes it.
        call: the call in which the process waits.
    Raises:
        LoopfsError: it cannot be examined.
        OSError: ENOENT, ESRCH: it was killed.
    """

    def __init__(self, listener: int, call: uapi.Notification) -> None:
        self._listener = listener
        self._call: uapi.Notification | None = call
        self.number = call.id
        self.process = Process(call.pid)
        self._open = [self.process.pidfd()]
        try:
            if not _waits(listener, call.id):  # the process id may have been reused
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            try:
                self._look()
            except PermissionError:
                self._stop(call)
        except OSError:
            self.close()
            raise

    def _look(self) -> None:
        mounts, userns = (
            os.open(self.process.path(f"ns/{name}"), _READ) for name in ("mnt", "user")
        )
        try:
            if not self.alive():
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            self.mounts = _name_of(mounts)
            self.userns = os.fstat(userns).st_ino
            self._open.append(os.dup(userns))
        finally:
            close_all([mounts, userns])

    def _stop(self, call: uapi.Notification) -> None:
        let_go(self._listener, call.id)
        self._call = None
        signal.pidfd_send_signal(self._open[0], signal.SIGSTOP)
        end = time.monotonic() + OPEN_WITHIN
        while True:
            try:
                self._look()
            except PermissionError:
                if time.monotonic() > end:
                    self.go()
                    sentence = "its first process cannot be examined"
                    raise LoopfsError(errno.EACCES, sentence) from None
                time.sleep(_LOOK)
            else:
                return

    def user_namespace(self) -> int:
        """Return a descriptor of its user namespace; the caller closes it."""
        return os.dup(self._open[1])

    def alive(self) -> bool:
        """Whether it still exists, so that its process id has not been reused."""
        poller = select.poll()
        poller.register(self._open[0], select.POLLIN)
        return not poller.poll(0)

    def go(self) -> None:
        """Let the process continue."""
        if self._call is not None:
            let_go(self._listener, self._call.id)
            return
        try:
            signal.pidfd_send_signal(self._open[0], signal.SIGCONT)
        except ProcessLookupError:
            return  # it was killed

    def close(self) -> None:
        """Close the descriptors."""
        close_all(self._open)
        self._open.clear()


def first(listener: int) -> First | None:
    """Return the first process that is trapped; None if none is left. Raises LoopfsError."""
    while (call := receive(listener)) is not None:
        try:
            return First(listener, call)
        except (FileNotFoundError, ProcessLookupError):
            let_go(listener, call.id)  # it was killed
    return None


def let_all_go(listeners: Sequence[int]) -> None:
    """Let the kernel carry out every call of these listeners until no process is left; then close
    them."""
    poller = select.poll()
    for listener in listeners:
        poller.register(listener, select.POLLIN)
    left = set(listeners)
    while left:
        for listener, _ in poller.poll():
            if not let_next_go(listener):
                poller.unregister(listener)
                left.discard(listener)
                os.close(listener)
