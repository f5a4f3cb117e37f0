"""Writes of an engine reach the image where its filesystem uses the device."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopfs.driver.bdev import BlockDevice
from loopfs.filesystems.engine_device import EngineDevice
from loopfs.filesystems.image_lock import ImageLock
from loopfs.fuse.session import Request
from tests.filesystems.conftest import SIZE, Mounted

START, END = 1024, 65536  # of the filesystem, on the device, which begins a sector into the image
SECTOR = 512


def device_of(mounted: Mounted) -> BlockDevice:
    node = mounted.filesystem.nodes.by_name[b"loop8"]
    assert node.device is not None
    return node.device


def engine_device(mounted: Mounted, *, read_only: bool = False) -> EngineDevice:
    node = mounted.filesystem.nodes.by_name[b"loop8"]
    device = device_of(mounted)
    use = None if read_only else device.mounted(START, END)
    lock = ImageLock.take(device, 0, device.capacity, write=not read_only)
    return EngineDevice(mounted.filesystem, node, use, lock)


def let_go(mounted: Mounted, served: EngineDevice) -> None:
    served.lock.release()
    for use in device_of(mounted).disk.uses:
        device_of(mounted).unmounted(use)


@pytest.fixture
def request_() -> Request:
    return Request(-1, 1, 2, os.getpid())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    offset=st.integers(0, SIZE - SECTOR - 1),
    length=st.integers(1, SIZE),
    byte=st.binary(min_size=1, max_size=1),
)
def test_only_what_the_filesystem_uses_is_written(
    mounted: Mounted,
    bound: int,
    image: Path,
    request_: Request,
    offset: int,
    length: int,
    byte: bytes,
) -> None:
    length = min(length, SIZE - SECTOR - offset)
    served = engine_device(mounted)
    expected = bytearray(image.read_bytes())
    low, high = max(offset, START), min(offset + length, END)
    if low < high:
        expected[SECTOR + low : SECTOR + high] = byte * (high - low)
    assert served.write(request_, 0, offset, memoryview(byte * length), 0) == length
    assert image.read_bytes() == expected
    let_go(mounted, served)


def test_an_engine_that_mounts_for_reading_writes_nothing(
    mounted: Mounted, bound: int, image: Path, request_: Request
) -> None:
    before = image.read_bytes()
    served = engine_device(mounted, read_only=True)
    with pytest.raises(OSError, match="permitted") as problem:
        served.write(request_, 0, 4096, memoryview(b"x" * 512), 0)
    assert problem.value.errno == errno.EPERM
    assert image.read_bytes() == before


def test_the_node_writes_the_rest(mounted: Mounted, bound: int, image: Path) -> None:
    use = device_of(mounted).mounted(START, END)
    assert mounted.write(bound, 0, b"b" * START) == START
    assert mounted.write(bound, START - SECTOR, b"b" * (2 * SECTOR)) == -errno.EBUSY
    assert mounted.write(bound, END, b"e" * SECTOR) == SECTOR
    data = image.read_bytes()[SECTOR:]
    assert (data[:START], data[END : END + SECTOR]) == (b"b" * START, b"e" * SECTOR)
    device_of(mounted).unmounted(use)
    assert mounted.write(bound, START, b"n" * SECTOR) == SECTOR


# --- a part that is changed whenever it is written -------------------------------------------

PART = slice(2048, 3072)
WRITES = st.lists(st.tuples(st.integers(START, 4096), st.binary(min_size=1, max_size=3000)))


def stamped(data: bytes) -> bytes:
    return b"stamp" + data[5:]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(before=WRITES, after=WRITES)
def test_a_part_is_changed_whenever_it_is_written(
    mounted: Mounted,
    bound: int,
    image: Path,
    request_: Request,
    before: list[tuple[int, bytes]],
    after: list[tuple[int, bytes]],
) -> None:
    served = engine_device(mounted)
    expected = bytearray(image.read_bytes()[SECTOR:])
    for writes in (before, after):
        for offset, data in writes:
            assert served.write(request_, 0, offset, memoryview(data), 0) == len(data)
            expected[offset : offset + len(data)] = data
            if writes is after:
                expected[PART] = stamped(bytes(expected[PART]))
        if writes is before:
            served.rewrite(PART.start, PART.stop - PART.start, stamped)
            expected[PART] = stamped(bytes(expected[PART]))
        assert image.read_bytes()[SECTOR:] == expected
    assert served.contents(PART.start, 5) == b"stamp"
    let_go(mounted, served)


def test_what_is_served_for_reading_is_not_changed(mounted: Mounted, bound: int) -> None:
    served = engine_device(mounted, read_only=True)
    with pytest.raises(OSError, match="Read-only"):
        served.rewrite(PART.start, 1024, stamped)
    let_go(mounted, served)


def test_a_write_that_is_exempt(mounted: Mounted, bound: int, image: Path) -> None:
    """It is asked for what the use refuses, and of nothing else."""
    served = engine_device(mounted)
    asked: list[tuple[int, bytes]] = []

    def write(offset: int, data: bytes) -> bool:
        asked.append((offset, data))
        return data == b"y" * SECTOR

    served.exempt(write)
    assert mounted.write(bound, 0, b"b" * START) == START
    assert mounted.write(bound, 2048, b"y" * SECTOR) == SECTOR
    assert mounted.write(bound, 2048, b"n" * SECTOR) == -errno.EBUSY
    assert asked == [(2048, b"y" * SECTOR), (2048, b"n" * SECTOR)]
    let_go(mounted, served)
