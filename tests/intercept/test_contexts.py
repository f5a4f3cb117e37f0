"""Contexts of fsopen(2): a failure leaves no state, and the next attempt succeeds."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import NoReturn

import pytest

from loopfs.driver.fs_context import FsContext, LoopParameters
from loopfs.filesystems.shares import Shares
from loopfs.intercept.fs_context import OpenContexts, Picked
from loopfs.intercept.notify import Call
from loopfs.process import Process
from loopfs.uapi.seccomp import Notification
from loopfs.uapi.syscalls import abis
from tests.support.parts import wait_until


class Caller(Call):
    """One who gets the descriptor as ``fd``, or no descriptor."""

    fd = -1

    def __init__(self, refusal: OSError | None = None) -> None:
        abi = abis()[0]
        nothing = (0,) * 7
        super().__init__(
            -1, Notification(1, os.getpid(), 0, abi.numbers["fsopen"], abi.arch, *nothing)
        )
        self._refusal = refusal

    def finish_with_descriptor(self, fd: int, *, close_on_exec: bool) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.fd = os.dup(fd)


def context() -> FsContext:
    return FsContext("loop", LoopParameters)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def opened(contexts: OpenContexts, caller: Caller, picked: Picked | None = None) -> bool:
    """It is open, and found by its descriptor."""
    contexts.open(caller, context(), picked, cloexec=True)
    return contexts.find(Process(os.getpid()), caller.fd) is not None


def cannot(*_: object) -> NoReturn:
    raise RuntimeError("can't start new thread")


def no_memory(*_: object) -> NoReturn:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.parametrize("broken", [(threading.Thread, "start", cannot), (os, "pipe2", no_memory)])
def test_one_that_cannot_be_opened(broken: tuple[object, str, Callable[..., object]]) -> None:
    contexts = OpenContexts(Shares())
    before = descriptors()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*broken)
        for _ in range(2):
            with pytest.raises(OSError, match="Errno"):
                opened(contexts, Caller(), Picked(os.open("/dev/null", os.O_RDONLY), None))
    assert descriptors() == before
    caller = Caller()
    assert opened(contexts, caller)
    os.close(caller.fd)
    wait_until(lambda: not contexts._contexts, "it is closed")


def test_a_caller_without_room_for_the_descriptor() -> None:
    contexts = OpenContexts(Shares())
    with pytest.raises(OSError, match="24"):
        opened(contexts, Caller(OSError(24, "Too many open files")))
    wait_until(lambda: not contexts._contexts, "nothing of it stays")


def test_a_context_that_is_closed_during_a_call() -> None:
    """Who does closes it; the thread that sees to all contexts does not wait."""
    contexts = OpenContexts(Shares())
    slow, other = Caller(), Caller()
    assert opened(contexts, slow)
    ((_, acted_on),) = contexts._contexts.values()
    with acted_on.lock:
        os.close(slow.fd)
        assert opened(contexts, other)
        os.close(other.fd)
        wait_until(lambda: not contexts._contexts, "both have been seen to")
        before = acted_on.closed
    acted_on.left()
    assert (before, acted_on.closed) == (False, True)
    acted_on.left()  # once more is nothing


def test_a_poller_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """max_user_watches (epoll(7))."""

    class Full:
        def register(self, fd: int, events: int) -> NoReturn:
            raise OSError(28, "No space left on device")

    contexts = OpenContexts(Shares())
    before = descriptors()
    monkeypatch.setattr(select, "epoll", Full)
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)  # it has nothing to watch
    with pytest.raises(OSError, match="28"):
        opened(contexts, Caller())
    assert descriptors() == before
    assert not contexts._contexts
