"""Threads for calls that may wait: one for each call; idle ones are reused."""

from __future__ import annotations

import errno
import sys
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from loopfs.filesystems.threads import KEPT, Pool
from tests.support.patience import scaled

PATIENCE = scaled(10.0)  # seconds


def test_calls_that_wait_do_not_wait_for_one_another() -> None:
    pool, together = Pool(), threading.Barrier(20)
    done = threading.Semaphore(0)

    def call() -> None:
        together.wait(PATIENCE)
        done.release()

    for _ in range(20):
        pool.spawn(call)
    for _ in range(20):
        assert done.acquire(timeout=PATIENCE)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def run(pool: Pool, call: Callable[[], None]) -> None:
    """Have a call made, and its thread wait for the next one."""
    begun = threading.Event()

    def made() -> None:
        begun.set()
        call()

    pool.spawn(made)
    assert begun.wait(PATIENCE)
    wait_for(lambda: pool._ready == 1)


def test_a_thread_that_has_nothing_to_do_is_used_again() -> None:
    pool, threads = Pool(), set[int]()
    for _ in range(5):
        run(pool, lambda: threads.add(threading.get_ident()))
    assert len(threads) == 1


def test_a_thread_that_waits_has_nothing_of_its_calls() -> None:
    """Neither of the first, with which it was started: a connection would stay open."""

    class Call:
        def __call__(self) -> None:
            return

    pool = Pool()
    gone = []
    for _ in range(2):
        call = Call()
        gone.append(weakref.ref(call))
        run(pool, call)
        del call
    wait_for(lambda: all(each() is None for each in gone))


def test_only_some_are_kept() -> None:
    pool, together, threads = Pool(), threading.Barrier(10), list[threading.Thread]()

    def call() -> None:
        threads.append(threading.current_thread())
        together.wait(PATIENCE)

    for _ in range(10):
        pool.spawn(call)
    wait_for(lambda: len(threads) == 10 and sum(t.is_alive() for t in threads) == KEPT)
    wait_for(lambda: pool._ready == KEPT)


def test_a_call_that_fails_does_not_end_its_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[type] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: said.append(kind))

    def bug() -> None:
        raise ValueError

    pool = Pool()
    run(pool, bug)
    run(pool, lambda: said.append(int))
    assert said == [ValueError, int]


def test_no_room_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One caller hears EAGAIN; the next has its call made."""

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool, done = Pool(), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="temporarily") as problem:
            pool.spawn(done.set)
        assert problem.value.errno == errno.EAGAIN
    assert not done.is_set()
    pool.spawn(done.set)
    assert done.wait(PATIENCE)
