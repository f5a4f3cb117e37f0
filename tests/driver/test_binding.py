"""Opening, binding and freeing a device: loop_configure, loop_clr_fd, lo_open, lo_release."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from loopfs.driver.bdev import Opener
from loopfs.driver.event import Event, Invalidate, uevent
from loopfs.driver.loop import LoopDevice, State
from loopfs.errors import DriverError
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
    LoopConfig,
    LoopInfo64,
)
from tests.driver.fakes import MIB, FakeBacking, bind, closings, new_device, new_instance, state_of


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(DriverError) as problem:
        call()
    return problem.value.code


def binding_refused(
    device: LoopDevice, backing: FakeBacking, config: LoopConfig, opener: Opener | None = None
) -> int:
    """The errno; nothing has changed, and the file is still the caller's."""
    opener = opener or device.open(write=True)
    before = device.state, device.backing, device.info, device.capacity
    code = refusal(lambda: device.configure(opener, backing, config))
    assert (device.state, device.backing, device.info, device.capacity) == before
    assert closings(backing) == [0]
    return code


# --- binding ---------------------------------------------------------------------


def test_a_bound_device_shows_its_file() -> None:
    device = new_device()
    _, backing = bind(device, FakeBacking(3 * MIB))
    assert state_of(device) is State.Lo_bound
    assert device.backing is backing
    assert device.capacity == 3 * MIB
    assert device.block_size == 512
    assert not device.read_only


def test_an_unbound_device_has_no_capacity() -> None:
    device = new_device()
    assert device.capacity == 0
    assert device.extent(0, 512) is None


def test_binding_sends_an_event() -> None:
    instance = new_instance()
    device = new_device(instance)
    instance.take_events()
    bind(device)
    assert instance.take_events() == [Invalidate(device), uevent("change", device)]


def test_a_bound_device_is_busy() -> None:
    device = new_device()
    opener, backing = bind(device)
    assert binding_refused(device, FakeBacking(), LoopConfig(), opener) == errno.EBUSY
    assert device.backing is backing


def test_a_device_in_rundown_is_busy() -> None:
    device = new_device()
    opener, _ = bind(device)
    device.clr_fd()
    assert binding_refused(device, FakeBacking(), LoopConfig(), opener) == errno.EBUSY


def test_a_file_that_is_neither_regular_nor_a_block_device() -> None:
    odd = FakeBacking(supported=False)
    assert binding_refused(new_device(), odd, LoopConfig()) == errno.EINVAL


@pytest.mark.parametrize(
    "config",
    [
        LoopConfig(info=LoopInfo64(flags=2)),
        LoopConfig(info=LoopInfo64(flags=LO_FLAGS_AUTOCLEAR | 1 << 31)),
        LoopConfig(info=LoopInfo64(encrypt_type=1)),
        LoopConfig(info=LoopInfo64(encrypt_type=18)),
        LoopConfig(info=LoopInfo64(encrypt_key_size=33)),
        *(LoopConfig(block_size=size) for size in (1, 256, 511, 513, 768, 131072, 2**31)),
    ],
)
def test_configurations_that_are_refused(config: LoopConfig) -> None:
    assert binding_refused(new_device(), FakeBacking(), config) == errno.EINVAL


@pytest.mark.parametrize("info", [LoopInfo64(offset=2**63), LoopInfo64(sizelimit=2**63)])
def test_offsets_and_limits_that_are_negative_as_signed_numbers(info: LoopInfo64) -> None:
    assert binding_refused(new_device(), FakeBacking(), LoopConfig(info=info)) == errno.EOVERFLOW


@pytest.mark.parametrize("size", [512, 1024, 2048, 4096, 65536])
def test_block_sizes(size: int) -> None:
    device = new_device()
    bind(device, block_size=size)
    assert device.block_size == size


# --- a device on a device -----------------------------------------------------------


def test_a_device_can_be_bound_to_another() -> None:
    instance = new_instance()
    lower, upper = new_device(instance), new_device(instance)
    bind(lower, sizelimit=512 * 7)
    bind(upper, FakeBacking(node_of=lower), offset=512)
    assert upper.capacity == 512 * 6


def test_a_device_cannot_be_bound_to_itself() -> None:
    device = new_device()
    assert binding_refused(device, FakeBacking(node_of=device), LoopConfig()) == errno.EBADF


def test_a_device_cannot_be_bound_to_itself_through_others() -> None:
    instance = new_instance()
    first, second, third = (new_device(instance) for _ in range(3))
    opener = first.open(write=True)
    bind(first)
    bind(second, FakeBacking(node_of=first))
    bind(third, FakeBacking(node_of=second))
    first.release(opener)
    first.clr_fd()
    for held in list(first.openers):
        first.release(held)
    assert state_of(first) is State.Lo_unbound
    assert binding_refused(first, FakeBacking(node_of=third), LoopConfig()) == errno.EBADF


def test_a_device_cannot_be_bound_to_an_unbound_one() -> None:
    instance = new_instance()
    lower, upper = new_device(instance), new_device(instance)
    assert binding_refused(upper, FakeBacking(node_of=lower), LoopConfig()) == errno.EINVAL


def test_a_device_cannot_be_bound_to_one_that_is_detached() -> None:
    instance = new_instance()
    lower, upper = new_device(instance), new_device(instance)
    bind(lower)
    lower.clr_fd()
    assert binding_refused(upper, FakeBacking(node_of=lower), LoopConfig()) == errno.EINVAL


# --- what is shown of the file --------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "offset", "sizelimit", "capacity"),
    [
        (MIB, 0, 0, MIB),
        (MIB, 4096, 0, MIB - 4096),
        (MIB, 0, 8192, 8192),
        (MIB, 4096, 8192, 8192),
        (MIB, 4096, 2 * MIB, MIB - 4096),
        (MIB, 1, 0, MIB - 512),  # whole sectors only
        (MIB, 0, 1000, 512),
        (1023, 0, 0, 512),
        (511, 0, 0, 0),
        (0, 0, 0, 0),
        (MIB, MIB, 0, 0),
        (MIB, 2 * MIB, 0, 0),
        (MIB, 2**63 - 1, 2**63 - 1, 0),
    ],
)
def test_capacity(length: int, offset: int, sizelimit: int, capacity: int) -> None:
    device = new_device()
    bind(device, FakeBacking(length), offset=offset, sizelimit=sizelimit)
    assert device.capacity == capacity


def test_a_transfer_lands_behind_the_offset_and_is_cut_at_the_end() -> None:
    device = new_device()
    _, backing = bind(device, offset=1000, sizelimit=4096)
    assert device.extent(0, 512) == (backing, 1000, 512)
    assert device.extent(4000, 512) == (backing, 5000, 96)
    assert device.extent(4096, 512) is None
    assert device.extent(2**62, 512) is None


# --- read-only --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opened_for_writing", "writable", "flags", "read_only"),
    [
        (True, True, 0, False),
        (True, False, 0, True),
        (False, True, 0, True),
        (False, False, 0, True),
        (True, True, LO_FLAGS_READ_ONLY, True),
    ],
)
def test_read_only(opened_for_writing: bool, writable: bool, flags: int, read_only: bool) -> None:
    device = new_device()
    opener = device.open(write=opened_for_writing)
    bind(device, FakeBacking(writable=writable), opener=opener, flags=flags)
    assert device.read_only is read_only
    assert bool(device.flags & LO_FLAGS_READ_ONLY) is read_only


def test_a_read_only_device_can_be_opened_for_writing() -> None:
    """It is write(2) that is refused then, as by the kernel."""
    device = new_device()
    bind(device, flags=LO_FLAGS_READ_ONLY)
    assert device.open(write=True).write
    assert device.read_only


def test_a_freed_device_is_read_only_until_it_is_bound_again() -> None:
    device = new_device()
    opener, _ = bind(device, flags=LO_FLAGS_READ_ONLY)
    device.clr_fd()
    device.release(opener)
    opener = device.open(write=True)
    assert device.read_only
    bind(device, opener=opener)
    assert not device.read_only


def test_a_file_opened_for_direct_io_is_noted() -> None:
    device = new_device()
    bind(device, FakeBacking(direct=True))
    assert device.flags == LO_FLAGS_DIRECT_IO


# --- claims (O_EXCL) -----------------------------------------------------------------------


def test_a_device_is_claimed_once() -> None:
    device = new_device()
    claim = device.open(write=True, exclusive=True)
    assert refusal(lambda: device.open(write=True, exclusive=True)) == errno.EBUSY
    device.open(write=True)  # others may look
    device.release(claim)
    device.open(write=False, exclusive=True)


def test_a_claimed_device_is_bound_by_its_claimant_only() -> None:
    device = new_device()
    claim = device.open(write=True, exclusive=True)
    other = device.open(write=True)
    assert binding_refused(device, FakeBacking(), LoopConfig(), other) == errno.EBUSY
    bind(device, opener=claim)


# --- LOOP_CLR_FD and the last close ------------------------------------------------------------


def test_detaching_an_unbound_device() -> None:
    device = new_device()
    device.open(write=True)
    assert refusal(device.clr_fd) == errno.ENXIO


def test_detaching_waits_for_the_close() -> None:
    device = new_device()
    opener, backing = bind(device)
    device.clr_fd()
    assert state_of(device) is State.Lo_rundown
    assert closings(backing) == [0]
    assert device.capacity == backing.length
    assert refusal(lambda: device.extent(0, 512)) == errno.EIO
    device.release(opener)
    assert state_of(device) is State.Lo_unbound
    assert closings(backing) == [1]


def test_a_device_in_rundown_cannot_be_opened_nor_detached_again() -> None:
    device = new_device()
    bind(device)
    device.clr_fd()
    assert refusal(lambda: device.open(write=False)) == errno.ENXIO
    assert refusal(device.clr_fd) == errno.ENXIO


def test_detaching_an_open_device_makes_it_autoclear() -> None:
    device = new_device()
    opener, backing = bind(device)
    other = device.open(write=False)
    device.clr_fd()
    assert state_of(device) is State.Lo_bound
    assert device.flags == LO_FLAGS_AUTOCLEAR
    assert device.extent(0, 512) == (backing, 0, 512)
    device.release(opener)
    assert closings(backing) == [0]
    device.open(write=False)  # it can still be opened
    device.release(other)
    assert closings(backing) == [0]
    for held in list(device.openers):
        device.release(held)
    assert closings(backing) == [1]
    assert state_of(device) is State.Lo_unbound


def test_the_last_close_frees_with_autoclear_only() -> None:
    kept, cleared = new_device(), new_device()
    for device, flags in ((kept, 0), (cleared, LO_FLAGS_AUTOCLEAR)):
        opener, _ = bind(device, flags=flags)
        device.release(opener)
    assert state_of(kept) is State.Lo_bound
    assert state_of(cleared) is State.Lo_unbound


def test_a_freed_device_is_as_new() -> None:
    device = new_device()
    opener, _ = bind(device, block_size=4096, offset=512, flags=LO_FLAGS_PARTSCAN, file_name=b"old")
    device.clr_fd()
    device.release(opener)
    assert (device.info, device.block_size, device.capacity) == (LoopInfo64(), 512, 0)
    _, backing = bind(device)
    assert device.backing is backing


def test_freeing_sends_an_event() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, _ = bind(device)
    instance.take_events()
    change = uevent("change", device)
    device.clr_fd()
    device.release(opener)
    events: list[Event] = instance.take_events()
    assert change in events
    assert Invalidate(device) in events


def test_a_second_release_changes_nothing() -> None:
    device = new_device()
    opener, backing = bind(device, flags=LO_FLAGS_AUTOCLEAR)
    device.release(opener)
    again, second = bind(device)
    device.release(opener)
    assert device.openers == {again}
    assert (backing.closed, second.closed) == (1, 0)
