"""Links to nodes in a directory that also has files of a user."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.filesystems import links

Change = Callable[[str, str], None]
PLACE = os.fsdecode(b"caf\xe9\nmnt")  # any bytes can be a name


@pytest.fixture
def change(tmp_path: Path) -> Iterator[Change]:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield lambda action, name: links.change(directory, PLACE, action, name)
    os.close(directory)


def test_a_link_comes_and_goes(change: Change, tmp_path: Path) -> None:
    change("add", "loop9")
    assert os.readlink(tmp_path / "loop9") == f"{PLACE}/loop9"
    change("add", "loop9")
    change("remove", "loop9")
    assert list(tmp_path.iterdir()) == []
    change("remove", "loop9")


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_link_elsewhere(path: Path) -> None:
    path.symlink_to(f"{PLACE}/loop8")


@pytest.mark.parametrize("make", [a_file, a_directory, a_link_elsewhere])
def test_what_is_a_users_stays(
    change: Change, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "loop9")
    before = os.lstat(tmp_path / "loop9")
    change("add", "loop9")
    change("remove", "loop9")
    after = os.lstat(tmp_path / "loop9")
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (
        before.st_ino,
        before.st_size,
        before.st_mtime_ns,
    )
