"""The notification loop: receives trapped calls and hands each to a handler."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import threading
import time
from collections.abc import Callable

from loopfs.errors import errno_of
from loopfs.filesystems.threads import start
from loopfs.intercept.filter import TRAPS
from loopfs.process import Process
from loopfs.uapi import seccomp as uapi
from loopfs.uapi.syscalls import abis

PAUSE = 0.01  # seconds to wait after an error of the receiving ioctl
FSTAT_CALLS = ("fstat", "fstat64", "newfstatat", "fstatat64", "statx")

NAMES = {
    (abi.arch, abi.numbers[trap.syscall]): trap.syscall
    for abi in abis()
    for trap in TRAPS
    if trap.syscall in abi.numbers
}


class Call:
    """A trapped system call, which must be answered once.

    ``args`` are the registers, ``process`` is the calling thread. ``name`` is empty if the call was
    trapped by a filter other than ours, and ours does not trap it.
    """

    __slots__ = ("_id", "_listener", "answered", "arch", "args", "name", "process")

    def __init__(self, listener: int, notification: uapi.Notification) -> None:
        self._listener = listener
        self._id = notification.id
        self.arch = notification.arch
        self.args = notification[6:12]
        self.name = NAMES.get((notification.arch, notification.nr), "")
        self.process = Process(notification.pid)
        self.answered = False

    def note(
        self, *, engine: str | None = None, why: str | None = None, **arguments: str | None
    ) -> None:
        """Pass data to the log; without a log this has no effect.

        Args:
            engine: the engine that serves the filesystem, or was to serve it.
            why: the reason for a refusal, as a sentence.
            arguments: the arguments that were read from the caller's memory.
        """

    def proceed(self) -> None:
        """Leave the call to the kernel."""
        self._send(0, 0, uapi.SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def finish(self, value: int = 0) -> None:
        """Make the call return ``value``."""
        self._send(value, 0, 0)

    def fail(self, code: int) -> None:
        """Make the call fail with the errno ``code``."""
        self._send(0, -code, 0)

    def answer(self, code: int) -> None:
        """Make the call return 0, or fail with the errno ``code``."""
        self._send(0, -code, 0)

    def finish_with_descriptor(self, fd: int, *, close_on_exec: bool) -> None:
        """Make the call return a duplicate of our ``fd`` in the caller's descriptor table.

        Raises:
            OSError: EMFILE (the caller's table is full); EINVAL before Linux 5.14.
        """
        self._add_descriptor(uapi.SECCOMP_ADDFD_FLAG_SEND, fd, 0, close_on_exec)

    def replace_descriptor(self, number: int, fd: int, *, close_on_exec: bool) -> None:
        """Replace the caller's descriptor ``number`` by a duplicate of our ``fd``, as dup3(2)."""
        self._add_descriptor(uapi.SECCOMP_ADDFD_FLAG_SETFD, fd, number, close_on_exec)

    def _add_descriptor(self, how: int, fd: int, number: int, close_on_exec: bool) -> bool:
        flags = os.O_CLOEXEC if close_on_exec else 0
        request = uapi.NOTIF_ADDFD.pack(self._id, how, fd, number, flags)
        there = self._reply(uapi.SECCOMP_IOCTL_NOTIF_ADDFD, request)
        self.answered |= how == uapi.SECCOMP_ADDFD_FLAG_SEND
        return there

    def alive(self) -> bool:
        """Return whether the caller still waits, so that data read from it is certainly its own."""
        return self._reply(uapi.SECCOMP_IOCTL_NOTIF_ID_VALID, uapi.NOTIF_ID.pack(self._id))

    def _send(self, value: int, error: int, flags: int) -> bool:
        response = uapi.NOTIF_RESP.pack(self._id, value, error, flags)
        there = self._reply(uapi.SECCOMP_IOCTL_NOTIF_SEND, response)
        self.answered = True
        return there

    def _reply(self, command: int, argument: bytes) -> bool:
        """Send a reply; return whether the caller still existed."""
        return _told(self._listener, command, argument)


def _told(listener: int, command: int, argument: bytes) -> bool:
    """Make an ioctl on the listener; return False if the call does not exist any more."""
    while True:
        try:
            fcntl.ioctl(listener, command, argument)
        except OSError as problem:
            if problem.errno == errno.ENOENT:
                _lost_at[0] = time.monotonic()
                return False
            if problem.errno != errno.EINTR:
                raise
        else:
            return True


_in_progress: set[Call] = set()
_lost_at = [float("-inf")]  # when a caller was last found to have ended without an answer


def callers_were_lost(but: Call) -> bool:
    """Return whether a caller was killed while it waited. Then the work for it and, for a moment,
    its job may still have files open.

    Args:
        but: the call that is being processed.
    """
    if time.monotonic() - _lost_at[0] < _MOMENT:
        return True
    return any(not call.alive() for call in list(_in_progress) if call is not but)


Handler = Callable[[Call], None]
MakeCall = Callable[[int, uapi.Notification], Call]


def serve(listener: int, handler: Handler, make: MakeCall = Call) -> None:
    """Pass each trapped call to ``handler``, until no process is left.

    ``handler`` runs in the thread that has received the call, this one or another. It must call
    :func:`may_wait` before it blocks. ``make`` creates a call from a notification of the listener.
    """
    try:  # since Linux 6.6: wake the caller on this CPU, which takes an eighth of the time
        flags = uapi.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
        fcntl.ioctl(listener, uapi.SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
    _Receivers(listener, handler, make).run(to_the_end=True)


def may_wait() -> None:
    """Allow the calling handler to block from here on, by letting another thread receive calls.

    Raises:
        OSError: EAGAIN if there is no such thread and none can be started.
    """
    receivers: _Receivers | None = getattr(_this_thread, "receivers", None)
    if receivers is not None:
        receivers.leave()


_this_thread = threading.local()
_MOMENT = 5.0  # seconds


class _Receivers:
    """The threads that receive calls from a listener.

    One of them is always ready for the next call. The thread that has received a call also handles
    it: to pass it to another thread would take longer than most calls.
    """

    KEPT = 2  # threads that are ready if no handler blocks

    def __init__(self, listener: int, handler: Handler, make: MakeCall) -> None:
        self._listener = listener
        self._handler = handler
        self._make = make
        self._lock = threading.Lock()
        self._ready = 1
        self._reserved = 0  # 1 while the thread that stays to the end handles a call

    def run(self, *, to_the_end: bool = False) -> None:
        """Receive and handle calls in this thread, which has been counted already.

        Args:
            to_the_end: return only when no process is left, not when enough threads are ready.
        """
        _this_thread.receivers = self
        _this_thread.ready = True
        _this_thread.stays = to_the_end
        blank = bytes(uapi.NOTIF.size)
        buffer = bytearray(blank)
        while _this_thread.ready or self._return():
            buffer[:] = blank
            try:
                fcntl.ioctl(self._listener, uapi.SECCOMP_IOCTL_NOTIF_RECV, buffer, True)
            except OSError as problem:
                if _hung_up(self._listener):
                    return
                if problem.errno not in (errno.ENOENT, errno.EINTR):
                    sys.excepthook(*sys.exc_info())  # a bug in loopfs, or no memory
                    time.sleep(PAUSE)
                continue  # the caller was killed before the notification was read
            notification = uapi.Notification._make(uapi.NOTIF.unpack(buffer))
            try:
                _handle(self._make(self._listener, notification), self._handler)
            except Exception:  # a bug in loopfs, or no memory: only this caller's call fails
                sys.excepthook(*sys.exc_info())
                _refuse(self._listener, notification.id)

    def leave(self) -> None:
        """Mark this thread as not ready until it has handled its call."""
        if not _this_thread.ready:
            return
        with self._lock:
            if self._ready == 1:
                start("notify", self.run)
            else:
                self._ready -= 1
            if _this_thread.stays:
                self._reserved = 1
        _this_thread.ready = False

    def _return(self) -> bool:
        """Mark this thread as ready again, unless enough others are or will be."""
        with self._lock:
            if _this_thread.stays:
                self._reserved = 0
            elif self._ready + self._reserved >= self.KEPT:
                return False
            self._ready += 1
        _this_thread.ready = True
        return True


def _handle(call: Call, handler: Handler) -> None:
    """Handle a call; if the handler raises an exception, the call fails with its errno.

    If the caller's arguments cannot be read, whatever it calls, the call is left to the kernel.
    """
    _in_progress.add(call)
    try:
        handler(call)
    except Exception as problem:
        code = errno_of(problem)
        refused = code in (errno.EPERM, errno.EACCES) and not call.answered
        if refused and call.process.closed_to_us():  # its arguments are inaccessible as well
            call.proceed()
            return
        if call.answered or not isinstance(problem, OSError | MemoryError):
            sys.excepthook(*sys.exc_info())  # a bug in loopfs: other callers are still served
        if not call.answered:
            call.fail(code)
    finally:
        _in_progress.discard(call)


def _refuse(listener: int, number: int) -> None:
    """Answer a call that could not be handled with EIO, if it has no answer yet."""
    try:
        response = uapi.NOTIF_RESP.pack(number, 0, -errno.EIO, 0)
        _told(listener, uapi.SECCOMP_IOCTL_NOTIF_SEND, response)
    except OSError as problem:
        if problem.errno != errno.EINPROGRESS:  # EINPROGRESS: it has an answer
            sys.excepthook(*sys.exc_info())


def _hung_up(listener: int) -> bool:
    """Return whether no process uses the filter any more, so that the listener is useless."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    try:
        return any(event & _HUNG_UP for _, event in poller.poll(0))
    except OSError:  # no memory: try again later
        return False


_HUNG_UP = select.POLLHUP | select.POLLNVAL
