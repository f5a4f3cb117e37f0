"""Partitions of a disk: block/partitions/core.c, and operations that find the disk busy."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from loopfs.driver import sysfs
from loopfs.driver.event import ReadPartitions, uevent
from loopfs.driver.instance import Instance
from loopfs.driver.loop import LoopDevice, State
from loopfs.driver.partition import Found, Partition
from loopfs.errors import DriverError
from loopfs.uapi import block
from loopfs.uapi.loop import LO_FLAGS_PARTSCAN, LoopInfo64
from tests.driver.fakes import (
    MIB,
    FakeBacking,
    FakeCaller,
    bind,
    new_device,
    new_instance,
    state_of,
)

K = 1024


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(DriverError) as problem:
        call()
    return problem.value.code


def parted(*found: Found, flags: int = 0) -> LoopDevice:
    device = new_device()
    bind(device, flags=flags)
    for each in found:
        device.partitions.add(each)
    return device


# --- made by hand (BLKPG) ------------------------------------------------------------------------


def test_a_partition_is_a_part_of_its_disk() -> None:
    device = parted(Found(1, 64 * K, 16 * K))
    part = device.partitions[1]
    assert (part.name, part.capacity, part.start) == (f"{device.name}p1", 16 * K, 64 * K)
    assert part.major == 259
    assert part.extent(0, 512) == (device.backing, 64 * K, 512)
    assert part.extent(15 * K, 4096) == (device.backing, 79 * K, 1024)
    assert part.extent(16 * K, 512) is None


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (Found(2, 72 * K, 8 * K), errno.EBUSY),
        (Found(2, 0, 64 * K + 512), errno.EBUSY),
        (Found(1, 0, 512), errno.EBUSY),
        (Found(2, MIB, 512), errno.EINVAL),
        (Found(2, MIB - 512, 1024), errno.EINVAL),
        (Found(256, 0, 512), errno.EINVAL),
    ],
)
def test_partitions_that_cannot_be_added(found: Found, code: int) -> None:
    device = parted(Found(1, 64 * K, 16 * K))
    assert refusal(lambda: device.partitions.add(found)) == code
    assert list(device.partitions) == [1]


def test_their_order_is_that_of_their_numbers() -> None:
    device = parted(*(Found(number, number * 16 * K, 16 * K) for number in (3, 1, 2)))
    device.partitions.delete(1)
    device.partitions.add(Found(1, 16 * K, 16 * K))
    assert [part.number for part in device.partitions.in_order()] == [1, 2, 3]
    parts = [name for name in sysfs.disk(device) if name.startswith(f"{device.name}p")]
    assert parts == [f"{device.name}p{number}" for number in (1, 2, 3)]


def test_resizing() -> None:
    device = parted(Found(1, 0, 16 * K), Found(2, 32 * K, 16 * K))
    device.partitions.resize(Found(1, 0, 32 * K))
    assert device.partitions[1].capacity == 32 * K
    assert refusal(lambda: device.partitions.resize(Found(1, 0, 33 * K))) == errno.EBUSY
    assert refusal(lambda: device.partitions.resize(Found(1, 512, K))) == errno.EINVAL
    assert refusal(lambda: device.partitions.resize(Found(3, 0, K))) == errno.ENXIO


def test_deleting() -> None:
    device = parted(Found(1, 0, 16 * K))
    part = device.partitions[1]
    opener = part.open(write=False)
    assert refusal(lambda: device.partitions.delete(1)) == errno.EBUSY
    device.release(opener)
    device.partitions.delete(1)
    assert refusal(lambda: device.partitions.delete(1)) == errno.ENXIO
    assert refusal(lambda: part.open(write=False)) == errno.ENXIO


def test_blkpg() -> None:
    device, caller = new_device(), FakeCaller()
    opener, _ = bind(device)
    address = caller.put(block.BLKPG_PARTITION.pack(4096, 8192, 7), 64)
    request = block.BLKPG_ARG[8].pack(block.BLKPG_ADD_PARTITION, 0, 152, address)
    weak = FakeCaller(capable=False)
    assert refusal(lambda: weak.call(device, opener, block.BLKPG, request)) == errno.EACCES
    caller.call(device, opener, block.BLKPG, request)
    assert device.partitions[7].start == 4096


# --- scanned ------------------------------------------------------------


def scans(instance: Instance) -> list[LoopDevice]:
    """The disks whose tables are to be read, since the last call."""
    return [event.device for event in instance.take_events() if isinstance(event, ReadPartitions)]


def test_a_scan_is_asked_for_with_the_flag_only() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, _ = bind(device)
    assert not scans(instance)
    assert refusal(lambda: device.scan_partitions(opener)) == errno.EINVAL
    device.set_status(LoopInfo64(flags=LO_FLAGS_PARTSCAN))
    assert scans(instance) == [device]
    device.set_status(LoopInfo64(flags=LO_FLAGS_PARTSCAN))
    assert not scans(instance), "it was set already"
    device.scan_partitions(opener)
    assert scans(instance) == [device]


def test_what_a_scan_finds() -> None:
    device = parted(Found(9, 0, 512), flags=LO_FLAGS_PARTSCAN)
    opener = next(iter(device.openers))
    device.scan_partitions(opener)
    assert not device.partitions
    table = [
        Found(1, 0, 2 * MIB),  # cut at the end
        Found(2, 64 * K, 1024),  # an extended one,
        Found(5, 64 * K, 4 * K),  # and a logical one in it
        Found(3, MIB, 512),  # beyond the end
        Found(300, 0, 512),
    ]
    device.partitions.scanned(table)
    assert {n: p.capacity for n, p in device.partitions.items()} == {1: MIB, 2: 1024, 5: 4 * K}


def test_names_come_and_go_with_uevents() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, _ = bind(device, flags=LO_FLAGS_PARTSCAN)
    instance.take_events()
    device.partitions.scanned([Found(1, 0, K, "root")])
    part = device.partitions[1]
    assert part.label == "root"
    assert instance.take_events() == [uevent("change", device), uevent("add", part)]
    removal = uevent("remove", part)
    device.clr_fd()
    device.release(opener)
    assert removal in instance.take_events()
    assert not device.partitions


# --- a partition keeps its disk busy ------------------------------------------------------------


def test_an_open_partition_is_an_opener_of_the_disk() -> None:
    device = parted(Found(1, 0, K), flags=LO_FLAGS_PARTSCAN)
    disk_opener = next(iter(device.openers))
    opener = device.partitions[1].open(write=True)
    assert refusal(lambda: device.scan_partitions(disk_opener)) == errno.EBUSY
    device.clr_fd()
    device.release(disk_opener)
    assert state_of(device) is State.Lo_bound
    device.release(opener)
    assert state_of(device) is State.Lo_unbound


def test_claims_exclude_disk_and_partitions() -> None:
    device = parted(Found(1, 0, K), Found(2, 2 * K, K))
    one, two = device.partitions[1], device.partitions[2]
    claim = one.open(write=True, exclusive=True)
    assert refusal(lambda: one.open(write=True, exclusive=True)) == errno.EBUSY
    assert refusal(lambda: device.open(write=True, exclusive=True)) == errno.EBUSY
    two.open(write=True, exclusive=True)
    device.release(claim)
    assert refusal(lambda: device.open(write=True, exclusive=True)) == errno.EBUSY


def test_a_claimed_disk_has_no_claimed_partitions() -> None:
    device = parted(Found(1, 0, K))
    device.open(write=True, exclusive=True)
    assert refusal(lambda: device.partitions[1].open(write=True, exclusive=True)) == errno.EBUSY
    device.partitions[1].open(write=True)


def test_read_only_is_inherited_not_handed_up() -> None:
    device = parted(Found(1, 0, K), Found(2, 2 * K, K))
    one, two = device.partitions[1], device.partitions[2]
    one.marked_read_only = True
    assert (one.read_only, two.read_only, device.read_only) == (True, False, False)
    device.marked_read_only = True
    assert two.read_only


def test_a_partition_beyond_a_shrunken_disk_has_no_data() -> None:
    device = parted(Found(1, 512 * K, 512 * K))
    part = device.partitions[1]
    assert isinstance(device.backing, FakeBacking)
    device.backing.length = 768 * K
    device.set_capacity()
    assert part.extent(0, 512) is not None
    assert refusal(lambda: part.extent(256 * K, 512)) == errno.EIO


def test_numbers_are_used_again() -> None:
    device = parted(Found(1, 0, K))
    minor = device.partitions[1].minor
    device.partitions.delete(1)
    device.partitions.add(Found(2, 0, K))
    assert device.partitions[2].minor == minor
    assert isinstance(device.partitions[2], Partition)
