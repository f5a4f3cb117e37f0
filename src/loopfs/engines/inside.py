"""A thread of a job that is in the caller's mount namespace, root and working directory.

A process that serves a filesystem from within a mount namespace keeps that namespace, and so its
own mount in it, forever. A thread that ends keeps nothing.
"""

from __future__ import annotations

import errno
import os
import select
import threading
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
    """A thread that runs until :meth:`end`.

    Raises:
        OSError: EAGAIN if no thread can be started; errors of entering the namespaces.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._works: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._results: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="inside")
        try:
            self._thread.start()
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        self.call(self._enter)

    def _enter(self) -> None:
        syscalls.unshare(CLONE_FS)
        self._caller.enter()

    def _run(self) -> None:
        while (work := self._works.get()) is not None:
            try:
                self._results.put((work(), None))
            except BaseException as problem:
                self._results.put((None, problem))
        allow_imports()
        # The kernel ends the thread after the join returns; its old directory must be free by then.
        with suppress(PermissionError):  # no access: the directory is free a moment later
            os.chdir("/")

    def call(self, work: Callable[[], T]) -> T:
        """Call ``work`` in the thread; return its result or raise its exception."""
        self._works.put(work)
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
            self._results.get()
            os.close(done)

    def end(self) -> None:
        """End the thread, which leaves the namespaces."""
        self._works.put(None)
        self._thread.join()


def _end_with(caller: int, done: int) -> None:
    poller = select.poll()
    poller.register(caller, select.POLLIN)
    poller.register(done, select.POLLIN)
    if any(fd == caller for fd, _ in poller.poll()):  # with POLLHUP, after it has been waited for
        os._exit(1)
