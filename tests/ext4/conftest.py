"""Images made by mke2fs, and calls in process."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.ext4.device import Device
from loopfs.ext4.filesystem import Ext4
from loopfs.ext4.mount import mount
from loopfs.ext4.options import Options
from loopfs.file_device import FileDevice
from loopfs.fuse.server import Server
from tests.support.skip import need

Mounted = Callable[..., Ext4]


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A tool of e2fsprogs."""
    need(shutil.which(str(words[0])), f"needs {words[0]}")
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def fsck(image: Path) -> str:
    """What e2fsck finds; empty when it is clean."""
    done = tool("e2fsck", "-fn", image)
    return "" if done.returncode == 0 else done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str], Path]:
    """Make an image of 64 MiB with the arguments of mke2fs that are given."""

    def make(words: str) -> Path:
        path = tmp_path / "image"
        with path.open("wb") as file:
            file.truncate(64 << 20)
        done = tool("mkfs.ext4", "-q", "-F", *words.split(), path)
        assert done.returncode == 0, done.stderr
        return path

    return make


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    """Take an image into use, without FUSE."""
    fds = []

    def start(path: Path, *, read_only: bool = False, options: str = "") -> Ext4:
        fds.append(os.open(path, os.O_RDONLY if read_only else os.O_RDWR))
        tree = Ext4(*mount(Device(FileDevice(fds[-1])), Options(options), read_only=read_only))
        Server(-1, tree)  # which keeps the root, and a lock
        return tree

    yield start
    for fd in fds:
        os.close(fd)
