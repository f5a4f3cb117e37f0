"""LOOP_CHANGE_FD, LOOP_SET_CAPACITY, LOOP_SET_DIRECT_IO, LOOP_SET_BLOCK_SIZE, and rights."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from loopfs.driver.event import Invalidate, ReadPartitions, uevent
from loopfs.errors import DriverError
from loopfs.uapi import block, loop
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
    LoopInfo64,
)
from tests.driver.fakes import (
    MIB,
    FakeBacking,
    FakeCaller,
    bind,
    closings,
    new_device,
    new_instance,
)


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(DriverError) as problem:
        call()
    return problem.value.code


# --- LOOP_CHANGE_FD ----------------------------------------------------------------------------


def test_a_read_only_device_continues_with_another_file() -> None:
    instance = new_instance()
    device = new_device(instance)
    _, old = bind(device, flags=LO_FLAGS_READ_ONLY, offset=512)
    sequence = device.diskseq
    instance.take_events()
    new = FakeBacking()
    device.change_fd(new)
    assert device.extent(0, 512) == (new, 512, 512)
    assert closings(old, new) == [1, 0]
    assert device.diskseq > sequence
    assert instance.take_events() == [Invalidate(device), uevent("change", device)]


@pytest.mark.parametrize(
    ("flags", "file", "code"),
    [
        (0, FakeBacking(), errno.EINVAL),
        (LO_FLAGS_READ_ONLY, FakeBacking(MIB + 512), errno.EINVAL),
        (LO_FLAGS_READ_ONLY, FakeBacking(supported=False), errno.EINVAL),
        (LO_FLAGS_READ_ONLY, FakeBacking(transfers=False), errno.EINVAL),
    ],
    ids=["writable", "larger", "no file", "directory"],
)
def test_changes_of_the_file_that_are_refused(flags: int, file: FakeBacking, code: int) -> None:
    device = new_device()
    _, old = bind(device, flags=flags)
    assert refusal(lambda: device.change_fd(file)) == code
    assert device.backing is old
    assert closings(old, file) == [0, 0]


def test_an_unbound_device_has_no_file_to_change() -> None:
    assert refusal(lambda: new_device().change_fd(FakeBacking())) == errno.ENXIO


def test_a_refused_file_is_closed() -> None:
    device, caller, file = new_device(), FakeCaller(), FakeBacking()
    opener = device.open(write=True)
    fd = caller.open_file(file)
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_CHANGE_FD, fd)) == errno.ENXIO
    assert closings(file) == [1]


def test_partitions_are_looked_for_on_the_new_file() -> None:
    instance = new_instance()
    device = new_device(instance)
    bind(device, flags=LO_FLAGS_READ_ONLY | LO_FLAGS_PARTSCAN)
    instance.take_events()
    device.change_fd(FakeBacking())
    assert any(isinstance(event, ReadPartitions) for event in instance.take_events())


# --- LOOP_SET_CAPACITY ----------------------------------------------------------------------------


def test_the_size_is_seen_when_it_is_asked_for() -> None:
    instance = new_instance()
    device = new_device(instance)
    _, backing = bind(device, offset=1024)
    instance.take_events()
    backing.length = 2 * MIB + 100
    assert device.capacity == MIB - 1024
    device.set_capacity()
    assert device.capacity == 2 * MIB - 1024
    resized = uevent("change", device, "RESIZE=1")
    assert instance.take_events() == [Invalidate(device), resized]
    backing.length = 0
    device.set_capacity()
    assert instance.take_events() == [Invalidate(device), uevent("change", device)]
    assert refusal(new_device().set_capacity) == errno.ENXIO


# --- LOOP_SET_DIRECT_IO ---------------------------------------------------------------------------


def test_direct_io_is_a_flag() -> None:
    device = new_device()
    bind(device, flags=LO_FLAGS_AUTOCLEAR)
    device.set_direct_io(True)
    assert device.flags == LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO
    device.set_direct_io(False)
    assert device.flags == LO_FLAGS_AUTOCLEAR
    assert refusal(lambda: new_device().set_direct_io(False)) == errno.ENXIO


@pytest.mark.parametrize(
    ("dio", "offset"), [(0, 0), (4096, 0), (512, 100)], ids=["none", "larger blocks", "offset"]
)
def test_direct_io_that_the_file_does_not_take(dio: int, offset: int) -> None:
    device = new_device()
    bind(device, FakeBacking(dio=dio), offset=offset, block_size=512, flags=LO_FLAGS_DIRECT_IO)
    assert device.flags == 0, "asked for by LOOP_CONFIGURE, it is passed over"
    assert refusal(lambda: device.set_direct_io(True)) == errno.EINVAL


def test_direct_io_makes_blocks_as_large_as_the_file_needs() -> None:
    device = new_device()
    bind(device, FakeBacking(dio=4096), flags=LO_FLAGS_DIRECT_IO)
    assert (device.block_size, device.flags) == (4096, LO_FLAGS_DIRECT_IO)


def test_direct_io_ends_with_an_odd_offset() -> None:
    device = new_device()
    bind(device, flags=LO_FLAGS_DIRECT_IO)
    device.set_status(LoopInfo64(offset=100))
    assert device.flags == 0


# --- LOOP_SET_BLOCK_SIZE --------------------------------------------------------------------------


def test_the_block_size_of_a_bound_device() -> None:
    device = new_device()
    opener, _ = bind(device)
    for size in (4096, 65536, 512):
        device.set_block_size(opener, size)
        assert device.block_size == size
    device.set_block_size(opener, 4096)
    device.set_block_size(opener, 0)
    assert device.block_size == 512
    for size in (256, 1000, 131072):
        assert refusal(lambda size=size: device.set_block_size(opener, size)) == errno.EINVAL  # type: ignore[misc]


def test_the_block_size_is_the_holders_to_set() -> None:
    device = new_device()
    opener, _ = bind(device)
    holder = device.open(write=True, exclusive=True)
    assert refusal(lambda: device.set_block_size(opener, 4096)) == errno.EBUSY
    device.set_block_size(holder, 4096)
    unbound = new_device()
    other = unbound.open(write=True)
    assert refusal(lambda: unbound.set_block_size(other, 4096)) == errno.ENXIO


def test_the_end_that_is_no_whole_block_cannot_be_read() -> None:
    device = new_device()
    opener, backing = bind(device, FakeBacking(4096 + 512))
    device.set_block_size(opener, 4096)
    assert device.extent(0, 4096) == (backing, 0, 4096)
    assert refusal(lambda: device.extent(0, 4608)) == errno.EIO
    assert refusal(lambda: device.extent(4096, 512)) == errno.EIO


# --- rights (patch 3/8) ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cmd", [loop.LOOP_SET_CAPACITY, loop.LOOP_SET_DIRECT_IO, loop.LOOP_SET_BLOCK_SIZE], ids=hex
)
def test_a_reader_needs_the_capability(cmd: int) -> None:
    device = new_device()
    bind(device)
    reader = device.open(write=False)
    weak, strong = FakeCaller(capable=False), FakeCaller()
    assert refusal(lambda: weak.call(device, reader, cmd, 0)) == errno.EPERM
    assert strong.call(device, reader, cmd, 0) == 0
    assert weak.call(device, device.open(write=True), cmd, 0) == 0


# --- what any block device is told ------------------------------------------------------------


@pytest.mark.parametrize("cmd", [block.BLKRASET, block.BLKROSET, block.BLKRRPART, block.BLKFLSBUF])
def test_the_block_layer_asks_for_the_capability(cmd: int) -> None:
    device = new_device()
    opener, _ = bind(device)
    weak = FakeCaller(capable=False)
    assert refusal(lambda: weak.call(device, opener, cmd)) == errno.EACCES


def test_read_ahead_is_kept_in_pages() -> None:
    device, caller = new_device(), FakeCaller()
    opener = device.open(write=False)
    caller.call(device, opener, block.BLKRASET, 1003)
    assert device.read_ahead == 1000
    bind(device)
    assert device.read_ahead == 1000
    device.shut_down()
    assert device.read_ahead == 256


def test_a_device_is_marked_read_only() -> None:
    device, caller = new_device(), FakeCaller()
    opener, _ = bind(device)
    caller.call(device, opener, block.BLKROSET, block.INT.pack(1))
    assert device.read_only
    assert device.flags == 0
    caller.call(device, opener, block.BLKROSET, block.INT.pack(0))
    assert not device.read_only


@pytest.mark.parametrize(("size", "soft"), [(512, 512), (3 * 1024, 1024), (12288, 4096), (0, 4096)])
def test_the_first_opener_makes_the_soft_block_size(size: int, soft: int) -> None:
    device = new_device()
    opener, _ = bind(device, FakeBacking(size))
    device.release(opener)
    device.open(write=False)
    assert device.soft_block_size == soft
