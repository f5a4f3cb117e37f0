"""Cases without an image for comparison: metadata partitions, defect packets, hostile volumes."""

from __future__ import annotations

import struct
from collections import Counter

import pytest

from loopfs.fuse.tree import Caller
from loopfs.nls import charset
from loopfs.udf import cs0, tag, times
from loopfs.udf.partition import Metadata, Physical, Run, Sparable, Virtual
from tests.udf import hostile
from tests.udf.test_as_kernel import image_of, mounted

COUNT = 25
BLOCK = 512
NOBODY = Caller(0, 0, 0)


@pytest.mark.timeout(60)
def test_wrong_structures() -> None:
    """``python3 -m tests.udf.hostile`` tries more."""
    seen = sum((hostile.one(seed) for seed in range(COUNT)), Counter())
    assert seen["looked at"] > COUNT
    assert {word.partition(" ")[0] for word in seen} <= {"listed", "looked", "mount", "errno"}


def test_a_partition_with_defect_packets() -> None:
    partition = Sparable(Physical(1000, 500), 32, {64: 5000})
    assert partition.run(0) == Run(1000, 32)
    assert partition.run(70) == Run(5006, 26)
    assert partition.run(97) == Run(1097, 31)
    with pytest.raises(OSError, match="Input/output"):
        partition.run(500)


def test_a_virtual_partition() -> None:
    partition = Virtual(Physical(100, 50), [7, 49, 0xFFFFFFFF])
    assert partition.run(1) == Run(149, 1)
    for block in (2, 3):
        with pytest.raises(OSError, match="Input/output"):
            partition.run(block)


def test_a_metadata_partition() -> None:
    files: list[list[tuple[int | None, int]]] = [[(10, 4), (None, 2)], [(30, 4), (40, 4)]]
    partition = Metadata(Physical(100, 50), files, 8)
    assert partition.run(1) == Run(111, 3)
    assert partition.run(4) == Run(140, 4)
    assert partition.run(7) == Run(143, 1)
    with pytest.raises(OSError, match="Input/output"):
        partition.run(8)


def descriptor(image: bytearray, ident: int) -> tuple[int, int]:
    """Where the first descriptor of a kind is, in bytes, and the block that its tag tells."""
    for at in range(0, len(image), BLOCK):
        (location,) = struct.unpack_from("<I", image, at + 12)
        if (
            any(image[at : at + 2])
            and tag.identify(bytes(image[at : at + BLOCK]), location) == ident
        ):
            return at, location
    raise AssertionError(ident)


def with_metadata(*, damaged: bool) -> bytearray:
    """The root's entry and the file set are in a metadata partition, of which block 0 is the file
    set's; the files are where they were."""
    image = bytearray(image_of("hd-2.01"))
    at, _ = descriptor(image, tag.PARTITION)
    (root,) = struct.unpack_from("<I", image, at + 188)
    set_at, set_location = descriptor(image, tag.FILE_SET)
    file = 15000  # a block of nobody's
    for copy in (file, file + 1):
        entry = bytearray(image[(root + entry_of(image, set_at)) * BLOCK :][:BLOCK])
        entry[27] = 250
        struct.pack_into("<H", entry, 34, 0)
        struct.pack_into("<H", entry, 48, 0)
        struct.pack_into("<Q", entry, 56, 64 * BLOCK)
        lengths = 208 if entry[0] == tag.EXTENDED_FILE_ENTRY & 0xFF else 168
        begin = lengths + 8
        struct.pack_into("<II", entry, lengths, 0, 8)
        struct.pack_into("<II", entry, begin, 64 * BLOCK, set_location)
        raw = hostile.retagged(bytes(entry), copy)
        image[(root + copy) * BLOCK : (root + copy + 1) * BLOCK] = raw
    if damaged:
        image[(root + file) * BLOCK + 20] ^= 1
    # The root's entry and the file set are at other blocks of the partition now.
    old_root = entry_of(image, set_at)
    new_root = old_root - set_location
    where = (root + old_root) * BLOCK
    image[where : where + BLOCK] = hostile.retagged(bytes(image[where : where + BLOCK]), new_root)
    struct.pack_into("<IH", image, set_at + 404, new_root, 1)
    image[set_at : set_at + BLOCK] = hostile.retagged(bytes(image[set_at : set_at + BLOCK]), 0)
    for block in range(len(image) // BLOCK):
        at = block * BLOCK
        if tag.identify(bytes(image[at : at + BLOCK]), block) == tag.LOGICAL:
            struct.pack_into("<IH", image, at + 252, 0, 1)
            struct.pack_into("<II", image, at + 264, 70, 2)
            metadata = b"\2\x40\0\0\0*UDF Metadata Partition".ljust(28, b"\0") + b"\x50\2"
            metadata = metadata.ljust(36, b"\0") + image[at + 442 : at + 446]
            metadata += struct.pack("<III", file, file + 1, 0xFFFFFFFF)
            image[at + 446 : at + 510] = metadata.ljust(64, b"\0")
            struct.pack_into("<H", image, at + 10, BLOCK - 16)
            image[at : at + BLOCK] = hostile.retagged(bytes(image[at : at + BLOCK]), block)
    return image


def entry_of(image: bytearray, file_set: int) -> int:
    """The logical block of the root's entry."""
    (block,) = struct.unpack_from("<I", image, file_set + 404)
    return int(block)


@pytest.mark.parametrize("damaged", [False, True])
def test_metadata_of_a_file_or_its_mirror(damaged: bool) -> None:
    tree = mounted(with_metadata(damaged=damaged))
    assert tree.root().place[0] == 1
    names = [row[1] for row in tree.entries(tree.opendir(NOBODY, tree.root()), 2)]
    assert b"big" in names
    node, _ = tree.lookup(tree.root(), b"big")
    assert tree.read(tree.open(NOBODY, node, 0), 256 * 3, 5) == bytes(range(5))


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"\x08plain", b"plain"),
        (b"\x08\xdcn", "Ün".encode()),
        (b"\x10\x4e\x2d", "\u4e2d".encode()),
        (b"\x10\xd8\x3d\xde\x00", "\U0001f600".encode()),
        (b"\x08a/b.txt", b"a_b#%04X.txt" % tag.crc(b"a/b.txt")),
        (b"\x08a//\0b", b"a_b#%04X" % tag.crc(b"a//\0b")),
        (b"\x08..", b"..#%04X" % tag.crc(b"..")),
        (b"", b""),
        (b"\x09x", None),
        (b"\x10\x4e", None),
    ],
)
def test_names(raw: bytes, name: bytes | None) -> None:
    assert cs0.decode(raw, charset("utf8")) == name


def test_times() -> None:
    stamp = struct.pack("<Hh8B", 0x1000 | 60, 2024, 2, 29, 13, 45, 59, 12, 34, 56)
    assert times.nanoseconds(stamp) == 1709210759 * 10**9 + 123_456_000
    assert times.nanoseconds(b"\x01\x18" + stamp[2:]) == 1709214359 * 10**9 + 123_456_000
    assert times.nanoseconds(stamp[:9] + b"\xff\0\0") == 1709210759 * 10**9


@pytest.mark.parametrize("name", ["hd-2.01", "2048", "sparable"])
def test_free_blocks_of_a_volume_without_a_count(name: str) -> None:
    """They are counted in the bitmap, as where none is told to be free."""
    image, size = image_of(name), hostile.BLOCK_SIZES[name]
    told = mounted(image).statfs()
    assert told.free
    for free in (0, 0xFFFFFFFF):
        changed = bytearray(image)
        for at, location in hostile._tagged(name):
            if changed[at : at + 2] == tag.INTEGRITY.to_bytes(2, "little"):
                struct.pack_into("<I", changed, at + 80, free)
                block = bytes(changed[at : at + size])
                changed[at : at + size] = hostile.retagged(block, location)
        assert mounted(changed).statfs()[:3] == told[:3]
