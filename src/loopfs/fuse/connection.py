"""The server's file descriptor of a FUSE mount: waiting for requests, and ending the connection."""

from __future__ import annotations

import os
import select
from time import perf_counter

from loopfs.lean import Callable

_MOMENT = 30e-6  # seconds of polling before sleeping


class Connection(int):
    """A file descriptor of /dev/fuse that is closed when nothing refers to it any more.

    It is not closed when the session ends: another thread may still answer a request then, and
    must not write to another file that has got the same number.
    """

    def __del__(self) -> None:
        os.close(self)


def watch(fd: int) -> Callable[[], None]:
    """Set /dev/fuse to non-blocking mode and return a function that waits for the next request.

    The function polls for 30 µs before it sleeps: a program usually sends its next request within
    microseconds of the last reply, and waking an idle CPU takes several times as long. While
    polling it yields the CPU, which the program may be waiting for.
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
    """Replace an open /dev/fuse by /dev/null, so that no reply of this process reaches the kernel.

    When no other process has it open and no thread reads it, the kernel ends the connection, and
    every request that waits for a reply fails (ECONNABORTED).
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(null, fd, inheritable=False)
    finally:
        os.close(null)


def abort_all() -> None:
    """Call :func:`abort` for every /dev/fuse of this process.

    Otherwise its exit may block on a request that only it could answer.
    """
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                abort(int(name))
        except FileNotFoundError:
            continue  # closed in the meantime
