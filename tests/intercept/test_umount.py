"""umount(2) with the agent: one call at a time."""

from __future__ import annotations

import marshal
import os
import threading
from contextlib import nullcontext
from typing import Any

import pytest

from loopfs.channel import Channel
from loopfs.intercept import umount
from loopfs.intercept.umount import UmountHandler
from tests.support.patience import scaled


class Helper:
    """Its jobs end when they may."""

    def __init__(self) -> None:
        self.begun: list[Channel] = []
        self.has_begun = threading.Semaphore(0)

    def begin(self, *_: object) -> Channel:
        ours, its = Channel.pair()
        self.begun.append(its)
        self.has_begun.release()
        return ours

    def end(self) -> None:
        its = self.begun.pop()
        its.send(marshal.dumps((0, 1)))
        its.close()


def test_no_two_at_a_time_where_the_kernel_would_allow_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second would reach what the runtime has mounted below."""
    monkeypatch.setattr(umount, "caller_descriptors", lambda _: nullcontext(()))
    helper = Helper()
    mounts: Any = type("Mounts", (), {"helper": helper})
    handler = UmountHandler(mounts, turn=threading.Lock())
    call: Any = None
    threads = [threading.Thread(target=handler._try, args=(call, ())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert helper.has_begun.acquire(timeout=scaled(20))
        os.sched_yield()
        assert len(helper.begun) == 1
        helper.end()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
