"""The keeper of a container, when the container or the supervisor has ended."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopfs.agent import container, keeper
from loopfs.agent.doors import Door, Doors
from loopfs.agent.keeper import Keeper
from tests.support.parts import wait_until

LAST = 2**64 - 2  # numbers begin anywhere, and go on with 0


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with Doors(str(tmp_path / "agent.d"), 5).at("1") as made:
        yield made


def test_what_the_supervisor_had_received_is_answered(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what it had no time to note."""
    answered = []
    monkeypatch.setattr(keeper, "let_go", lambda _, number: answered.append(number))
    listener, other = os.pipe()
    kept = Keeper("one", door, listener)
    container.SLOT.pack_into(kept._page, 0, LAST)
    kept._answer_in_flight()
    assert {LAST - 1, LAST, LAST + 1, 0, 1} <= set(answered)
    os.close(listener)
    os.close(other)


def test_a_container_that_has_ended_is_not_found(door: Door, tmp_path: Path) -> None:
    """Its engines may still write, and its supervisor waits for them."""
    listener, container_end = os.pipe()
    supervisor = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    ended = []
    kept = Keeper("one", door, listener)
    follower = threading.Thread(target=lambda: ended.append(kept._follow(supervisor.pid)))
    follower.start()
    os.close(container_end)
    wait_until(lambda: not (tmp_path / "agent.d").exists(), "nobody finds it any more")
    assert follower.is_alive()
    assert supervisor.stdin is not None
    supervisor.stdin.close()
    follower.join(20)
    assert ended == [True]
    supervisor.returncode = 0  # the keeper has waited for it
