"""What an engine writes lands in the image as far as its filesystem uses the device."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopfs.driver.bdev import BlockDevice
from loopfs.filesystems.engine_device import EngineDevice
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
    use = None if read_only else device_of(mounted).mounted(START, END)
    return EngineDevice(mounted.filesystem, node, use)


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
    for use in device_of(mounted).disk.uses:
        device_of(mounted).unmounted(use)


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
