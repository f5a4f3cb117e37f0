"""The images of the random steps, made anew for each sequence."""

from __future__ import annotations

import os
import struct
import subprocess
from array import array
from pathlib import Path
from typing import NamedTuple

from tests.bytes.model import Range
from tests.support.patience import scaled

SECTOR = 512
TABLE = Range(446, 512)  # of the disk with partitions; the boot code precedes it
BOOT_BLOCK = 1024  # bytes at an ext4's beginning that it does not use
FILE_SIZE = 96 << 10

# Nothing is aligned to pages but the plain image's filesystem.
FIRST = Range(63 * SECTOR, 63 * SECTOR + (1 << 20) + 41 * SECTOR)
SECOND = Range(FIRST.end + SECTOR, FIRST.end + SECTOR + (384 << 10) + 3 * SECTOR)
PARTED_SIZE = SECOND.end + 77 * SECTOR
PLAIN_SIZE = (2 << 20) + 129 * SECTOR
RAW_SIZE = (1 << 20) + 3 * SECTOR


class Layout(NamedTuple):
    """The location of a filesystem in an image, and of the file ``data`` with known blocks."""

    extent: Range
    data: Range


def numbered(place: int, length: int, stamp: int) -> bytes:
    """Return bytes that identify their writer and their ``place`` in the image."""
    first = place // 8
    words = array("Q", range(first, first + length // 8 + 2))
    mark = stamp << 32 | 0xA5 << 56  # so that a device does not end with a zero
    text = array("Q", [word | mark for word in words]).tobytes()
    return text[place % 8 :][:length]


def make_parted(path: Path) -> Layout:
    """Make a disk with an ext4 of 1 KiB blocks on its first partition, and a second partition."""
    content = bytearray(numbered(0, PARTED_SIZE, 1))
    content[TABLE.begin : TABLE.end] = master_boot_record(FIRST, SECOND)
    filesystem, data = _ext4(path, 1024, 1 << 20)
    content[FIRST.begin + BOOT_BLOCK : FIRST.begin + len(filesystem)] = filesystem[BOOT_BLOCK:]
    path.write_bytes(content)
    return Layout(Range(0, len(filesystem)).moved(FIRST.begin), data.moved(FIRST.begin))


def make_plain(path: Path) -> Layout:
    """Make an ext4 of 4 KiB blocks, smaller than its device."""
    content = bytearray(numbered(0, PLAIN_SIZE, 2))
    filesystem, data = _ext4(path, 4096, 2 << 20)
    content[BOOT_BLOCK : len(filesystem)] = filesystem[BOOT_BLOCK:]
    path.write_bytes(content)
    return Layout(Range(0, len(filesystem)), data)


def make_raw(path: Path) -> None:
    path.write_bytes(numbered(0, RAW_SIZE, 3))


def master_boot_record(*partitions: Range) -> bytes:
    """Its table and its end."""
    entries = [
        struct.pack(
            "<B3sB3sII",
            0,
            b"\xfe\xff\xff",
            0x83,
            b"\xfe\xff\xff",
            part.begin // SECTOR,
            len(part) // SECTOR,
        )
        for part in partitions
    ]
    return b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def _ext4(path: Path, block: int, size: int) -> tuple[bytes, Range]:
    """Make a filesystem with the file ``data``, and return the location of that file."""
    image, source = path.with_suffix(".fs"), path.with_suffix(".data")
    source.write_bytes(numbered(0, FILE_SIZE, 4))
    tool("mkfs.ext4", "-q", "-F", "-b", str(block), "-O", "^has_journal", image, f"{size >> 10}K")
    for name in ("first", "data"):  # what begins the filesystem has metadata in between
        tool("debugfs", "-w", "-R", f"write {source} {name}", image)
    blocks = [int(word) for word in tool("debugfs", "-R", "blocks data", image).split()]
    if blocks != [*range(blocks[0], blocks[0] + FILE_SIZE // block)]:
        raise RuntimeError(f"debugfs has scattered a file: {blocks}")
    content = image.read_bytes()
    image.unlink()
    source.unlink()
    return content, Range(0, FILE_SIZE).moved(blocks[0] * block)


def tool(*words: str | Path, statuses: tuple[int, ...] = (0,)) -> str:
    """Return the output of a command.

    Raises:
        RuntimeError: it ends with another status than one of ``statuses``.
    """
    environment = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=scaled(60), env=environment
    )
    if done.returncode not in statuses:
        raise RuntimeError(f"{words}: status {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout
