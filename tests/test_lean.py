"""loopfs.lean: its replacements work as those of the standard library."""

from __future__ import annotations

import copy
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

from loopfs import lean
from tests.iso9660.images import both_trees
from tests.support.patience import scaled
from tests.udf.test_as_kernel import image_of


class Ours(lean.NamedTuple):
    """Something."""

    first: int
    second: str = "b"

    def both(self) -> str:
        return f"{self.first}{self.second}"


class Theirs(typing.NamedTuple):
    first: int
    second: str = "b"


def test_it_is_a_tuple_with_names() -> None:
    made = Ours(1)
    assert made == (1, "b") == Ours(first=1, second="b")
    assert (made.first, made.second, made.both()) == (1, "b", "1b")
    assert Ours._fields == Theirs._fields
    assert hash(made) == hash(Theirs(1))
    assert repr(made) == "Ours(first=1, second='b')"


@pytest.mark.parametrize("kind", [Ours, Theirs])
def test_it_is_constructed_as_a_function_is_called(kind: Any) -> None:
    for arguments, named in (((), {}), ((1, 2, 3), {}), ((1,), {"third": 3}), ((1,), {"first": 1})):
        with pytest.raises(TypeError):
            kind(*arguments, **named)


def test_it_is_made_changed_and_copied() -> None:
    made = Ours._make((1, "x"))
    assert type(made) is Ours
    assert made._replace(second="y") == (1, "y")
    assert type(copy.copy(made)) is Ours
    assert copy.copy(made) == made
    with pytest.raises(ValueError, match="third"):
        made._replace(third=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="2 fields"):
        Ours._make((1, "x", 3))


def test_nothing_can_be_set() -> None:
    with pytest.raises(AttributeError):
        Ours(1).first = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Ours(1).other = 2  # type: ignore[attr-defined]


def test_it_can_be_matched() -> None:
    match Ours(1, "x"):
        case Ours(first, second):
            assert (first, second) == (1, "x")


def test_the_start_of_run_imports_nothing_slow() -> None:
    """What a start does not pay for (docs/decisions.md)."""
    seen = "import sys, loopfs.cli, loopfs.sandbox.run; print(*sys.modules)"
    done = run([sys.executable, "-IS", "-c", f"import sys; sys.path[:] = {sys.path!r}; {seen}"])
    slow = {"typing", "re", "enum", "collections", "functools", "socket", "signal", "threading"}
    assert "loopfs.sandbox.run" in done.stdout.split()
    assert not slow & set(done.stdout.split())


def test_a_mount_imports_nothing_more_than_an_idle_helper(tmp_path: Path) -> None:
    """Each job that mounts is a fork of the helper, and would import it again."""
    images = {"iso9660": bytes(both_trees()), "udf": bytes(image_of("hd-2.01"))}
    for fstype, content in images.items():
        (tmp_path / fstype).write_bytes(content)
    for fstype in ("ext4", "vfat"):
        with (tmp_path / fstype).open("wb") as file:
            file.truncate(8 << 20)
        run([f"/sbin/mkfs.{fstype}", str(tmp_path / fstype)])
    done = run(
        [
            sys.executable,
            "-IS",
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}\n{MOUNTS}",
            str(tmp_path),
        ]
    )
    assert done.stdout.split() == ["ext4", "vfat", "iso9660", "udf"]


MOUNTS = """
import os
from loopfs.channel import Channel
from loopfs.engines import helper
for name in helper._OF_JOBS:
    __import__(name)
from loopfs.engines.engine import Launch, Mounter
from loopfs.engines.lent import Lent
from loopfs.engines.policy import BY_NAME
channel, supervisors = Channel.pair()
for fstype in ("ext4", "vfat", "iso9660", "udf"):
    had = set(sys.modules)
    file = os.open(f"{sys.argv[1]}/{fstype}", os.O_RDWR)
    lent = Lent(file, channel, 0, os.fstat(file).st_size)
    launch = Launch("", "", fstype, (), fstype in ("iso9660", "udf"), Mounter(0, 0, 0, 0))
    BY_NAME[fstype].prepare(lent, launch)
    print(fstype, *(set(sys.modules) - had))
"""


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=scaled(60))
