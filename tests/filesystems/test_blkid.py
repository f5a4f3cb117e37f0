"""Partition tables through libblkid."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopfs.driver.partition import Found
from loopfs.filesystems.blkid import read_table, volume_name

SECTOR = 512
SIZE = 1 << 20
LINUX, EXTENDED = 0x83, 5


def boot_sector(*entries: tuple[int, int, int]) -> bytes:
    """With entries of type, first sector and number of sectors."""
    table = b"".join(struct.pack("<4xB3x2I", *entry) for entry in entries)
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """Two primary partitions and two logical ones, at 4096 bytes from the start."""
    fd = os.open(tmp_path / "disk.img", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, SIZE)
    where = {
        0: boot_sector((LINUX, 8, 100), (EXTENDED, 200, 600), (LINUX, 1000, 500)),
        200: boot_sector((LINUX, 8, 92), (EXTENDED, 100, 200)),
        300: boot_sector((LINUX, 8, 192)),
    }
    for sector, data in where.items():
        os.pwrite(fd, data, 4096 + sector * SECTOR)
    yield fd
    os.close(fd)


def found(number: int, start: int, sectors: int) -> Found:
    return Found(number, start * SECTOR, sectors * SECTOR)


def test_primary_and_logical_partitions(image: int) -> None:
    assert read_table(image, 4096, SIZE - 4096, 512) == [
        found(1, 8, 100),
        found(2, 200, 2),  # room for a boot loader
        found(3, 1000, 500),
        found(5, 208, 92),
        found(6, 308, 192),
    ]


@pytest.mark.parametrize(
    ("name", "kernels"),
    [
        (b"root", b"root"),
        ("café".encode(), b"caf\xe9"),
        ("a\nb\x1b\x7f\x85".encode(), b"a!b!!!"),
        ("€5".encode(), b"\xac5"),  # U+20AC
        ("aĀb".encode(), b"a"),  # U+0100
        ("\U0001f4be".encode(), b"=\xbe"),  # U+D83D U+DCBE
        (b"\xed\xa0\xbd", b"="),  # the first of them alone, as libblkid has it
        (b"Mac\xe9", b"Mac\xe9"),
        (b"", b""),
    ],
)
def test_names_as_the_kernel_has_them(name: bytes, kernels: bytes) -> None:
    assert volume_name(name) == kernels


def test_a_file_without_a_table(image: int) -> None:
    assert read_table(image, 8192, 65536, 512) == []


def test_a_file_that_has_shrunk(image: int) -> None:
    os.truncate(image, 0)
    assert read_table(image, 4096, SIZE - 4096, 512) == []


@pytest.mark.parametrize("seed", range(20))
def test_rubbish_is_no_table_or_a_table(image: int, seed: int) -> None:
    """libblkid lives, and what it says can be used."""
    data = struct.pack("<I", seed) * 128
    os.pwrite(image, data[:510] + b"\x55\xaa", 0)
    for entry in read_table(image, 0, SIZE, 512):
        assert entry.number > 0
        assert entry.start >= 0
