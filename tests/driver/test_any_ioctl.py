"""Any ioctl in any state of a device succeeds or fails with an errno of the kernel."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from loopfs.driver.bdev import BlockDevice, Opener
from loopfs.driver.block import _FOR_32_BITS, BLOCK_IOCTLS, discard_range, zero_range
from loopfs.driver.ioctl import LOOP_IOCTLS, control_ioctl, ioctl
from loopfs.driver.loop import LoopDevice
from loopfs.driver.partition import Found
from loopfs.driver.sysfs import Attribute, Directory, Item, disk
from loopfs.errors import DriverError
from loopfs.uapi.loop import (
    LOOP_CHANGE_FD,
    LOOP_CTL_ADD,
    LOOP_CTL_GET_FREE,
    LOOP_CTL_REMOVE,
    LOOP_SET_FD,
    LoopConfig,
    LoopInfo64,
)
from tests.driver.fakes import FakeBacking, FakeCaller, new_instance
from tests.support.rounds import rounds

FD = 3
# Where something overflows: of an int and a long, signed and not, of either width; in sectors.
EDGES = sorted(
    {
        max(0, (1 << bits) + around)
        for bits in (9, 16, 31, 32, 41, 55, 63, 64)
        for around in (-512, -1, 0, 1)
        if (1 << bits) + around < 1 << 64
    }
)


class LowCaller(FakeCaller):
    """Its memory is where a 32-bit program can have some, too."""

    BASE = 0x7F000000


def partition(operation: int, start: int, size: int, number: int) -> bytes:
    """struct blkpg_ioctl_arg of a 64-bit program, and behind it what it points to."""
    head = struct.pack("=iii4xQ", operation, 0, 0, LowCaller.BASE + 24)
    return head + struct.pack("=qqi140x", start, size, number)


numbers = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1) | st.sampled_from([FD, 8, 512, 4096])
sizes = numbers.map(lambda number: number % 2**63)
# What detaches the device comes last.
COMMANDS = sorted(LOOP_IOCTLS.keys() | BLOCK_IOCTLS.keys() | _FOR_32_BITS.keys())[::-1]
commands = st.sampled_from(COMMANDS)
arguments = st.sampled_from([LowCaller.BASE, LowCaller.BASE + 4090, 0]) | numbers
infos = st.tuples(numbers, numbers, st.integers(0, 31), st.binary(max_size=64)).map(
    lambda f: LoopInfo64(offset=f[0], sizelimit=f[1], flags=f[2], file_name=f[3])
)
memories = (
    st.lists(numbers, max_size=40).map(lambda n: b"".join(v.to_bytes(8, "little") for v in n))
    | infos.map(lambda info: info.pack())
    | st.builds(LoopConfig, st.just(FD), st.sampled_from([0, 512, 4096]), infos).map(
        lambda config: config.pack()
    )
    | st.builds(partition, st.integers(0, 4), sizes, sizes, st.integers(0, 300))
)


def asked(call: Callable[[], object]) -> None:
    """Make a call, which may be refused with an errno that there is."""
    try:
        call()
    except OSError as problem:
        if problem.errno not in errno.errorcode:
            raise


def read_all(item: Item) -> None:
    """All that /sys shows can be shown."""
    if isinstance(item, Directory):
        for child in item.values():
            read_all(child)
    elif isinstance(item, Attribute):
        assert isinstance(item.show(), str)


def opened(bdev: BlockDevice, write: bool) -> Opener | None:
    try:
        return bdev.open(write=write)
    except DriverError:
        return None


@settings(max_examples=rounds(60, 200), deadline=None)
@given(data=st.data())
def test_no_argument_in_no_state_is_more_than_refused(data: st.DataObject) -> None:
    instance = new_instance()
    device: LoopDevice = instance.devices[instance.ctl_add(-1)]
    openers = [device.open(write=True), device.open(write=False)]
    if data.draw(st.booleans(), label="bound"):
        backing = FakeBacking(data.draw(sizes, label="length"))
        info = data.draw(infos, label="info")
        config = LoopConfig(FD, 0, info._replace(offset=info.offset % 2**62, sizelimit=0))
        asked(lambda: device.configure(openers[0], backing, config))
        asked(lambda: device.partitions.add(Found(1, 4096, max(512, device.capacity - 8192))))
        openers += [o for part in device.partitions.values() if (o := opened(part, True))]
    for _ in range(data.draw(st.integers(1, 12), label="calls")):
        word = data.draw(st.sampled_from([4, 8]), label="word")
        caller = LowCaller(word=word, capable=data.draw(st.booleans(), label="capable"))
        caller.put(data.draw(memories, label="memory"))
        caller.open_file(FakeBacking(data.draw(sizes, label="file")), FD)
        opener = data.draw(st.sampled_from(openers), label="opener")
        cmd = data.draw(commands, label="command")
        by_number = cmd in (LOOP_SET_FD, LOOP_CHANGE_FD)
        arg = FD if by_number else data.draw(arguments, label="argument")
        if word == 4:
            arg %= 2**32
        asked(lambda: ioctl(opener.bdev, opener, caller, cmd, arg))  # noqa: B023
        asked(lambda: zero_range(opener.bdev, opener, caller, arg))  # noqa: B023
        asked(lambda: discard_range(opener.bdev, opener, caller, arg))  # noqa: B023
        read_all(disk(device))
    for word, cmd in product((4, 8), COMMANDS):  # what such a device says of itself
        caller = LowCaller(word=word)
        asked(lambda: ioctl(opener.bdev, opener, caller, cmd, LowCaller.BASE))  # noqa: B023


@given(
    st.sampled_from([LOOP_CTL_ADD, LOOP_CTL_REMOVE, LOOP_CTL_GET_FREE]) | st.integers(0, 2**32),
    st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-1, 0, 1, 2**20 - 1, 2**20]),
)
def test_no_number_is_more_than_refused(cmd: int, number: int) -> None:
    instance = new_instance()
    asked(lambda: control_ioctl(instance, LOOP_CTL_ADD, 1))
    asked(lambda: control_ioctl(instance, cmd, number))
