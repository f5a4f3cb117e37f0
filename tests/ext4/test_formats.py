"""The pure parts: checksums, hashes, bitmaps, runs; against e2fsprogs where it has them."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.ext4 import acl, extents_status, groups
from loopfs.ext4.crc import by_table, crc16, crc32c
from loopfs.ext4.hash import HALF_MD4, LEGACY, TEA, dirhash
from loopfs.ext4.inode import Extent

SEED = "01020304-0506-0708-090a-0b0c0d0e0f10"
WORDS = (0x04030201, 0x08070605, 0x0C0B0A09, 0x100F0E0D)


def test_crc_check_values() -> None:
    """Those of the catalogue of parametrised CRC algorithms (CRC-32/ISCSI, CRC-16/MODBUS)."""
    assert crc32c(0xFFFFFFFF, b"123456789") ^ 0xFFFFFFFF == 0xE3069283
    assert crc16(0xFFFF, b"123456789") == 0x4B37


@given(st.binary(max_size=300), st.integers(0, 0xFFFFFFFF))
def test_crc_by_table_is_the_same(data: bytes, seed: int) -> None:
    assert by_table()(seed, data) == crc32c(seed, data)


@pytest.mark.parametrize(
    ("version", "word"), [(LEGACY, "legacy"), (HALF_MD4, "half_md4"), (TEA, "tea")]
)
def test_hash_is_that_of_debugfs(version: int, word: str) -> None:
    for name in ("a", "name", "12345678901234567890123456789012", "x" * 33, "long " * 20):
        request = f'dx_hash -h {word} -s {SEED} "{name}"'
        done = subprocess.run(
            ["debugfs", "-R", request], capture_output=True, text=True, timeout=30, check=True
        )
        wanted = int(done.stdout.split(" is ")[1].split()[0], 16)
        assert dirhash(name.encode(), version, WORDS, unsigned=False) == wanted, name


@given(st.binary(min_size=1, max_size=64), st.data())
def test_bitmaps_go_there_and_back(bits: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(bits) * 8))
    flags = groups.expand(bits, count)
    assert list(flags) == [bits[n // 8] >> n % 8 & 1 for n in range(count)]
    packed = groups.pack(flags, len(bits))
    assert groups.expand(packed, count) == flags
    assert all(packed[n // 8] >> n % 8 & 1 for n in range(count, len(bits) * 8))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60), st.integers(1, 9)), max_size=30))
def test_runs_are_a_mapping(steps: list[tuple[bool, int, int]]) -> None:
    extents: list[Extent] = []
    model: dict[int, int] = {}
    for add, block, count in steps:
        span = range(block, block + count)
        if add and not any(one in model for one in span):
            extents_status.insert(extents, block, count, 1000 + block, False)
            model |= {one: 1000 + one for one in span}
        elif not add:
            gone = extents_status.remove(extents, block, block + count)
            wanted = [model.pop(one) for one in span if one in model]
            assert [place + n for place, length in gone for n in range(length)] == wanted
    found = {
        first + n: place + n
        for first, length, place in extents_status.pieces(extents, 0, 100)
        if place is not None
        for n in range(length)
    }
    assert found == model


def test_an_access_control_list_and_a_mode() -> None:
    rows = [(1, 7, -1), (2, 6, 1000), (4, 5, -1), (16, 7, -1), (32, 4, -1)]
    words = (b"".join(n.to_bytes(2, "little") for n in row[:2]) for row in rows)
    whose = (row[2].to_bytes(4, "little", signed=True) for row in rows)
    value = b"\2\0\0\0" + b"".join(a + b for a, b in zip(words, whose, strict=True))
    assert acl.from_disk(acl.to_disk(value)) == value
    changed, bits = acl.with_mode(value, 0o640, masked=True)
    assert bits == 0o640
    assert changed is not None
    assert acl.with_mode(value[: 4 + 8], 0o700, masked=False) == (None, 0o700)
