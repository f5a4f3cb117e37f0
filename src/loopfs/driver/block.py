"""The ioctls of all block devices (block/ioctl.c), for a loop device."""

from __future__ import annotations

import errno
from collections.abc import Callable

from loopfs.driver.bdev import BlockDevice, Opener
from loopfs.driver.partition import Found
from loopfs.driver.world import Caller
from loopfs.errors import DriverError
from loopfs.uapi import block as uapi

HDIO_GETGEO = 0x0301
MAX_SECTORS = 2560  # BLK_DEF_MAX_SECTORS_CAP, the kernel's value for the queue of a loop device
_PAGE_SECTORS = 8  # read-ahead is kept in pages
_LLONG_MAX = 2**63 - 1

Handler = Callable[[BlockDevice, Opener, Caller, int], int]
Value = Callable[[BlockDevice], int]


def _int(value: Value) -> Handler:
    def handler(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        caller.write(arg, uapi.INT.pack(value(bdev)))
        return 0

    return handler


def _ushort(value: Value) -> Handler:
    def handler(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        caller.write(arg, uapi.USHORT.pack(value(bdev)))
        return 0

    return handler


def _long(value: Value) -> Handler:
    """Return a number truncated to the caller's long (compat_put_long)."""

    def handler(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        layout = uapi.LONG[caller.word]
        caller.write(arg, layout.pack(value(bdev) % (1 << 8 * layout.size)))
        return 0

    return handler


def _u64(value: Value) -> Handler:
    def handler(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        caller.write(arg, uapi.U64.pack(value(bdev)))
        return 0

    return handler


def _privileged(handler: Handler) -> Handler:
    def checked(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        if not caller.capable():
            raise DriverError(errno.EACCES, "it needs CAP_SYS_ADMIN")
        return handler(bdev, opener, caller, arg)

    return checked


def _with_argument(handler: Handler) -> Handler:
    def checked(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        if arg == 0:
            raise DriverError(errno.EINVAL, "no argument")
        return handler(bdev, opener, caller, arg)

    return checked


def _refuse(code: int, sentence: str) -> Handler:
    def handler(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
        raise DriverError(code, sentence)

    return handler


def _erase_securely(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    _check_writer(opener)
    raise DriverError(errno.EOPNOTSUPP, "a loop device does not erase securely")


def _reserve(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    """IOC_PR_*: persistent reservations, which a loop device does not support."""
    if bdev is not bdev.disk or not (opener.write or caller.capable()):
        raise DriverError(errno.EPERM, "a reservation requires write access to a whole disk")
    raise DriverError(errno.EOPNOTSUPP, "a loop device has no reservations")


def _flush_buffers(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    bdev.flush_buffers()
    return 0


def _set_block_size(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    (size,) = uapi.INT.unpack(caller.read(arg, uapi.INT.size))
    bdev.set_soft_block_size(opener, size)
    return 0


def _set_read_only(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    (value,) = uapi.INT.unpack(caller.read(arg, uapi.INT.size))
    bdev.marked_read_only = bool(value)
    return 0


def _get_size(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    """Return the size in sectors (BLKGETSIZE)."""
    sectors = bdev.capacity >> uapi.SECTOR_SHIFT
    layout = uapi.LONG[caller.word]
    if sectors >> 8 * layout.size:
        raise DriverError(errno.EFBIG, f"{sectors} sectors are more than the caller's long holds")
    caller.write(arg, layout.pack(sectors))
    return 0


def _set_read_ahead(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    # The kernel converts the argument to bytes first, modulo 2^64.
    sectors = arg % (1 << 64 - uapi.SECTOR_SHIFT)
    bdev.disk.read_ahead = sectors - sectors % _PAGE_SECTORS
    return 0


def _reread_partitions(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    if bdev is not bdev.disk:
        raise DriverError(errno.EINVAL, "a partition has no partitions")
    bdev.disk.scan_partitions(opener)
    return 0


def _partition(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> int:
    """Add, delete or resize a partition (BLKPG)."""
    layout = uapi.BLKPG_ARG[caller.word]
    operation, _, _, address = layout.unpack(caller.read(arg, layout.size))
    if not caller.capable():
        raise DriverError(errno.EACCES, "it needs CAP_SYS_ADMIN")
    data = caller.read(address, uapi.BLKPG_PARTITION.size)
    start, size, number = uapi.BLKPG_PARTITION.unpack(data)
    if bdev is not bdev.disk or number <= 0:
        raise DriverError(errno.EINVAL, "not a partition number of a whole disk")
    partitions = bdev.disk.partitions
    if operation == uapi.BLKPG_DEL_PARTITION:
        partitions.delete(number)
        return 0
    if start < 0 or size <= 0 or start + size > _LLONG_MAX:
        raise DriverError(errno.EINVAL, "not a valid range of bytes")
    if (start | size) % bdev.disk.block_size:
        raise DriverError(errno.EINVAL, "not aligned to blocks")
    if operation == uapi.BLKPG_ADD_PARTITION:
        partitions.add(Found(number, start, size))
    elif operation == uapi.BLKPG_RESIZE_PARTITION:
        partitions.resize(Found(number, start, size))
    else:
        raise DriverError(errno.EINVAL, "neither add nor delete nor resize")
    return 0


def _check_writer(opener: Opener) -> None:
    if not opener.write:
        raise DriverError(errno.EBADF, "the device is not open for writing")


def zero_range(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> tuple[int, int]:
    """Return the start and length in bytes of a BLKZEROOUT request.

    Raises:
        DriverError: EBADF (opened read-only), EINVAL (not aligned to the block size, empty,
            or beyond the end), EPERM (the device is read-only), EBUSY (a mounted filesystem
            uses some of the bytes).
        OSError: EFAULT.
    """
    _check_writer(opener)
    start, length = uapi.RANGE.unpack(caller.read(arg, uapi.RANGE.size))
    _check_range(bdev, start, length)
    _check_writable(bdev)
    bdev.check_may_write(start, length)
    return start, length


def discard_range(bdev: BlockDevice, opener: Opener, caller: Caller, arg: int) -> tuple[int, int]:
    """Return the start and length in bytes of a BLKDISCARD request.

    Raises:
        DriverError: EOPNOTSUPP (never bound); else as :func:`zero_range`, in another order.
        OSError: EFAULT.
    """
    start, length = uapi.RANGE.unpack(caller.read(arg, uapi.RANGE.size))
    if not bdev.disk.discards:
        raise DriverError(errno.EOPNOTSUPP, f"{bdev.name} has nothing to discard")
    _check_writer(opener)
    _check_writable(bdev)
    _check_range(bdev, start, length)
    bdev.check_may_write(start, length)
    return start, length


def _check_writable(bdev: BlockDevice) -> None:
    if bdev.read_only:
        raise DriverError(errno.EPERM, "the device is read-only")


def _check_range(bdev: BlockDevice, start: int, length: int) -> None:
    mask = bdev.disk.block_size - 1
    if start & mask or length & mask or not length or start + length > bdev.capacity:
        raise DriverError(errno.EINVAL, "the range is not aligned or beyond the end")


_no_zones = _refuse(errno.ENOTTY, "a loop device has no zones")

BLOCK_IOCTLS: dict[int, Handler] = {
    uapi.BLKGETSIZE: _get_size,
    uapi.BLKGETSIZE64: _u64(lambda d: d.capacity),
    uapi.BLKGETDISKSEQ: _u64(lambda d: d.disk.diskseq),
    uapi.BLKSSZGET: _int(lambda d: d.disk.block_size),
    uapi.BLKPBSZGET: _int(lambda d: d.disk.block_size),
    uapi.BLKBSZGET: _int(lambda d: d.soft_block_size),
    uapi.BLKBSZSET: _privileged(_with_argument(_set_block_size)),
    uapi.BLKIOMIN: _int(lambda d: d.disk.block_size),
    uapi.BLKIOOPT: _int(lambda d: 0),
    uapi.BLKALIGNOFF: _int(lambda d: 0),
    uapi.BLKROGET: _int(lambda d: int(d.read_only)),
    uapi.BLKROSET: _privileged(_set_read_only),
    uapi.BLKDISCARDZEROES: _int(lambda d: 0),
    uapi.BLKSECDISCARD: _erase_securely,
    uapi.BLKSECTGET: _ushort(lambda d: MAX_SECTORS),
    uapi.BLKROTATIONAL: _ushort(lambda d: 0),
    uapi.BLKRAGET: _with_argument(_long(lambda d: d.disk.read_ahead)),
    uapi.BLKFRAGET: _with_argument(_long(lambda d: d.disk.read_ahead)),
    uapi.BLKRASET: _privileged(_set_read_ahead),
    uapi.BLKFRASET: _privileged(_set_read_ahead),
    uapi.BLKFLSBUF: _privileged(_flush_buffers),
    uapi.BLKRRPART: _privileged(_reread_partitions),
    uapi.BLKPG: _partition,
    uapi.BLKGETZONESZ: _int(lambda d: 0),
    uapi.BLKGETNRZONES: _int(lambda d: 0),
    uapi.BLKREPORTZONE: _no_zones,
    uapi.BLKRESETZONE: _no_zones,
    uapi.BLKOPENZONE: _no_zones,
    uapi.BLKCLOSEZONE: _no_zones,
    uapi.BLKFINISHZONE: _no_zones,
    HDIO_GETGEO: _with_argument(_refuse(errno.ENOTTY, "a loop device has no geometry")),
    **dict.fromkeys(uapi.BLKTRACE, _refuse(errno.EINVAL, "the device is not traced")),
    **dict.fromkeys(uapi.IOC_PR, _reserve),
    **dict.fromkeys(uapi.BLKCRYPTO, _refuse(errno.ENOTTY, "a loop device does not encrypt")),
}

# These three command numbers contain sizeof(size_t) of the caller, which can use only its own
# form; the data has the same size in both. In compat_blkdev_ioctl() BLKBSZGET returns what
# BLKSSZGET returns.
_SIZED = (uapi.BLKBSZGET, uapi.BLKBSZSET, uapi.BLKGETSIZE64)
_FOR_32_BITS = {cmd - uapi.WORDS_APART: BLOCK_IOCTLS[cmd] for cmd in _SIZED}
_FOR_32_BITS[uapi.BLKBSZGET - uapi.WORDS_APART] = BLOCK_IOCTLS[uapi.BLKSSZGET]


def find(cmd: int, word: int) -> Handler | None:
    """Return the handler of a command for a caller whose long has ``word`` bytes, or None."""
    if word == 8:
        return BLOCK_IOCTLS.get(cmd)
    return _FOR_32_BITS.get(cmd) or (None if cmd in _SIZED else BLOCK_IOCTLS.get(cmd))
