"""The label in an ext superblock, against e2fsprogs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopfs.engines.ext_superblock import (
    LABEL_MAX,
    SIZE,
    START,
    crc32c,
    is_copy,
    is_older,
    label,
    label_by_write,
    with_label,
)
from tests.support.patience import scaled

FEATURES = ["metadata_csum", "^metadata_csum", "metadata_csum,metadata_csum_seed", "none"]
CHECKSUM = slice(0x3FC, 0x400)


def superblock(image: Path) -> bytes:
    with image.open("rb") as file:
        file.seek(START)
        return file.read(SIZE)


def tool(*words: str | bytes | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=scaled(20))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    return path


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("name", [b"", b"NEW", b"sixteen bytes!!!", b"\xff\xfe"])
def test_e2fsprogs_accepts_it(image: Path, features: str, name: bytes) -> None:
    tool("mkfs.ext4", "-q", "-F", "-L", "before", "-O", features, image, "4M")
    before = superblock(image)
    assert label(before) == b"before"
    after = with_label(before, name)
    with image.open("r+b") as file:
        file.seek(START)
        file.write(after)
    assert label(after) == label(superblock(image)) == name
    tool("e2fsck", "-f", "-n", image)
    # What tune2fs would have written, but for the time of it.
    tool("tune2fs", "-L", b"x", image)
    tool("tune2fs", "-L", name, image)
    theirs = superblock(image)
    assert with_label(theirs, name) == theirs


@pytest.mark.parametrize(
    ("data", "crc"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0)],
    ids=["check value", "zeroes", "ones", "nothing"],
)
def test_crc32c(data: bytes, crc: int) -> None:
    """RFC 3720, B.4, where it is inverted at the end."""
    assert crc32c(data) ^ 0xFFFFFFFF == crc


NAMES = st.binary(max_size=LABEL_MAX)


@given(st.binary(min_size=SIZE, max_size=SIZE), NAMES, st.booleans())
def test_nothing_else_changes(data: bytes, name: bytes, has_checksum: bool) -> None:
    before = bytearray(data)
    before[0x38:0x3A] = b"\x53\xef"
    before[0x65] = before[0x65] & ~4 | 4 * has_checksum
    after = with_label(bytes(before), name)
    assert len(after) == SIZE
    assert label(after) == name.partition(b"\0")[0]
    before[0x78 : 0x78 + LABEL_MAX] = name.ljust(LABEL_MAX, b"\0")
    if has_checksum:
        before[CHECKSUM] = crc32c(bytes(before[: CHECKSUM.start])).to_bytes(4, "little")
    assert after == bytes(before)
    assert with_label(after, name) == after


@given(st.binary(max_size=SIZE + 1).filter(lambda data: data[0x38:0x3A] != b"\x53\xef"))
def test_what_is_no_superblock(data: bytes) -> None:
    for look in (label, lambda data: with_label(data, b"name")):
        with pytest.raises(ValueError, match="not a superblock"):
            look(data)


# --- what e2label writes -----------------------------------------------------------------


@pytest.fixture
def made(image: Path) -> bytes:
    tool("mkfs.ext4", "-q", "-F", "-L", "before", image, "4M")
    return superblock(image)


def test_a_label_that_comes_in_parts(made: bytes) -> None:
    after = with_label(made, b"NEW")
    assert label_by_write(made, 0, after) == b"NEW"
    assert label_by_write(made, 0x78, b"NEW\0\0\0") == b"NEW", "the checksum follows"
    assert label_by_write(after, CHECKSUM.start, after[CHECKSUM]) == b"NEW", "and is there already"
    assert label_by_write(made, CHECKSUM.start, after[CHECKSUM]) is None
    assert label_by_write(made, 0x78, b"NEW") == b"NEWore"


@given(place=st.integers(0, SIZE - 1), bits=st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_else_changes_is_no_label(made: bytes, place: int, bits: int) -> None:
    data = bytes([made[place] ^ bits])
    if 0x78 <= place < 0x78 + LABEL_MAX:
        changed = made[:place] + data + made[place + 1 :]
        padded = label(changed).ljust(LABEL_MAX, b"\0") == changed[0x78 : 0x78 + LABEL_MAX]
        assert label_by_write(made, place, data) == (label(changed) if padded else None)
    else:
        assert label_by_write(made, place, data) is None


def test_copies(made: bytes) -> None:
    copy = bytearray(with_label(made, b"NEW"))
    copy[0x5A] = 3  # s_block_group_nr
    there = bytearray(made)
    there[0x5A] = 3
    there[0x0C] ^= 1  # s_free_blocks_count, of another time
    assert is_copy(made, bytes(copy))
    assert is_older(bytes(there), bytes(copy))
    assert not is_older(made, bytes(copy)), "of another block group"
    assert not is_older(bytes(SIZE), bytes(copy)), "a block of something else"
    assert not is_copy(made, bytes(copy)[:-1])
    copy[0x5C] ^= 4  # has_journal
    assert not is_copy(made, bytes(copy))
