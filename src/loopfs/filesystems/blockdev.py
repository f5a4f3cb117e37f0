"""Data of a block device: where a request lands in the backing file, and its edges.

A transfer is cut at the device's end; a write that begins there gets ENOSPC, a read
nothing (block/fops.c). Work on a backing file that a process of the sandbox serves is
done in a thread of its own, everything else by the caller.
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
    """A request of one kind about so many bytes of a device, from its beginning to its end."""

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
    """What O_DIRECT asks of what of a transfer lies within the device, in bytes.

    Raises:
        OSError: EINVAL: not multiples of the block size.
    """
    rest = device.capacity - offset
    if rest > 0 and (offset | min(length, rest)) % device.disk.block_size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def read(
    device: BlockDevice, request: Request, offset: int, size: int, buffer: memoryview
) -> Buffer | None:
    """FUSE_READ; ``buffer`` has room for the answer. None when a thread will answer."""
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
    """FUSE_WRITE: how many bytes were stored. None when a thread will answer.

    Args:
        answer: what is said to have been stored, if it is to be more than what is to be.
    """
    extent = extent_of(device, offset, len(data))
    if extent is None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    backing, position, length = extent
    if not backing.slow:
        with _Counted(device, WRITE, length):
            backing.write(data[:length], position, from_cache=request.from_cache)
        return answer or length
    own = bytes(data[:length])  # the buffer is the next request's

    def write_slowly() -> None:
        with _Counted(device, WRITE, length):
            backing.write(own, position, from_cache=request.from_cache)
        request.reply(WRITE_OUT.pack(answer or length, 0))

    spawn(answering(request, write_slowly))
    return None


def store(device: BlockDevice, offset: int, data: bytes) -> None:
    """Write a part of a device, as far as it has it; waits for the image. Raises OSError as a disk.

    Args:
        offset: bytes from the device's start.
    """
    extent = extent_of(device, offset, len(data))
    if extent is not None:
        backing, position, length = extent
        with _Counted(device, WRITE, length):
            backing.write(data[:length], position)


def sync(device: BlockDevice, datasync: bool) -> None:
    """fsync(2), fdatasync(2). Raises OSError EIO where there is no file any more."""
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
    """What one open file description of a device has been told of failed syncs of the file below.

    The kernel tells each description of a file once, and for all of a device there is but one of
    its file: so each of them is told here (lib/errseq.c).
    """

    __slots__ = ("_backing", "_device", "_told")

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._backing = _backing_of(device)
        self._told = self._backing.failure if self._backing else None

    def sync(self, datasync: bool) -> None:
        """As :func:`sync`; raises what another's sync has met since, too."""
        try:
            sync(self._device, datasync)
        finally:
            untold = self._untold()
        if untold is not None:
            raise OSError(untold.errno, os.strerror(untold.errno or errno.EIO))

    def _untold(self) -> OSError | None:
        backing = _backing_of(self._device)
        if backing is not self._backing:  # bound since
            self._backing, self._told = backing, None
        failure = backing.failure if backing else None
        untold = None if failure is self._told else failure
        self._told = failure
        return untold


def fallocate(device: BlockDevice, mode: int, offset: int, length: int) -> None:
    """fallocate(2) on a block device (blkdev_fallocate); ``offset``, ``length`` in bytes.

    Raises:
        OSError: EOPNOTSUPP (another mode than zero range and punch hole), EINVAL (past
            the end, unless FALLOC_FL_KEEP_SIZE; not aligned to blocks), EPERM (read-only).
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
        # A device promises zeroes after a hole was punched, with or without holes below.
        with _Counted(device, WRITE, length):
            _fallocate(device, _PUNCH, offset, length, or_write=True)
    else:
        zero_out(device, offset, length)


def zero_out(device: BlockDevice, offset: int, length: int) -> None:
    """BLKZEROOUT: make a range of bytes read as zeroes."""
    with _Counted(device, WRITE, length):
        _fallocate(device, _ZERO | FALLOC_FL_KEEP_SIZE, offset, length, or_write=True)


def discard(device: BlockDevice, offset: int, length: int) -> None:
    """BLKDISCARD: give a range's storage back. Raises OSError EOPNOTSUPP."""
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
    """``call``, but an exception becomes the request's answer."""

    def answered() -> None:
        try:
            call()
        except Exception as problem:
            request.fail_with(problem)

    return answered


def extent_of(device: BlockDevice, offset: int, length: int) -> tuple[BackingFile, int, int] | None:
    """The backing file, offset in it and bytes of a transfer; None when nothing is left of it.

    Raises:
        DriverError: EIO where the disk has no data.
    """
    extent = device.extent(offset, length)
    if extent is None:
        return None
    backing, position, length = extent
    assert isinstance(backing, BackingFile)
    return backing, position, length
