"""The job that syncs: when an engine is idle, and the file that makes fuse2fs write."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.engines import fuse2fs_flush, sync_job
from loopfs.engines.sync_job import is_idle
from tests.support.patience import scaled

Started = Callable[[str], int]


@pytest.fixture
def process() -> Iterator[Started]:
    """Start a Python program, which says when it has come to what it does; returns its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> int:
        words = [sys.executable, "-c", "import os, threading, time\n" + program]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE))
        stdout = started[-1].stdout
        assert stdout is not None
        assert stdout.readline() == b"ready\n"
        return started[-1].pid

    yield start
    for each in started:
        each.kill()
        each.communicate()


def becomes(pid: int, idle: bool) -> bool:
    deadline = time.monotonic() + scaled(20)
    while is_idle(pid) != idle and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_idle(pid) == idle


LOCKED = "lock = threading.Lock(); lock.acquire(); print('ready', flush=True); lock.acquire()"


def test_a_thread_that_waits_for_another_is_idle(process: Started) -> None:
    assert becomes(process(LOCKED), idle=True)


@pytest.mark.parametrize(
    "work", ["time.sleep(100)", "os.read(os.pipe()[0], 1)", "[0 for _ in iter(int, 1)]"]
)
def test_a_thread_that_works_or_waits_for_something_else_is_not_idle(
    process: Started, work: str
) -> None:
    pid = process(f"threading.Thread(target=lambda: {work}, daemon=True).start(); {LOCKED}")
    assert becomes(pid, idle=False)
    assert not any(is_idle(pid) for _ in range(100))


def test_what_is_never_idle_is_not_waited_for_for_ever(
    process: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = process(
        f"threading.Thread(target=lambda: time.sleep(100), daemon=True).start(); {LOCKED}"
    )
    monkeypatch.setattr(sync_job, "DRAINED_WITHIN", 0.1)
    start = time.monotonic()
    sync_job._drain(pid)
    assert time.monotonic() - start >= 0.1


# --- fuse2fs -------------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, by name."""
    names: list[str] = []

    def fsync(fd: int) -> None:
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        assert os.get_inheritable(fd) is False

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def flush(root: Path, own: Path | None = None) -> None:
    fds = [os.open(path, os.O_RDONLY) for path in (root, own) if path is not None]
    before = set(os.listdir("/proc/self/fd"))
    try:
        fuse2fs_flush.flush(fds[0], fds[1] if own is not None else None)
    finally:
        assert set(os.listdir("/proc/self/fd")) == before
        for fd in fds:
            os.close(fd)


def tree(place: Path) -> None:
    (place / "in" / "far").mkdir(parents=True)
    (place / "program").touch(0o755)
    (place / "link").symlink_to("in/far/file")
    os.mkfifo(place / "fifo")
    (place / "in" / "far" / "file").touch()


def test_some_file_is_found_that_is_no_program(tmp_path: Path, synced: list[str]) -> None:
    tree(tmp_path)
    flush(tmp_path)
    flush(tmp_path, tmp_path / "program")
    assert synced == ["file", "file"]


def test_the_callers_comes_first(tmp_path: Path, synced: list[str]) -> None:
    tree(tmp_path)
    (tmp_path / "in" / "own").touch()
    flush(tmp_path, tmp_path / "in" / "own")
    flush(tmp_path, tmp_path / "in")
    assert synced == ["own", "own"]


def test_a_file_is_made_where_there_is_none(tmp_path: Path, synced: list[str]) -> None:
    (tmp_path / "in" / "far").mkdir(parents=True)
    (tmp_path / "program").touch(0o755)
    flush(tmp_path, tmp_path / "in")
    assert synced == [f".loopfs-sync-{os.getpid()}"]
    assert sorted(os.listdir(tmp_path)) == ["in", "program"]


def test_it_does_not_look_for_ever(tmp_path: Path, synced: list[str]) -> None:
    for number in range(fuse2fs_flush._LOOKED_AT):
        (tmp_path / f"program {number}").touch(0o755)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").touch()
    flush(tmp_path)
    assert synced[0] in ("file", f".loopfs-sync-{os.getpid()}")
    flush(tmp_path, tmp_path / "in")
    assert synced[1] == "file"
