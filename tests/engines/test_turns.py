"""One job at a time mounts a device."""

from __future__ import annotations

import errno
import threading

import pytest

from loopfs.engines.turns import Turns


def test_the_next_one_waits_for_the_turn() -> None:
    turns, order = Turns(), []
    first = turns.take("disk", lambda: True)

    def second() -> None:
        turn = turns.take("disk", lambda: True)
        order.append("second")
        turn.give_back()

    thread = threading.Thread(target=second)
    thread.start()
    turns.take("another", lambda: True).give_back()  # does not wait
    order.append("first")
    first.give_back()
    thread.join(10)
    assert order == ["first", "second"]


def test_a_caller_that_has_ended_does_not_wait() -> None:
    turns = Turns()
    turns.take("disk", lambda: True)
    with pytest.raises(OSError, match="Interrupted") as raised:
        turns.take("disk", lambda: False)
    assert raised.value.errno == errno.EINTR


def test_a_turn_is_given_back_once() -> None:
    turns = Turns()
    first = turns.take("disk", lambda: True)
    first.give_back()
    second = turns.take("disk", lambda: True)
    first.give_back()
    with pytest.raises(OSError, match="Interrupted"):
        turns.take("disk", lambda: False)
    second.give_back()
