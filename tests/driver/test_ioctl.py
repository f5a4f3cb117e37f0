"""The ioctls of an open device, with their arguments in the caller's memory."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from loopfs.driver.bdev import Opener
from loopfs.driver.block import BLOCK_IOCTLS, discard_range, zero_range
from loopfs.driver.ioctl import LOOP_IOCTLS, ioctl
from loopfs.driver.loop import LoopDevice, State
from loopfs.driver.partition import Found
from loopfs.uapi import block, loop
from loopfs.uapi.block import BLKDISCARD, BLKZEROOUT
from loopfs.uapi.loop import LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY, LoopConfig, LoopInfo64
from tests.driver.fakes import (
    MIB,
    FakeBacking,
    FakeCaller,
    bind,
    closings,
    new_device,
    new_instance,
    state_of,
)

BASE = FakeCaller.BASE
NOWHERE = 0x1000
UNKNOWN = 0x4CFF


@pytest.fixture
def caller() -> FakeCaller:
    return FakeCaller()


@pytest.fixture
def device() -> LoopDevice:
    return new_device()


@pytest.fixture
def opener(device: LoopDevice) -> Opener:
    return device.open(write=True)


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as problem:  # noqa: PT011 the errno is what is asked for
        call()
    assert problem.value.errno is not None
    return problem.value.errno


# --- LOOP_SET_FD, LOOP_CONFIGURE -------------------------------------------------------


def test_set_fd_binds(device: LoopDevice, opener: Opener, caller: FakeCaller) -> None:
    backing = FakeBacking()
    fd = caller.open_file(backing)
    assert caller.call(device, opener, loop.LOOP_SET_FD, fd) == 0
    assert state_of(device) is State.Lo_bound
    assert device.backing is backing
    assert device.info == LoopInfo64()


def test_configure_binds_with_everything(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    info = LoopInfo64(offset=1024, sizelimit=8192, flags=LO_FLAGS_AUTOCLEAR, file_name=b"disk.img")
    fd = caller.open_file(FakeBacking(), 7)
    config = LoopConfig(fd, 4096, info).pack()
    assert caller.call(device, opener, loop.LOOP_CONFIGURE, config) == 0
    assert (device.info, device.block_size, device.capacity) == (info, 4096, 8192)


def test_a_descriptor_that_is_not_open(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    config = LoopConfig(fd=99).pack()
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_SET_FD, 99)) == errno.EBADF
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_CONFIGURE, config)) == errno.EBADF
    assert state_of(device) is State.Lo_unbound


def test_the_descriptor_is_looked_at_before_the_state(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    bind(device, opener=opener)
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_SET_FD, 99)) == errno.EBADF


def test_a_file_that_was_refused_is_closed(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    _, kept = bind(device, opener=opener)
    backing = FakeBacking()
    fd = caller.open_file(backing)
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_SET_FD, fd)) == errno.EBUSY
    assert (backing.closed, kept.closed) == (1, 0)


def test_a_file_whose_size_cannot_be_had_is_closed_and_the_device_unbound(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    class Broken(FakeBacking):
        def size(self) -> int:
            raise OSError(errno.EIO, "its server is gone")

    backing = Broken()
    fd = caller.open_file(backing)
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_SET_FD, fd)) == errno.EIO
    assert state_of(device) is State.Lo_unbound
    assert device.backing is None
    assert closings(backing) == [1]


# --- LOOP_CLR_FD --------------------------------------------------------------------------


def test_clr_fd(device: LoopDevice, opener: Opener, caller: FakeCaller) -> None:
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_CLR_FD, 0)) == errno.ENXIO
    bind(device, opener=opener)
    assert caller.call(device, opener, loop.LOOP_CLR_FD, 0) == 0
    assert state_of(device) is State.Lo_rundown


def test_clr_fd_of_the_process_whose_umount_has_freed_it(
    device: LoopDevice, opener: Opener
) -> None:
    """Once; not of others, nor of a device that is bound anew."""
    umount, another = FakeCaller(process=7), FakeCaller(process=8)

    def clear(caller: FakeCaller) -> int | bytes:
        return caller.call(device, opener, loop.LOOP_CLR_FD, 0)

    device.freed_by_umount(7)
    assert refusal(lambda: clear(another)) == errno.ENXIO
    assert clear(umount) == 0
    assert refusal(lambda: clear(umount)) == errno.ENXIO
    device.freed_by_umount(7)
    bind(device, opener=opener)
    assert clear(umount) == 0
    assert device.state is not State.Lo_unbound
    assert refusal(lambda: clear(umount)) == errno.ENXIO


# --- status -------------------------------------------------------------------------------


def test_status64_there_and_back(device: LoopDevice, opener: Opener, caller: FakeCaller) -> None:
    bind(device, opener=opener)
    wanted = LoopInfo64(offset=512, sizelimit=1024, flags=LO_FLAGS_AUTOCLEAR, file_name=b"a name")
    assert caller.call(device, opener, loop.LOOP_SET_STATUS64, wanted.pack()) == 0
    caller.memory[:] = bytes(len(caller.memory))
    assert caller.call(device, opener, loop.LOOP_GET_STATUS64) == 0
    assert LoopInfo64.unpack(caller.read(BASE, 232)) == device.get_status()
    assert device.get_status().file_name == b"a name"
    assert not any(caller.memory[232:])


@pytest.mark.parametrize("word", [8, 4])
def test_old_status_there_and_back(word: int) -> None:
    device, caller = new_device(), FakeCaller(word=word)
    opener, _ = bind(device)
    wanted = LoopInfo64(offset=512, flags=LO_FLAGS_AUTOCLEAR, file_name=b"a name")
    packed = loop.pack_old_info(wanted, word)
    assert packed is not None
    assert caller.call(device, opener, loop.LOOP_SET_STATUS, packed) == 0
    assert (device.info.offset, device.flags) == (512, LO_FLAGS_AUTOCLEAR)
    caller.memory[:] = bytes(len(caller.memory))
    assert caller.call(device, opener, loop.LOOP_GET_STATUS) == 0
    got = loop.unpack_old_info(caller.read(BASE, len(packed)), word)
    assert got == device.get_status()
    assert not any(caller.memory[len(packed) :])


def test_an_old_status_clears_the_size_limit(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    bind(device, opener=opener, sizelimit=4096)
    packed = loop.pack_old_info(LoopInfo64(), 8)
    assert packed is not None
    caller.call(device, opener, loop.LOOP_SET_STATUS, packed)
    assert device.capacity == MIB


def test_a_negative_old_offset_is_an_overflow(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    bind(device, opener=opener)
    packed = loop.pack_old_info(LoopInfo64(offset=2**31 - 1), 8)
    assert packed is not None
    negative = packed.replace(b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff")
    call = lambda: caller.call(device, opener, loop.LOOP_SET_STATUS, negative)  # noqa: E731
    assert refusal(call) == errno.EOVERFLOW


def test_a_status_that_does_not_fit_the_old_structure(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    bind(device, opener=opener, offset=2**31)
    assert refusal(lambda: caller.call(device, opener, loop.LOOP_GET_STATUS)) == errno.EOVERFLOW
    assert caller.call(device, opener, loop.LOOP_GET_STATUS64) == 0


@pytest.mark.parametrize("cmd", [loop.LOOP_GET_STATUS, loop.LOOP_GET_STATUS64])
def test_status_into_nothing_is_invalid_even_when_unbound(
    device: LoopDevice, opener: Opener, caller: FakeCaller, cmd: int
) -> None:
    assert refusal(lambda: caller.call(device, opener, cmd, 0)) == errno.EINVAL
    assert refusal(lambda: caller.call(device, opener, cmd)) == errno.ENXIO


# --- bad pointers -----------------------------------------------------------------------------

READS = (
    loop.LOOP_CONFIGURE,
    loop.LOOP_SET_STATUS,
    loop.LOOP_SET_STATUS64,
    block.BLKBSZSET,
    block.BLKROSET,
    block.BLKPG,
)
NUMBERS = {  # their argument is one, or there is none
    loop.LOOP_SET_FD,
    loop.LOOP_CHANGE_FD,
    loop.LOOP_CLR_FD,
    loop.LOOP_SET_CAPACITY,
    loop.LOOP_SET_DIRECT_IO,
    loop.LOOP_SET_BLOCK_SIZE,
    block.BLKFLSBUF,
    block.BLKRRPART,
    block.BLKRASET,
    block.BLKFRASET,
}
REFUSED = {  # before the argument is looked at
    0x0301: errno.ENOTTY,
    block.BLKSECDISCARD: errno.EOPNOTSUPP,
    block.BLKREPORTZONE: errno.ENOTTY,
    block.BLKRESETZONE: errno.ENOTTY,
    block.BLKOPENZONE: errno.ENOTTY,
    block.BLKCLOSEZONE: errno.ENOTTY,
    block.BLKFINISHZONE: errno.ENOTTY,
    **dict.fromkeys(block.BLKCRYPTO, errno.ENOTTY),
    **dict.fromkeys(block.BLKTRACE, errno.EINVAL),
    **dict.fromkeys(block.IOC_PR, errno.EOPNOTSUPP),
}
WITHOUT_POINTER = NUMBERS | REFUSED.keys()
WRITES = sorted((LOOP_IOCTLS.keys() | BLOCK_IOCTLS.keys()) - WITHOUT_POINTER - {*READS})


@pytest.mark.parametrize("cmd", [*READS, *WRITES], ids=hex)
@pytest.mark.parametrize("address", [NOWHERE, BASE + 4095])
def test_a_bad_pointer_is_a_fault(cmd: int, address: int) -> None:
    device, caller = new_device(), FakeCaller()
    if cmd == loop.LOOP_CONFIGURE:
        opener = device.open(write=True)
    else:
        opener, _ = bind(device)
    before = device.state, device.info, bytes(caller.memory)
    assert refusal(lambda: caller.call(device, opener, cmd, address)) == errno.EFAULT
    assert (device.state, device.info, bytes(caller.memory)) == before


@pytest.mark.parametrize("cmd", [loop.LOOP_SET_STATUS, loop.LOOP_SET_STATUS64], ids=hex)
def test_the_right_is_checked_before_the_pointer(cmd: int) -> None:
    device = new_device()
    bind(device)
    reader = device.open(write=False)
    caller = FakeCaller(capable=False)
    assert refusal(lambda: caller.call(device, reader, cmd, NOWHERE)) == errno.EPERM


@pytest.mark.parametrize("cmd", [loop.LOOP_GET_STATUS, loop.LOOP_GET_STATUS64], ids=hex)
def test_the_state_is_checked_before_the_pointer(
    device: LoopDevice, opener: Opener, caller: FakeCaller, cmd: int
) -> None:
    assert refusal(lambda: caller.call(device, opener, cmd, NOWHERE)) == errno.ENXIO


def test_an_unknown_command_is_invalid(
    device: LoopDevice, opener: Opener, caller: FakeCaller
) -> None:
    for cmd in (UNKNOWN, loop.LOOP_CTL_ADD, 0):
        assert refusal(lambda cmd=cmd: ioctl(device, opener, caller, cmd, 0)) == errno.EINVAL  # type: ignore[misc]


# --- ioctls of every block device ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("cmd", "size", "value"),
    [
        (block.BLKGETSIZE64, 8, MIB - 512),
        (block.BLKGETSIZE, 8, (MIB - 512) // 512),
        (block.BLKSSZGET, 4, 1024),
        (block.BLKPBSZGET, 4, 1024),
        (block.BLKBSZGET, 4, 4096),
        (block.BLKIOMIN, 4, 1024),
        (block.BLKIOOPT, 4, 0),
        (block.BLKALIGNOFF, 4, 0),
        (block.BLKROGET, 4, 0),
        (block.BLKROTATIONAL, 2, 0),
        (block.BLKDISCARDZEROES, 4, 0),
        (block.BLKRAGET, 8, 256),
    ],
)
def test_what_a_block_device_says(cmd: int, size: int, value: int) -> None:
    device, caller = new_device(), FakeCaller()
    opener, _ = bind(device, block_size=1024, offset=512)
    caller.memory[:] = b"\xa5" * len(caller.memory)
    assert caller.call(device, opener, cmd) == 0
    assert int.from_bytes(caller.memory[:size], "little") == value
    assert set(caller.memory[size:]) == {0xA5}, "more than the ioctl's size was written"


def test_a_32_bit_caller_gets_its_own_longs() -> None:
    device, caller = new_device(), FakeCaller(word=4)
    opener, _ = bind(device)
    caller.memory[:8] = b"\xa5" * 8
    caller.call(device, opener, block.BLKGETSIZE)
    assert caller.memory[:8] == (MIB // 512).to_bytes(4, "little") + b"\xa5" * 4


@pytest.mark.parametrize(
    ("length", "code"), [(2**41 - 512, 0), (2**41, errno.EFBIG), (3 * 2**40, errno.EFBIG)]
)
def test_sectors_that_a_32_bit_long_does_not_hold(length: int, code: int) -> None:
    device, caller = new_device(), FakeCaller(word=4)
    opener, _ = bind(device, FakeBacking(length))
    if code:
        assert refusal(lambda: caller.call(device, opener, block.BLKGETSIZE)) == code
        assert not any(caller.memory)
    else:
        assert caller.call(device, opener, block.BLKGETSIZE) == 0
        assert caller.memory[:4] == b"\xff" * 4


@pytest.mark.parametrize(
    ("given", "kept"),  # as Linux 6.18 has it
    [
        (7, 0),
        (2**32 + 16, 2**32 + 16),
        (2**54, 2**54),
        (2**55 + 24, 24),
        (2**63, 0),
        (2**64 - 1, 2**55 - 8),
        (0x123456789ABCDEF, 0x23456789ABCDE8),
    ],
)
def test_any_read_ahead(given: int, kept: int) -> None:
    device = new_device()
    opener, _ = bind(device)
    for word in (8, 4):
        caller = FakeCaller(word=word)
        assert caller.call(device, opener, block.BLKRASET, given) == 0
        assert caller.call(device, opener, block.BLKRAGET) == 0
        assert caller.memory[:8] == (kept % 2 ** (8 * word)).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("cmd", "answer"),
    [
        (0x80041272, MIB.to_bytes(8, "little")),  # BLKGETSIZE64: _IOR(0x12, 114, size_t)
        (0x80041270, (512).to_bytes(4, "little")),  # BLKBSZGET, which says the disk's there
    ],
)
def test_numbers_that_carry_the_size_of_a_32_bit_callers_word(cmd: int, answer: bytes) -> None:
    device, caller = new_device(), FakeCaller(word=4)
    opener, _ = bind(device)
    assert caller.call(device, opener, cmd) == 0
    assert caller.memory[: len(answer)] == answer


@pytest.mark.parametrize("cmd", [block.BLKBSZGET, block.BLKBSZSET, block.BLKGETSIZE64], ids=hex)
@pytest.mark.parametrize("word", [8, 4])
def test_a_number_of_the_other_width_is_unknown(cmd: int, word: int) -> None:
    device, caller = new_device(), FakeCaller(word=word)
    opener, _ = bind(device)
    other = cmd if word == 4 else cmd - (4 << 16)
    unknown = errno.EINVAL if word == 8 else errno.ENOTTY
    assert refusal(lambda: caller.call(device, opener, other)) == unknown


@pytest.mark.parametrize("cmd", block.IOC_PR, ids=hex)
def test_reservations(cmd: int) -> None:
    device, caller = new_device(), FakeCaller(capable=False)
    opener, _ = bind(device)
    assert refusal(lambda: caller.call(device, opener, cmd)) == errno.EOPNOTSUPP
    reader = device.open(write=False)
    assert refusal(lambda: caller.call(device, reader, cmd)) == errno.EPERM
    device.partitions.add(Found(1, 4096, 4096))
    part = device.partitions[1].open(write=True)
    assert refusal(lambda: ioctl(part.bdev, part, FakeCaller(), cmd, 0)) == errno.EPERM


def test_read_only_is_said() -> None:
    device, caller = new_device(), FakeCaller()
    opener, _ = bind(device, flags=LO_FLAGS_READ_ONLY)
    caller.call(device, opener, block.BLKROGET)
    assert caller.memory[:4] == b"\1\0\0\0"


def test_an_unbound_device_is_empty(device: LoopDevice, opener: Opener, caller: FakeCaller) -> None:
    caller.memory[:8] = b"\xa5" * 8
    caller.call(device, opener, block.BLKGETSIZE64)
    assert caller.memory[:8] == bytes(8)


def test_disk_sequence_numbers_distinguish_devices() -> None:
    instance, caller = new_instance(), FakeCaller()
    seen = []
    for _ in range(2):
        device = new_device(instance)
        caller.call(device, device.open(write=False), block.BLKGETDISKSEQ)
        seen.append(int.from_bytes(caller.memory[:8], "little"))
    assert seen == [d.diskseq for d in instance.devices.values()]
    assert seen[0] < seen[1]


@pytest.mark.parametrize(("cmd", "code"), REFUSED.items())
def test_what_a_loop_device_does_not_have(
    device: LoopDevice, opener: Opener, caller: FakeCaller, cmd: int, code: int
) -> None:
    assert refusal(lambda: caller.call(device, opener, cmd)) == code


@pytest.mark.parametrize(
    ("size", "code"),
    [(512, 0), (4096, 0), (65536, 0), (131072, errno.EINVAL), (1000, errno.EINVAL), (256, 22)],
)
def test_soft_block_size(
    device: LoopDevice, opener: Opener, caller: FakeCaller, size: int, code: int
) -> None:
    argument = block.INT.pack(size)
    if code:
        call = lambda: caller.call(device, opener, block.BLKBSZSET, argument)  # noqa: E731
        assert refusal(call) == code
    else:
        assert caller.call(device, opener, block.BLKBSZSET, argument) == 0


def test_soft_block_size_and_flushing_need_the_capability(
    device: LoopDevice, opener: Opener
) -> None:
    weak = FakeCaller(capable=False)
    for cmd in (block.BLKBSZSET, block.BLKFLSBUF):
        assert refusal(lambda cmd=cmd: weak.call(device, opener, cmd, NOWHERE)) == errno.EACCES  # type: ignore[misc]
    assert FakeCaller().call(device, opener, block.BLKFLSBUF, 0) == 0


# --- ranges: BLKDISCARD, BLKZEROOUT --------------------------------------------------------------


RANGES = pytest.mark.parametrize("get", [zero_range, discard_range])
Get = Callable[[LoopDevice, Opener, FakeCaller, int], tuple[int, int]]


@RANGES
def test_a_range_is_read_from_the_caller(caller: FakeCaller, get: Get) -> None:
    device = new_device()
    opener, _ = bind(device)
    argument = caller.put(block.RANGE.pack(4096, 8192))
    assert get(device, opener, caller, argument) == (4096, 8192)
    assert BLKDISCARD not in BLOCK_IOCTLS
    assert BLKZEROOUT not in BLOCK_IOCTLS, "their work is not the driver's"


@RANGES
@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (1, 512), (512, 1), (0, MIB + 512), (MIB, 512), (2**64 - 512, 1024), (512, 1024)],
)
def test_ranges_that_are_refused(caller: FakeCaller, get: Get, start: int, length: int) -> None:
    device = new_device()
    opener, _ = bind(device, block_size=1024)
    argument = caller.put(block.RANGE.pack(start, length))
    assert refusal(lambda: get(device, opener, caller, argument)) == errno.EINVAL


@RANGES
def test_a_range_needs_a_writer_a_writable_disk_and_a_pointer(caller: FakeCaller, get: Get) -> None:
    device = new_device()
    opener, _ = bind(device)
    reader = device.open(write=False)
    good = caller.put(block.RANGE.pack(4096, 8192))
    assert refusal(lambda: get(device, opener, caller, NOWHERE)) == errno.EFAULT
    assert refusal(lambda: get(device, reader, caller, good)) == errno.EBADF
    device.marked_read_only = True
    assert refusal(lambda: get(device, opener, caller, good)) == errno.EPERM


def test_the_order_in_which_ranges_are_refused(caller: FakeCaller) -> None:
    device = new_device()
    reader = device.open(write=False)
    good = caller.put(block.RANGE.pack(4096, 8192))
    assert refusal(lambda: zero_range(device, reader, caller, NOWHERE)) == errno.EBADF
    assert refusal(lambda: discard_range(device, reader, caller, NOWHERE)) == errno.EFAULT
    assert refusal(lambda: discard_range(device, reader, caller, good)) == errno.EOPNOTSUPP
