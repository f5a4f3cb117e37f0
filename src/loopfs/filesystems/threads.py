"""Threads for what may wait: a caller's memory, a backing file's server, cached pages.

A thread that has nothing more to do is kept for the next call, as a start costs more than the
shortest calls. There are as many as there are calls that wait.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]
KEPT = 2  # threads that wait for a call


class Pool:
    """Makes each call in a thread that makes no other call meanwhile."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._calls: deque[Call] = deque()  # each has a thread that will take it
        self._ready = 0  # threads that take a call next: they wait, or are just starting

    def spawn(self, call: Call) -> None:
        """Make a call in a thread of its own.

        Raises:
            OSError: EAGAIN: no thread can be started (RLIMIT_NPROC, pids.max); the call is not
                made.
        """
        with self._changed:
            if self._ready == len(self._calls):
                # It is not an argument of the thread: that would refer to it as long as it lives.
                start("call", self._run)
                self._ready += 1
            self._calls.append(call)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            call = self._next()
            try:
                call()
            except Exception:  # a bug of ours: it fails one caller's request only
                sys.excepthook(*sys.exc_info())
            del call  # what it holds is let go of before the next one comes
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
    """Start a thread that does not keep the process from ending.

    Raises:
        OSError: EAGAIN: there is no room for it.
    """
    try:
        threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
    except (RuntimeError, MemoryError):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None


_pool = Pool()
spawn = _pool.spawn
