"""The server's descriptor of a FUSE mount: how to wait for it, and how to let go of it."""

from __future__ import annotations

import os
import select
from time import perf_counter

from loopfs.lean import Callable

_MOMENT = 30e-6  # seconds


class Connection(int):
    """A descriptor of /dev/fuse that is closed when nothing refers to it any more.

    Not when the session ends: a thread may still answer a request then, and must not find
    another file under the number.
    """

    def __del__(self) -> None:
        os.close(self)


def watch(fd: int) -> Callable[[], None]:
    """Have reads of an open /dev/fuse not block, and give a function that waits for a request.

    It looks for a moment before it sleeps: the next request of a program comes some microseconds
    after the last answer, and a processor that has gone idle takes several times that to wake.
    What it yields meanwhile is for the program, which may be on the same processor.
    """
    os.set_blocking(fd, False)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poll, give_way = poller.poll, os.sched_yield

    def wait() -> None:
        end = perf_counter() + _MOMENT
        while perf_counter() < end:
            give_way()
            if poll(0):
                return
        poll()

    return wait


def abort(fd: int) -> None:
    """Let go of an open /dev/fuse, whoever still has the descriptor: what they answer goes nowhere.

    When nobody else has it open and no thread reads it any more, the kernel ends the connection,
    and everybody who waits for an answer has one (ECONNABORTED).
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)


def abort_all() -> None:
    """As :func:`abort`, for all that this process has: its end cannot wait for its own answers."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                abort(int(name))
        except FileNotFoundError:
            continue  # closed meanwhile
