"""Images for both sides, and the cleanup after a native side that failed half-way."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .measure import CommandError
from .runner import Stage

MIB = 1 << 20


def ext4_image(stage: Stage, name: str, mebibytes: int) -> Path:
    """Make a new ext4 image that belongs to the user."""
    image = stage.scratch / name
    with image.open("wb") as file:
        file.truncate(mebibytes * MIB)
    # No lazy initialization: the kernel would continue it in the background, an engine would not.
    stage.run_as_root(
        ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(image)]
    )
    stage.give(image)
    return image


def vfat_image(stage: Stage, name: str, mebibytes: int) -> Path:
    """Make a new FAT image that belongs to the user."""
    image = stage.scratch / name
    with image.open("wb") as file:
        file.truncate(mebibytes * MIB)
    stage.run_as_root(["mkfs.fat", str(image)])
    stage.give(image)
    return image


def filled_image(stage: Stage, name: str, mebibytes: int) -> Path:
    """Make an image with every block allocated: holes would be read at the speed of memset."""
    image = stage.scratch / name
    block = os.urandom(MIB)
    with image.open("wb") as file:
        for _ in range(mebibytes):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    stage.give(image)
    return image


@contextmanager
def cleaned_up(stage: Stage, image: Path, mountpoint: Path | None = None) -> Iterator[None]:
    """Remove native mounts and native loop devices of an image at the end, also after errors."""
    try:
        yield
    finally:
        with suppress(CommandError):
            if mountpoint is not None and mountpoint.is_mount():
                stage.run_as_root(["umount", str(mountpoint)])
        with suppress(CommandError):
            attached = stage.run_as_root(["losetup", "-j", str(image)])
            for device in re.findall(r"^(/dev/loop\d+):", attached, re.MULTILINE):
                stage.run_as_root(["losetup", "-d", device])
