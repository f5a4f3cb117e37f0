"""Calls to the driver are made one at a time and in the order in which they were submitted."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest

from loopfs.filesystems.worker import Worker, spawn

PATIENCE = 10.0  # seconds


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stop()


def finish(worker: Worker) -> None:
    """Wait until everything that was submitted has been done."""
    done = threading.Event()
    worker.later(done.set)
    assert done.wait(PATIENCE)


def test_an_idle_worker_leaves_the_call_to_the_caller(worker: Worker) -> None:
    threads: list[int] = []
    worker.now_if_idle(lambda: threads.append(threading.get_ident()))
    assert threads == [threading.get_ident()]


def test_later_is_in_another_thread(worker: Worker) -> None:
    threads: list[int] = []
    worker.later(lambda: threads.append(threading.get_ident()))
    finish(worker)
    assert threads[0] != threading.get_ident()
    assert len(threads) == 1


def test_a_call_that_cannot_wait_waits_for_those_before_it(worker: Worker) -> None:
    order: list[str] = []
    go_on = threading.Event()

    def slow() -> None:
        assert go_on.wait(PATIENCE)
        order.append("slow")

    worker.later(slow)
    worker.now_if_idle(lambda: order.append("quick"))
    worker.later(lambda: order.append("last"))
    assert order == [], "the reader must not have waited"
    go_on.set()
    finish(worker)
    assert order == ["slow", "quick", "last"]


def test_order_over_many_calls_of_both_kinds(worker: Worker) -> None:
    order: list[int] = []
    for number in range(2000):
        call = worker.later if number % 7 == 0 else worker.now_if_idle
        call(lambda number=number: order.append(number))  # type: ignore[misc]
    finish(worker)
    assert order == list(range(2000))


def test_calls_do_not_overlap(worker: Worker) -> None:
    inside = 0
    overlaps: list[int] = []

    def call() -> None:
        nonlocal inside
        inside += 1
        if inside != 1:
            overlaps.append(inside)
        inside -= 1

    def submit() -> None:
        for _ in range(500):
            worker.now_if_idle(call)
            worker.later(call)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    finish(worker)
    assert overlaps == []


def test_a_call_that_fails_does_not_end_the_worker(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *what: said.append(what[0]))

    def bug() -> None:
        raise ValueError("a bug")

    worker.later(bug)
    finish(worker)
    assert said == [ValueError]
    made: list[int] = []
    worker.later(lambda: made.append(1))
    finish(worker)
    assert made == [1]


def test_a_call_may_submit_another(worker: Worker) -> None:
    order: list[str] = []

    def first() -> None:
        worker.now_if_idle(lambda: order.append("second"))
        order.append("first")

    worker.later(first)
    finish(worker)
    finish(worker)
    assert order == ["first", "second"]


def test_stopping_makes_what_was_submitted_before() -> None:
    worker = Worker()
    made: list[int] = []
    go_on = threading.Event()
    worker.later(lambda: made.append(int(go_on.wait(PATIENCE))))
    worker.later(lambda: made.append(2))
    worker.stop()
    thread = worker._thread
    assert thread is not None
    go_on.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert made == [1, 2]


def test_spawn_waits_for_nothing() -> None:
    go_on, done = threading.Event(), threading.Event()

    def call() -> None:
        if go_on.wait(PATIENCE):
            done.set()

    spawn(call)
    assert not done.is_set()
    go_on.set()
    assert done.wait(PATIENCE)
