"""A thread of a job that is in the caller's mount namespace, root and working directory.

A process that serves a filesystem from within a mount namespace keeps that namespace, and so its
own mount in it, forever. A thread that ends keeps nothing.
"""

from __future__ import annotations

import errno
import os
import select
from _thread import allocate_lock, start_new_thread
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue

from loopfs import syscalls
from loopfs.engines.caller import Caller
from loopfs.engines.own_modules import allow_imports
from loopfs.lean import Callable, TypeVar
from loopfs.uapi.sched import CLONE_FS

T = TypeVar("T")


class Inside:
    """A thread that runs until :meth:`end` and enters the namespaces before its first work.

    It is not a :class:`threading.Thread`, whose start() waits for the new thread: to wake another
    thread can take longer than the work of both.

    Raises:
        OSError: EAGAIN if no thread can be started.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._entered = False
        self._works: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
        self._running = allocate_lock()
        self._running.acquire()
        try:
            start_new_thread(self._run, ())
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            work()
        allow_imports()
        # The kernel ends the thread a moment after end(); its old directory must be free by then.
        with suppress(PermissionError):  # no access: the directory is free a moment later
            os.chdir("/")
        self._running.release()

    def _answer(self, work: Callable[[], object]) -> None:
        try:
            if not self._entered:
                syscalls.unshare(CLONE_FS)
                self._caller.enter()
                self._entered = True
            self._results.put((work(), None))
        except BaseException as problem:
            self._results.put((None, problem))

    def call(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the thread; return its result or raise its exception, or that of
        entering the namespaces."""
        self._works.put(lambda: self._answer(work))
        return self._result()

    def last(self, work: Callable[[], T]) -> T:
        """Do :meth:`call` and :meth:`end` with one wait for the thread."""
        self._works.put(lambda: self._answer(work))
        self.end()
        return self._result()

    def _result(self) -> T:  # type: ignore[type-var]
        result, problem = self._results.get()
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """End the process if the caller ends during the body, since no one waits for the result."""
        done = os.eventfd(0, os.EFD_CLOEXEC)
        self._works.put(lambda: _end_with(self._caller.pidfd, done))
        try:
            yield
        finally:
            os.eventfd_write(done, 1)

    def end(self) -> None:
        """End the thread, which leaves the namespaces. A second call has no effect."""
        self._works.put(None)
        with self._running:
            return


def _end_with(caller: int, done: int) -> None:
    """End the process when the caller ends, unless ``done`` is written before; close ``done``."""
    poller = select.poll()
    poller.register(caller, select.POLLIN)
    poller.register(done, select.POLLIN)
    if any(fd == caller for fd, _ in poller.poll()):  # with POLLHUP, after it has been waited for
        os._exit(1)
    os.close(done)
