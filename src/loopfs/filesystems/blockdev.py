"""I/O on a block device: where a request is made in the backing file, and the device's bounds.

A transfer is truncated at the end of the device. A write that begins there fails with ENOSPC, a
read returns nothing (block/fops.c). I/O on a backing file that is served by a process is made in
another thread, all other I/O in the calling thread.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from time import monotonic_ns

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.statistics import DISCARD, FLUSH, READ, WRITE
from loopfs.filesystems.backing import BackingFile
from loopfs.filesystems.threads import spawn
from loopfs.fuse.operations import Buffer
from loopfs.fuse.session import Request
from loopfs.uapi.falloc import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
)
from loopfs.uapi.fuse import WRITE_OUT

ZEROES = bytes(1 << 20)
_ZERO = FALLOC_FL_ZERO_RANGE
_PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
FALLOCATE_FLAGS = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE
FALLOCATE_MODES = frozenset({_ZERO, _ZERO | FALLOC_FL_KEEP_SIZE, _PUNCH})


class _Counted:
    """Count a request of one kind and length in the statistics of a device."""

    __slots__ = ("_kind", "_length", "_start", "_statistics")

    def __init__(self, device: BlockDevice, kind: int, length: int) -> None:
        self._statistics = device.statistics
        self._kind = kind
        self._length = length

    def __enter__(self) -> None:
        self._statistics.begin(self._kind)
        self._start = monotonic_ns()

    def __exit__(self, *problem: object) -> None:
        self._statistics.end(self._kind, self._length, monotonic_ns() - self._start)


def check_aligned(device: BlockDevice, offset: int, length: int) -> None:
    """Check the alignment of a transfer with O_DIRECT, as far as it is within the device.

    Args:
        offset, length: the transfer, in bytes.
    Raises:
        OSError: EINVAL if they are not multiples of the block size.
    """
    rest = device.capacity - offset
    if rest > 0 and (offset | min(length, rest)) % device.disk.block_size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def read(
    device: BlockDevice, request: Request, offset: int, size: int, buffer: memoryview
) -> Buffer | None:
    """Carry out FUSE_READ into ``buffer``. Return None if the request is or will be answered."""
    extent = extent_of(device, offset, size)
    if extent is None:
        return b""
    backing, position, length = extent
    if not backing.slow:
        with _Counted(device, READ, length):
            view = backing.view(position, length)
            if view is not None:
                request.reply_from(view)
                return None
            backing.read_into(buffer[:length], position)
            return buffer[:length]

    def read_slowly() -> None:
        own = memoryview(bytearray(length))
        with _Counted(device, READ, length):
            backing.read_into(own, position)
        request.reply(own)

    spawn(answering(request, read_slowly))
    return None


def write(
    device: BlockDevice, request: Request, offset: int, data: memoryview, answer: int | None = None
) -> int | None:
    """Carry out FUSE_WRITE and return the bytes written; None if a thread answers the request.

    Args:
        answer: the length to report, if it is more than that of ``data``.
    """
    extent = extent_of(device, offset, len(data))
    if extent is None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    backing, position, length = extent
    if not backing.slow:
        with _Counted(device, WRITE, length):
            backing.write(data[:length], position, from_cache=request.from_cache)
        return answer or length
    own = bytes(data[:length])  # the buffer is reused for the next request

    def write_slowly() -> None:
        with _Counted(device, WRITE, length):
            backing.write(own, position, from_cache=request.from_cache)
        request.reply(WRITE_OUT.pack(answer or length, 0))

    spawn(answering(request, write_slowly))
    return None


def store(device: BlockDevice, offset: int, data: bytes) -> None:
    """Write a part of a device, up to its end; can block. Raises OSError as a disk does.

    Args:
        offset: bytes from the start of the device.
    """
    extent = extent_of(device, offset, len(data))
    if extent is not None:
        backing, position, length = extent
        with _Counted(device, WRITE, length):
            backing.write(data[:length], position)


def sync(device: BlockDevice, datasync: bool) -> None:
    """Sync the backing file, as fsync(2) or fdatasync(2). Raises OSError EIO if there is none."""
    if not device.disk.write_cache:
        return
    backing = _backing_of(device)
    if backing is None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with _Counted(device, FLUSH, 0):
        backing.sync(datasync)


def _backing_of(device: BlockDevice) -> BackingFile | None:
    window = device.disk.window
    backing = window.backing if window is not None else None
    return backing if isinstance(backing, BackingFile) else None


class SyncErrors:
    """The failed syncs of the backing file that an open file description has already reported.

    The kernel reports an error once to each description of a file, but all descriptions of a device
    share one description of the backing file. So the errors are tracked here (lib/errseq.c).
    """

    __slots__ = ("_backing", "_device", "_told")

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._backing = _backing_of(device)
        self._told = self._backing.failure if self._backing else None

    def sync(self, datasync: bool) -> None:
        """Sync as :func:`sync`; also raise the error of another description's sync since then."""
        try:
            sync(self._device, datasync)
        finally:
            untold = self._untold()
        if untold is not None:
            raise OSError(untold.errno, os.strerror(untold.errno or errno.EIO))

    def _untold(self) -> OSError | None:
        backing = _backing_of(self._device)
        if backing is not self._backing:  # bound to another file since
            self._backing, self._told = backing, None
        failure = backing.failure if backing else None
        untold = None if failure is self._told else failure
        self._told = failure
        return untold


def fallocate(device: BlockDevice, mode: int, offset: int, length: int) -> None:
    """Carry out fallocate(2) on a block device (blkdev_fallocate).

    Args:
        offset, length: the range in bytes.
    Raises:
        OSError: EOPNOTSUPP (a mode other than zero range and punch hole), EINVAL (beyond the
            end, unless FALLOC_FL_KEEP_SIZE; not aligned to blocks), EPERM (read-only).
    """
    if mode & ~FALLOCATE_FLAGS:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if offset >= device.capacity:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if offset + length > device.capacity:
        if not mode & FALLOC_FL_KEEP_SIZE:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        length = device.capacity - offset
    if (offset | length) % device.disk.block_size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if mode not in FALLOCATE_MODES:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if device.read_only:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    if mode == _PUNCH:
        # A punched range of a device must read as zeroes, even if the file does not support holes.
        with _Counted(device, WRITE, length):
            _fallocate(device, _PUNCH, offset, length, or_write=True)
    else:
        zero_out(device, offset, length)


def zero_out(device: BlockDevice, offset: int, length: int) -> None:
    """Make a range of bytes read as zeroes (BLKZEROOUT)."""
    with _Counted(device, WRITE, length):
        _fallocate(device, _ZERO | FALLOC_FL_KEEP_SIZE, offset, length, or_write=True)


def discard(device: BlockDevice, offset: int, length: int) -> None:
    """Release the storage of a range (BLKDISCARD). Raises OSError EOPNOTSUPP."""
    with _Counted(device, DISCARD, length):
        _fallocate(device, _PUNCH, offset, length, or_write=False)


def _fallocate(device: BlockDevice, mode: int, offset: int, length: int, *, or_write: bool) -> None:
    extent = extent_of(device, offset, length)
    if extent is None:
        return
    backing, position, length = extent
    try:
        backing.fallocate(mode, position, length)
    except OSError as problem:
        if problem.errno != errno.EOPNOTSUPP or not or_write:
            raise
        for start in range(0, length, len(ZEROES)):
            backing.write(memoryview(ZEROES)[: length - start], position + start)


def answering(request: Request, call: Callable[[], None]) -> Callable[[], None]:
    """Return a function that makes a call and answers the request with its exception, if any."""

    def answered() -> None:
        try:
            call()
        except Exception as problem:
            request.fail_with(problem)

    return answered


def extent_of(device: BlockDevice, offset: int, length: int) -> tuple[BackingFile, int, int] | None:
    """Return the backing file, the offset in it and the length of a transfer, in bytes.

    Returns:
        None if nothing remains of the transfer.
    Raises:
        DriverError: EIO if the disk has no data there.
    """
    extent = device.extent(offset, length)
    if extent is None:
        return None
    backing, position, length = extent
    assert isinstance(backing, BackingFile)
    return backing, position, length
