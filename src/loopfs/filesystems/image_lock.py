"""The lock on the part of an image that is mounted, which every sandbox of every user respects.

A lock of an open file description (fcntl(2), F_OFD_SETLK) on a range that no file has bytes in
and that stands for a part of the file: lock byte ``BASE`` + N is sector N. So parts that overlap
have locks that conflict, and programs that lock bytes of the image (qemu: 100 to 203) or
flock(2) it do not meet them. The kernel drops it with the description, whatever becomes of us.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from time import monotonic, sleep

from loopfs.driver.bdev import BlockDevice
from loopfs.errors import LoopfsError
from loopfs.filesystems import blockdev
from loopfs.filesystems.backing import BackingFile, Descriptor
from loopfs.uapi.block import SECTOR_SIZE
from loopfs.uapi.fcntl import Flock

# A file ends below 2^63 bytes, which are 2^54 sectors: the last lock byte is an off_t too.
BASE = 1 << 62
# Seconds. A mount that has just been undone, because its caller is gone or its sandbox was killed,
# has its lock until the last of its descriptors is closed: on the kernel's driver nobody sees it.
PATIENCE = 2.0
_OFD_PID = -1  # l_pid of a lock that a description has, and no process

# What a filesystem that cannot lock, or not so far beyond a file's end, says.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EOVERFLOW})
# Why a file that we have open cannot be opened once more: it was opened by another user, is
# on a read-only mount by now, is executed, or has a lease. EBADF is of the lock: the
# description that we have is not open for reading, or not for writing.
_NOT_ANEW = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EAGAIN})


class ImageLock:
    """A part of an image that is locked, until :meth:`release` or the last descriptor is closed.

    Attributes:
        without: a sentence: why it is not locked, or not as it should be; else "".
    """

    def __init__(self, file: Descriptor, offset: int, length: int, without: str) -> None:
        self._file: Descriptor | None = file
        self._part = offset, length
        self.without = without

    @classmethod
    def take(cls, device: BlockDevice, start: int, length: int, *, write: bool) -> ImageLock:
        """Lock what is below a part of a device; for writing, or for reading.

        It waits ``PATIENCE`` for the lock of another, and the image may lie on a FUSE filesystem
        whose server has to answer: to be called by a thread that may wait.

        Args:
            device: bound to a file, or to another of our devices.
            start, length: bytes of the device. Two parts that share a sector of the file
                overlap.
        Raises:
            LoopfsError: EBUSY: another mount has an overlapping part, and it or this one is for
                writing. The sentence names the file.
            OSError: EIO: there is no file, or none any more. Others as open(2) and fcntl(2).
        """
        backing, offset, length = lowest(device, start, length)
        file, without = _description(backing, write)
        kind = fcntl.F_WRLCK if write else fcntl.F_RDLCK
        try:
            problem = _lock(file.fd, range_of(kind, offset, length))
        except BlockingIOError:
            raise LoopfsError(errno.EBUSY, _refusal(backing.path, write)) from None
        return cls(file, offset, length, f"{backing.path} {problem}" if problem else without)

    def fileno(self) -> int:
        """A descriptor of what has the lock: who has a duplicate of it has the lock."""
        assert self._file is not None
        return self._file.fd

    def for_writing(self, device: BlockDevice) -> None:
        """Lock for writing what is locked for reading; at no moment it is not locked.

        Args:
            device: what was given to :meth:`take`.
        Raises:
            LoopfsError: EBUSY: another mount has an overlapping part.
            OSError: as of :meth:`take`.
        """
        backing, *_ = lowest(device, 0, device.capacity)
        file, without = _description(backing, write=True)
        problem = _lock(file.fd, range_of(fcntl.F_RDLCK, *self._part))
        self.release()
        self._file = file
        try:
            problem = problem or _lock(file.fd, range_of(fcntl.F_WRLCK, *self._part))
        except BlockingIOError:
            raise LoopfsError(errno.EBUSY, _refusal(backing.path, write=True)) from None
        self.without = f"{backing.path} {problem}" if problem else without

    def for_reading(self) -> None:
        """Lock only for reading what is locked for writing."""
        assert self._file is not None
        _lock(self._file.fd, range_of(fcntl.F_RDLCK, *self._part))

    def release(self) -> None:
        """Unlock it, at once and for all who have a duplicate of the descriptor."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # there was no lock, or a server that is gone had it
                _set(file.fd, range_of(fcntl.F_UNLCK, *self._part))


def lowest(device: BlockDevice, start: int, length: int) -> tuple[BackingFile, int, int]:
    """The file below a device and those that it is bound to, and where in it a part lies.

    Args:
        start, length: bytes of the device.
    Returns:
        the file, and the offset and length of the part in bytes.
    Raises:
        OSError: EIO: there is no file.
    """
    while True:
        extent = blockdev.extent_of(device, start, length)
        if extent is None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        backing, start, length = extent
        if backing.loop_device is None:
            return backing, start, length
        device = backing.loop_device


def _description(backing: BackingFile, write: bool) -> tuple[Descriptor, str]:
    """A descriptor to lock, and what is to be said of it.

    The descriptor of the device shares its description with the process that bound it: a lock there
    is his to drop, and another device that he bound with it has the same.
    """
    mode = os.O_RDWR if write else os.O_RDONLY
    try:
        return backing.opened_anew(mode), ""
    except OSError as problem:
        if problem.errno not in _NOT_ANEW:
            raise
        why = f"{backing.path} cannot be opened once more ({problem.strerror})"
    sentence = f"{why}: who has the device's descriptor of it can mount it twice"
    return backing.duplicate(), sentence


def range_of(kind: int, offset: int, length: int) -> bytes:
    """struct flock of the lock for a part of a file.

    Args:
        kind: F_RDLCK, F_WRLCK or F_UNLCK.
        offset, length: bytes of the file; the length is not 0.
    """
    first, last = offset // SECTOR_SIZE, (offset + length - 1) // SECTOR_SIZE
    return Flock(kind, BASE + first, last - first + 1).pack()


def _lock(fd: int, flock: bytes) -> str:
    """Set a lock; the words for why there is none, or "".

    Raises:
        BlockingIOError: another mount has one.
    """
    end = monotonic() + PATIENCE
    while True:
        try:
            _set(fd, flock)
            return ""
        except BlockingIOError:
            other = Flock.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, flock))
            if other.type == fcntl.F_UNLCK:  # it has just gone
                continue
            if other.pid == _OFD_PID and other.start >= BASE:
                if monotonic() >= end:
                    raise
                sleep(0.02)
                continue
            who = "another program" if other.pid == _OFD_PID else f"process {other.pid}"
            return f"is not locked for the mount: {who} has locked all of it"
        except OSError as problem:
            if problem.errno not in _NO_LOCKS and problem.errno != errno.EBADF:
                raise
            return f"cannot be locked ({problem.strerror}): it could be mounted twice"


def _set(fd: int, flock: bytes) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, flock)


def _refusal(path: str, write: bool) -> str:
    how = "it is mounted" if write else "it is mounted for writing"
    return f"{path}: {how} by another sandbox, or from another device of this one; unmount it there"
