"""The thread in which the driver may wait.

The driver takes one call at a time, as under the kernel's lo_mutex. A call that cannot
wait is made at once by the thread that reads requests, if nothing is before it; one that
can (it touches the caller's memory, asks a backing file for its size, drops cached pages)
is made by the worker, while the reader goes on serving the reads and writes that it may be
waiting for. Either way calls are made in the order in which they were submitted.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

Call = Callable[[], None]


class Worker:
    """Makes calls one at a time, in order."""

    def __init__(self) -> None:
        # The call that is being made stays first until it is done; None ends the thread.
        self._calls: deque[Call | None] = deque()
        self._changed = threading.Condition()
        self._busy = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def now_if_idle(self, call: Call) -> None:
        """Make a call that cannot wait: here, or after those that were submitted before."""
        if not self._calls and self._busy.acquire(blocking=False):
            try:
                if not self._calls:
                    call()
                    return
            finally:
                self._busy.release()
        self.later(call)

    def later(self, call: Call | None) -> None:
        """Have the worker make a call that may wait."""
        with self._changed:
            if not self._stopped:
                self._calls.append(call)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
                    self._thread.start()
                self._changed.notify()
                return
        if call is not None:
            with self._busy:
                call()

    def idle(self) -> bool:
        """No call waits or is being made."""
        return not self._calls and not self._busy.locked()

    def stop(self) -> None:
        """End the thread after the calls that were submitted; who has a later one makes it."""
        self.later(None)

    def join(self) -> None:
        """Wait for the thread's end."""
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            with self._busy:
                try:
                    call()
                except Exception:  # a bug of ours: one caller's loss, not everybody's
                    sys.excepthook(*sys.exc_info())
            self._calls.popleft()

    def _next(self) -> Call | None:
        """The first call; None when nothing is left, and from now on who has one makes it."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._calls))
            if self._calls[0] is None:
                self._calls.popleft()
                if not self._calls:
                    self._stopped = True
                    return None
                self._calls.append(None)
            return self._calls[0]


def spawn(call: Call) -> None:
    """Make a call that waits for storage in a thread of its own, so nothing waits with it."""
    threading.Thread(target=call, daemon=True).start()
