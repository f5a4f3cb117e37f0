"""Each byte of a disk has one writer: the nodes, or the engine of its filesystem."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.driver.bdev import BlockDevice, Use
from loopfs.driver.loop import LoopDevice
from loopfs.driver.pages import CHANGES, nodes_of, seen_by
from loopfs.driver.partition import Found
from loopfs.errors import DriverError
from loopfs.uapi import block, loop
from tests.driver.fakes import FakeCaller, bind, new_device

SECTOR = 512
SECTORS = 64  # on the disk
PARTITIONS = {1: (8, 24), 2: (40, 16)}  # the first sector and how many


def parted() -> LoopDevice:
    device = new_device()
    bind(device, sizelimit=SECTORS * SECTOR)
    for number, (start, size) in PARTITIONS.items():
        device.partitions.add(Found(number, start * SECTOR, size * SECTOR))
    return device


def devices(disk: LoopDevice) -> list[BlockDevice]:
    return [disk, *disk.partitions.values()]


def bytes_of(device: BlockDevice) -> set[int]:
    return set(range(device.start, device.start + device.capacity))


def may_write(device: BlockDevice, start: int, length: int) -> bool:
    return refusal(lambda: device.check_may_write(start, length)) is None


def refusal(call: Callable[[], object]) -> int | None:
    try:
        call()
    except DriverError as problem:
        return problem.code
    return None


sectors = st.integers(0, SECTORS - 1)


@given(
    mounts=st.lists(st.tuples(st.integers(0, 2), sectors, sectors, st.booleans()), max_size=8),
    writer=st.integers(0, 2),
    start=sectors,
    length=st.integers(1, SECTORS),
)
def test_a_model(
    mounts: list[tuple[int, int, int, bool]], writer: int, start: int, length: int
) -> None:
    """The driver, against a set of the bytes that are in use."""
    disk = parted()
    owners: dict[Use, set[int]] = {}
    for which, first, last, leave in mounts:
        device = devices(disk)[which]
        span = min(first, last) * SECTOR, (max(first, last) + 1) * SECTOR
        wanted = set(range(device.start + span[0], device.start + span[1]))
        taken = set().union(*owners.values())
        if taken & wanted:
            assert refusal(partial(device.mounted, *span)) == errno.EBUSY
            continue
        use = device.mounted(*span)
        owners[use] = wanted
        if leave:
            device.unmounted(use)
            del owners[use]
    device = devices(disk)[writer]
    free = set[int]()
    for position, size in device.unused(start * SECTOR, length * SECTOR):
        assert may_write(device, position, size)
        free.update(range(device.start + position, device.start + position + size))
    wanted = set(range(device.start + start * SECTOR, device.start + (start + length) * SECTOR))
    taken = set().union(*owners.values())
    assert may_write(device, start * SECTOR, length * SECTOR) == (not taken & wanted)
    assert free == wanted - taken


@given(one=st.integers(0, 2), other=st.integers(0, 2), start=sectors, length=sectors)
def test_the_same_bytes_on_another_device(one: int, other: int, start: int, length: int) -> None:
    disk = parted()
    device, second = devices(disk)[one], devices(disk)[other]
    low = device.start + start * SECTOR
    both = set(range(low, low + length * SECTOR)) & bytes_of(second)
    seen = seen_by(device, start * SECTOR, length * SECTOR, second)
    if seen is None:
        assert not both
    else:
        assert both == set(
            range(second.start + seen.start, second.start + seen.start + seen.length)
        )


def test_the_boot_block_of_a_mounted_partition() -> None:
    disk = parted()
    part = disk.partitions[1]
    use = part.mounted(1024, 20 * SECTOR)
    assert may_write(part, 0, 1024)
    assert not may_write(part, 0, 1025)
    assert may_write(part, 20 * SECTOR, 4 * SECTOR)  # beyond the filesystem's end
    assert may_write(disk, 0, 8 * SECTOR + 1024)
    assert not may_write(disk, 8 * SECTOR + 1024, 1)
    assert may_write(disk.partitions[2], 0, 16 * SECTOR)
    assert part.open(write=True)  # opening stays possible
    part.unmounted(use)
    assert may_write(part, 0, part.capacity)


@pytest.mark.parametrize("cmd", [block.BLKZEROOUT, block.BLKDISCARD])
def test_ranges_in_use_are_neither_zeroed_nor_discarded(cmd: int) -> None:
    from loopfs.driver.block import discard_range, zero_range

    disk = parted()
    opener, caller = disk.open(write=True), FakeCaller()
    disk.partitions[1].mounted(1024, 24 * SECTOR)
    check = zero_range if cmd == block.BLKZEROOUT else discard_range
    arg = caller.put(block.RANGE.pack(0, 10 * SECTOR))
    assert check(disk, opener, caller, arg) == (0, 10 * SECTOR)
    arg = caller.put(block.RANGE.pack(0, 11 * SECTOR))
    assert refusal(partial(check, disk, opener, caller, arg)) == errno.EBUSY


def test_those_that_have_pages_are_open() -> None:
    disk = parted()
    for opener in list(disk.openers):
        disk.release(opener)
    assert nodes_of(disk) == []
    part = disk.partitions[2].open(write=False)
    whole = disk.open(write=False)
    assert nodes_of(disk) == [disk, disk.partitions[2]]
    disk.release(part)
    disk.release(whole)


def test_commands_of_both_words() -> None:
    assert {block.BLKBSZSET, block.BLKBSZSET - block.WORDS_APART} <= CHANGES
    assert {loop.LOOP_SET_STATUS64, loop.LOOP_CLR_FD, block.BLKRRPART} <= CHANGES
    assert not {loop.LOOP_GET_STATUS64, block.BLKGETSIZE64} & CHANGES
