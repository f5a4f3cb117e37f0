"""An idle session has answered all earlier requests."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from loopfs.fuse.operations import Entry, Operations
from loopfs.fuse.session import Request, Session
from loopfs.uapi import fuse
from tests.fuse.wire import PATIENCE, refuse, served

TURNS = 500


class Counting(Operations):
    """Knows no name, and counts who asks for one."""

    def __init__(self) -> None:
        self.asked = 0

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        self.asked += 1
        raise refuse(errno.ENOENT)


def test_a_request_that_was_just_taken_is_not_answered() -> None:
    """Its thread may wait for the interpreter, and the queue is empty."""
    counting, sessions, end = Counting(), list[Session](), time.monotonic() + PATIENCE

    def make(fd: int) -> Callable[[], None]:
        sessions.append(Session(fd, counting, watched=True))
        return sessions[0].serve

    with served(make) as kernel:
        for turn in range(TURNS):
            kernel.send(fuse.FUSE_LOOKUP, b"name\0")
            while not sessions[0].idle():
                assert time.monotonic() < end
            assert counting.asked == turn + 1
            assert kernel.receive()[1].code == errno.ENOENT
