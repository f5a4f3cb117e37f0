"""LOOP_SET_STATUS64, LOOP_GET_STATUS64: changes of a bound device, and rights."""

from __future__ import annotations

import errno

import pytest

from loopfs.driver.bdev import Opener
from loopfs.driver.event import Invalidate, uevent
from loopfs.driver.loop import LoopDevice
from loopfs.errors import DriverError
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
    LOOP_SET_STATUS64,
    LoopInfo64,
)
from tests.driver.fakes import MIB, FakeCaller, bind, new_device, new_instance

ALL = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN | LO_FLAGS_DIRECT_IO


def change(device: LoopDevice, opener: Opener, info: LoopInfo64) -> None:
    device.set_status(info)


def refused(device: LoopDevice, opener: Opener, caller: FakeCaller, info: LoopInfo64) -> int:
    before = device.info, device.capacity

    with pytest.raises(DriverError) as problem:
        caller.call(device, opener, LOOP_SET_STATUS64, info.pack())
    assert (device.info, device.capacity) == before
    return problem.value.code


# --- flags -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        (0, LO_FLAGS_AUTOCLEAR, LO_FLAGS_AUTOCLEAR),
        (LO_FLAGS_AUTOCLEAR, 0, 0),
        (0, LO_FLAGS_PARTSCAN, LO_FLAGS_PARTSCAN),
        (LO_FLAGS_PARTSCAN, 0, LO_FLAGS_PARTSCAN),  # cannot be cleared
        (0, LO_FLAGS_READ_ONLY, 0),  # nor set
        (LO_FLAGS_READ_ONLY, 0, LO_FLAGS_READ_ONLY),
        (0, LO_FLAGS_DIRECT_IO, 0),
        (LO_FLAGS_DIRECT_IO, 0, LO_FLAGS_DIRECT_IO),
        (0, ALL, LO_FLAGS_AUTOCLEAR | LO_FLAGS_PARTSCAN),
        (ALL, 0, ALL & ~LO_FLAGS_AUTOCLEAR),
        (0, 1 << 31 | 2, 0),  # unknown ones are no error here
    ],
)
def test_flags(before: int, wanted: int, after: int) -> None:
    device = new_device()
    opener, _ = bind(device, flags=before)
    change(device, opener, LoopInfo64(flags=wanted))
    assert device.flags == after


def test_clearing_autoclear_keeps_the_device_bound() -> None:
    device = new_device()
    opener, backing = bind(device, flags=LO_FLAGS_AUTOCLEAR)
    change(device, opener, LoopInfo64(flags=0))
    device.release(opener)
    assert not backing.closed


# --- offset, limit and name ------------------------------------------------------------


def test_another_window_is_shown_and_sends_an_event() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, backing = bind(device)
    instance.take_events()
    change(device, opener, LoopInfo64(offset=8192, sizelimit=4096))
    assert device.extent(0, MIB) == (backing, 8192, 4096)
    assert instance.take_events() == [
        Invalidate(device),
        uevent("change", device, "RESIZE=1"),
    ]
    change(device, opener, LoopInfo64(offset=8192, sizelimit=0))
    assert device.capacity == MIB - 8192


def test_the_file_is_asked_for_its_size_only_when_the_window_changes() -> None:
    device = new_device()
    opener, backing = bind(device, sizelimit=4096)
    backing.length = 512
    change(device, opener, LoopInfo64(sizelimit=4096, flags=LO_FLAGS_AUTOCLEAR))
    assert device.capacity == 4096
    change(device, opener, LoopInfo64())
    assert device.capacity == 512


def test_the_name_is_kept_and_ends_with_a_nul() -> None:
    device = new_device()
    opener, _ = bind(device, file_name=b"first")
    assert device.get_status().file_name == b"first"
    change(device, opener, LoopInfo64(file_name=b"n" * 64))
    assert device.get_status().file_name == b"n" * 63


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (LoopInfo64(encrypt_type=1), errno.EINVAL),
        (LoopInfo64(encrypt_key_size=33), errno.EINVAL),
        (LoopInfo64(offset=2**63), errno.EOVERFLOW),
        (LoopInfo64(sizelimit=2**64 - 1), errno.EOVERFLOW),
    ],
)
def test_bad_values(info: LoopInfo64, code: int) -> None:
    device = new_device()
    opener, _ = bind(device)
    assert refused(device, opener, FakeCaller(), info) == code


def test_an_unbound_device_has_no_status() -> None:
    device = new_device()
    opener = device.open(write=True)
    assert refused(device, opener, FakeCaller(), LoopInfo64()) == errno.ENXIO
    with pytest.raises(DriverError) as problem:
        device.get_status()
    assert problem.value.code == errno.ENXIO


def test_a_device_in_rundown_has_no_status() -> None:
    device = new_device()
    opener, _ = bind(device)
    device.clr_fd()
    assert refused(device, opener, FakeCaller(), LoopInfo64()) == errno.ENXIO
    with pytest.raises(DriverError):
        device.get_status()


def test_status_names_the_file_and_the_device() -> None:
    instance = new_instance()
    device = instance.devices[instance.ctl_add(23)]
    _, backing = bind(device, offset=512, sizelimit=1024, flags=LO_FLAGS_AUTOCLEAR)
    status = device.get_status()
    assert (status.device, status.inode, status.rdevice) == backing.identity
    assert status.number == 23
    assert (status.offset, status.sizelimit, status.flags) == (512, 1024, LO_FLAGS_AUTOCLEAR)
    assert (status.encrypt_type, status.encrypt_key_size, status.encrypt_key) == (0, 0, b"")


# --- who may: patch 3/8 --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "capable", "allowed"),
    [(True, True, True), (True, False, True), (False, True, True), (False, False, False)],
)
def test_status_is_changed_by_a_writer_or_a_capable_caller(
    write: bool, capable: bool, allowed: bool
) -> None:
    device = new_device()
    bind(device)
    opener = device.open(write=write)
    caller = FakeCaller(capable=capable)
    info = LoopInfo64(flags=LO_FLAGS_AUTOCLEAR)
    if allowed:
        caller.call(device, opener, LOOP_SET_STATUS64, info.pack())
        assert device.flags == LO_FLAGS_AUTOCLEAR
    else:
        assert refused(device, opener, caller, info) == errno.EPERM


def test_the_right_comes_before_the_state() -> None:
    device = new_device()
    opener = device.open(write=False)
    assert refused(device, opener, FakeCaller(capable=False), LoopInfo64()) == errno.EPERM
