"""Images in memory: made by mkfs.fat, checked by fsck.fat, and devices that fail."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from loopfs.fat.errors import refused
from loopfs.fat.filesystem import Vfat
from loopfs.fat.options import Options
from loopfs.fat.volume import Volume
from loopfs.file_device import Buffer
from tests.support.patience import scaled
from tests.support.skip import need

TIMEOUT = scaled(60.0)  # seconds
MIB = 1 << 20
# Size in bytes and the arguments of mkfs.fat, of each kind of FAT and sector.
GEOMETRIES = {
    "FAT12 floppy": (1440 << 10, "-F 12"),
    "FAT12 odd": (3 * MIB + 512, "-F 12 -s 2"),
    "FAT16": (16 * MIB, "-F 16"),
    "FAT16 one FAT": (3 * MIB, "-F 16 -s 1 -f 1"),
    "FAT32": (4 * MIB, "-F 32 -s 1"),
    "FAT32 4096": (24 * MIB, "-F 32 -S 4096 -s 1"),
}


def tool(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A tool of dosfstools or mtools."""
    need(shutil.which(name), f"needs {name}")
    environment = os.environ | {"LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
    command = [name, *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
    )


@lru_cache(4)
def _made(size: int, words: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "image")
        with path.open("wb") as file:
            file.truncate(size)
        done = tool("mkfs.fat", *words.split(), "-i", "12345678", "-n", "TEST", path)
        assert done.returncode == 0, done.stderr
        return path.read_bytes()


def made(name: str) -> bytearray:
    """A fresh image of one of GEOMETRIES."""
    return bytearray(_made(*GEOMETRIES[name]))


@contextmanager
def on_disk(image: bytes | bytearray) -> Iterator[Path]:
    """An image as a file, for the tools."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "image")
        path.write_bytes(image)
        yield path


def fsck(image: bytes | bytearray) -> str:
    """What fsck.fat finds; empty when it is clean."""
    with on_disk(image) as path:
        done = tool("fsck.fat", "-n", path)
        return "" if done.returncode == 0 else done.stdout


class Memory:
    """A device of bytes.

    Attributes:
        data: the bytes.
        log: what was written, as (offset, bytes) in order; None: not to be kept.
        fails: called with the kind of access ("read", "write", "sync") and its offset before
            it is made; returns an errno to fail with, or 0.
    """

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.log: list[tuple[int, bytes]] | None = None
        self.discarded: list[tuple[int, int]] = []
        self.synced = 0

    def fails(self, kind: str, offset: int) -> int:
        return 0

    def _check(self, kind: str, offset: int, length: int) -> None:
        if code := self.fails(kind, offset):
            raise refused(code)
        if offset < 0 or offset + length > len(self.data):
            raise refused(errno.EIO)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def read_only(self) -> bool:
        return False

    def read(self, offset: int, length: int) -> bytes:
        self._check("read", offset, length)
        return bytes(memoryview(self.data)[offset : offset + length])

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check("read", offset, len(buffer))
        buffer[:] = memoryview(self.data)[offset : offset + len(buffer)]

    def write(self, offset: int, *parts: Buffer) -> None:
        whole = b"".join(parts)
        self._check("write", offset, len(whole))
        if self.log is not None:
            self.log.append((offset, whole))
        self.data[offset : offset + len(whole)] = whole

    def zero(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))

    def discard(self, offset: int, length: int) -> None:
        self.write(offset, bytes(length))
        self.discarded.append((offset, length))

    def barrier(self) -> None:
        self.sync()

    def written(self) -> None:
        return

    def sync(self) -> None:
        self._check("sync", 0, 0)
        self.synced += 1


class Notices:
    """Stands for the server: what the kernel would be told."""

    def __init__(self) -> None:
        self.names: list[tuple[int, bytes]] = []
        self.attributes: list[int] = []

    def forget_name(self, parent: int, name: bytes) -> None:
        self.names.append((parent, name))

    def attributes_changed(self, nodeid: int) -> None:
        self.attributes.append(nodeid)


# Moments that differ, and are the same in each run.
FIRST_MOMENT = 1_700_000_000 * 10**9


def mounted(
    device: Memory, options: str = "", fstype: str = "vfat", *, read_only: bool = False
) -> Vfat:
    """A volume on a device, with a clock of its own; what it says goes nowhere."""
    clock = itertools.count(FIRST_MOMENT, 10**9)
    volume = Volume(
        device,
        Options(options, fstype=fstype),
        read_only=read_only,
        now=lambda: next(clock),
        log=lambda sentence: None,
    )
    tree = Vfat(volume)
    tree.known(tree.root())
    tree.server = Notices()  # type: ignore[assignment]
    return tree
