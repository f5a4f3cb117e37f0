"""Threads for calls that can block: on a caller's memory, a backing file's server, cached pages.

Idle threads are kept for the next call, since starting a thread takes longer than the shortest
calls. There are as many threads as there are calls that block.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]
KEPT = 2  # idle threads that are kept


class Pool:
    """Makes each call in a thread that makes no other call at the same time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: deque[Call] = deque()  # a thread is ready for each of them
        self._ready = 0  # threads that will take a call next: idle, or starting

    def spawn(self, call: Call) -> None:
        """Make a call in another thread.

        Raises:
            OSError: EAGAIN if no thread can be started (RLIMIT_NPROC, pids.max); the call is not
                made.
        """
        with self._changed:
            if self._ready == len(self._calls):
                # Not passed as an argument of the thread, which would keep a reference to it.
                start("call", self._run)
                self._ready += 1
            self._calls.append(call)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            call = self._next()
            try:
                call()
            except Exception:  # a bug in loopfs: only one caller's request fails
                sys.excepthook(*sys.exc_info())
            del call  # release what it refers to before the next call
            with self._changed:
                if self._ready - len(self._calls) >= KEPT:
                    return
                self._ready += 1

    def _next(self) -> Call:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._calls))
            self._ready -= 1
            return self._calls.popleft()


def start(name: str, target: Callable[..., None], *arguments: object) -> None:
    """Start a daemon thread, which does not prevent the process from ending.

    Raises:
        OSError: EAGAIN if no thread can be started.
    """
    try:
        threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
    except (RuntimeError, MemoryError):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None


_pool = Pool()
spawn = _pool.spawn
