"""Images as files, and their mounts without FUSE."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.ext4.filesystem import Ext4
from loopfs.file_device import FileDevice
from tests.ext4.images import make_image, use

Mounted = Callable[..., Ext4]


@pytest.fixture
def image(tmp_path: Path) -> Callable[[str], Path]:
    """Make an image of 64 MiB with the given arguments of mke2fs."""

    def make(words: str) -> Path:
        make_image(tmp_path / "image", words)
        return tmp_path / "image"

    return make


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    """Mount an image without FUSE."""
    fds = []

    def start(
        path: Path, *, read_only: bool = False, options: str = "", flags: int | None = None
    ) -> Ext4:
        mode = os.O_RDONLY if read_only else os.O_RDWR
        fds.append(os.open(path, mode if flags is None else flags))
        return use(FileDevice(fds[-1]), read_only=read_only, options=options)[0]

    yield start
    for fd in fds:
        os.close(fd)
