"""The sockets of keepers: each keeper has one, and none remains."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from loopfs.agent.doors import Doors
from loopfs.errors import LoopfsError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "agent.d"


def test_the_first_has_a_new_one_and_others_reach_it(place: Path) -> None:
    doors = Doors(str(place), 5)
    with doors.at("1") as door:
        assert door.is_new
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        with doors.at("1") as another, door.socket.accept()[0] as connection:
            assert not another.is_new
            another.socket.sendall(b"x")
            assert connection.recv(1) == b"x"
        with doors.at("2") as other:
            assert other.is_new
        assert os.listdir(place) == ["1"]
    assert not place.exists()


def test_one_that_is_removed_is_not_that_which_has_its_name_afterwards(place: Path) -> None:
    doors = Doors(str(place), 5)
    with doors.at("1") as door:
        door.remove()
        assert not place.exists()
        with doors.at("1") as following:
            assert following.is_new
            door.remove()
            with doors.at("1") as found:
                assert not found.is_new
    assert not place.exists()


def test_one_that_was_killed_is_replaced(place: Path) -> None:
    place.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{place}/1")
        killed.listen()
    with Doors(str(place), 5).at("1") as door:
        assert door.is_new
    assert not place.exists()


def test_only_one_of_many_is_new(place: Path) -> None:
    news = []
    all_there = threading.Barrier(8)

    def come() -> None:
        with Doors(str(place), 5).at("1") as door:
            news.append(door.is_new)
            all_there.wait(20)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(news) == [False] * 7 + [True]
    assert not place.exists()


def test_it_must_be_ones_own(place: Path) -> None:
    place.mkdir(0o755)
    place.chmod(0o755)
    with (
        pytest.raises(LoopfsError, match="not a directory of yours alone"),
        Doors(str(place), 5).locked(),
    ):
        raise AssertionError("entered")
    place.rmdir()
    place.symlink_to(place.parent)
    with pytest.raises(OSError, match=r"Not a directory|symbolic"), Doors(str(place), 5).locked():
        raise AssertionError("entered")
