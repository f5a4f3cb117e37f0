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

PAUSE = 0.01  # seconds, until what could not be received is tried again
FSTAT_CALLS = ("fstat", "fstat64", "newfstatat", "fstatat64", "statx")

NAMES = {
    (abi.arch, abi.numbers[trap.syscall]): trap.syscall
    for abi in abis()
    for trap in TRAPS
    if trap.syscall in abi.numbers
}


class Call:
    """A trapped system call, to be answered once.

    ``args`` are the bare registers, ``process`` is the thread that waits. ``name`` is empty if the
    filter is another's, and traps what ours does not.
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
        """Tell the log what is acted on; without a log, nobody.

        Args:
            engine: what serves the filesystem, or was to.
            why: a sentence for a refusal.
            arguments: those that were read from the caller's memory.
        """

    def proceed(self) -> None:
        """Let the kernel carry the call out."""
        self._send(0, 0, uapi.SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def finish(self, value: int = 0) -> None:
        """Have it return ``value``."""
        self._send(value, 0, 0)

    def fail(self, code: int) -> None:
        """Have it fail with the errno ``code``."""
        self._send(0, -code, 0)

    def answer(self, code: int) -> None:
        """Have it return 0, or fail with the errno ``code``."""
        self._send(0, -code, 0)

    def finish_with_descriptor(self, fd: int, *, close_on_exec: bool) -> None:
        """Have it return a duplicate of our ``fd`` in the caller's table.

        Raises:
            OSError: EMFILE: the caller has no room; EINVAL before Linux 5.14.
        """
        self._add_descriptor(uapi.SECCOMP_ADDFD_FLAG_SEND, fd, 0, close_on_exec)

    def replace_descriptor(self, number: int, fd: int, *, close_on_exec: bool) -> None:
        """Put a duplicate of our ``fd`` in the place of the caller's ``number``, as dup3(2)."""
        self._add_descriptor(uapi.SECCOMP_ADDFD_FLAG_SETFD, fd, number, close_on_exec)

    def _add_descriptor(self, how: int, fd: int, number: int, close_on_exec: bool) -> bool:
        flags = os.O_CLOEXEC if close_on_exec else 0
        request = uapi.NOTIF_ADDFD.pack(self._id, how, fd, number, flags)
        there = self._reply(uapi.SECCOMP_IOCTL_NOTIF_ADDFD, request)
        self.answered |= how == uapi.SECCOMP_ADDFD_FLAG_SEND
        return there

    def alive(self) -> bool:
        """The caller still waits: what was read of it was read of it and no other."""
        return self._reply(uapi.SECCOMP_IOCTL_NOTIF_ID_VALID, uapi.NOTIF_ID.pack(self._id))

    def _send(self, value: int, error: int, flags: int) -> bool:
        response = uapi.NOTIF_RESP.pack(self._id, value, error, flags)
        there = self._reply(uapi.SECCOMP_IOCTL_NOTIF_SEND, response)
        self.answered = True
        return there

    def _reply(self, command: int, argument: bytes) -> bool:
        """Whether the caller was still there for it, and not killed meanwhile."""
        return _told(self._listener, command, argument)


def _told(listener: int, command: int, argument: bytes) -> bool:
    """Say something of a call to the kernel; whether it was still there for it."""
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
_lost_at = [float("-inf")]  # when a caller was found to be gone that had not been answered


def callers_were_lost(but: Call) -> bool:
    """A caller was killed while it waited, so what is done for it, and a moment later its job,
    may still have files open of which nobody could tell.

    Args:
        but: the call that asks.
    """
    if time.monotonic() - _lost_at[0] < _MOMENT:
        return True
    return any(not call.alive() for call in list(_in_progress) if call is not but)


Handler = Callable[[Call], None]
MakeCall = Callable[[int, uapi.Notification], Call]


def serve(listener: int, handler: Handler, make: MakeCall = Call) -> None:
    """Hand each trapped call to ``handler``, until no process is left.

    It runs in the thread that has received the call, this one or another; before it waits for
    anybody it calls :func:`may_wait`. ``make`` makes a call of what was received on the listener.
    """
    try:  # 6.6: wake the caller on this CPU, at an eighth of the time
        flags = uapi.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
        fcntl.ioctl(listener, uapi.SECCOMP_IOCTL_NOTIF_SET_FLAGS, flags)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
    _Receivers(listener, handler, make).run()


def may_wait() -> None:
    """The handler that calls this may wait from here on: another thread receives.

    Raises:
        OSError: EAGAIN: there is none, and none can be started.
    """
    receivers: _Receivers | None = getattr(_this_thread, "receivers", None)
    if receivers is not None:
        receivers.leave()


_this_thread = threading.local()
_MOMENT = 1.0  # seconds


class _Receivers:
    """The threads that receive from a listener.

    One of them is always ready for the next call. Who has received a call handles it, too: to
    hand it over would cost more than most calls do.
    """

    KEPT = 2  # ready when nothing waits

    def __init__(self, listener: int, handler: Handler, make: MakeCall) -> None:
        self._listener = listener
        self._handler = handler
        self._make = make
        self._lock = threading.Lock()
        self._ready = 1

    def run(self) -> None:
        """Be one of them, which is counted already."""
        _this_thread.receivers = self
        _this_thread.ready = True
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
                    sys.excepthook(*sys.exc_info())  # a bug of ours, or no memory
                    time.sleep(PAUSE)
                continue  # the caller was killed before we could read
            notification = uapi.Notification._make(uapi.NOTIF.unpack(buffer))
            try:
                _handle(self._make(self._listener, notification), self._handler)
            except Exception:  # a bug of ours, or no memory: one caller's loss
                sys.excepthook(*sys.exc_info())
                _refuse(self._listener, notification.id)

    def leave(self) -> None:
        """This thread is not ready until it has handled its call."""
        if not _this_thread.ready:
            return
        with self._lock:
            if self._ready == 1:
                start("notify", self.run)
            else:
                self._ready -= 1
        _this_thread.ready = False

    def _return(self) -> bool:
        """Be ready again, if there are not enough of us."""
        with self._lock:
            if self._ready >= self.KEPT:
                return False
            self._ready += 1
        _this_thread.ready = True
        return True


def _handle(call: Call, handler: Handler) -> None:
    """An exception of the handler is the call's answer, unless it has one.

    A caller whose arguments we may not read, whatever it asks, is the kernel's to answer.
    """
    _in_progress.add(call)
    try:
        handler(call)
    except Exception as problem:
        code = errno_of(problem)
        refused = code in (errno.EPERM, errno.EACCES) and not call.answered
        if refused and call.process.closed_to_us():  # so is what it asks for
            call.proceed()
            return
        if call.answered or not isinstance(problem, OSError | MemoryError):
            sys.excepthook(*sys.exc_info())  # a bug of ours: not the end of all callers
        if not call.answered:
            call.fail(code)
    finally:
        _in_progress.discard(call)


def _refuse(listener: int, number: int) -> None:
    """Answer a call of which nothing else is left, if it has no answer yet."""
    try:
        response = uapi.NOTIF_RESP.pack(number, 0, -errno.EIO, 0)
        _told(listener, uapi.SECCOMP_IOCTL_NOTIF_SEND, response)
    except OSError as problem:
        if problem.errno != errno.EINPROGRESS:  # it has one
            sys.excepthook(*sys.exc_info())


def _hung_up(listener: int) -> bool:
    """No process is left that the filter watches; the listener is of no use any more."""
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    try:
        return any(event & _HUNG_UP for _, event in poller.poll(0))
    except OSError:  # no memory: next time
        return False


_HUNG_UP = select.POLLHUP | select.POLLNVAL
