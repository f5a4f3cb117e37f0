"""The lock on a mounted part of an image, which the sandboxes of all users respect.

It is an open file description lock (fcntl(2), F_OFD_SETLK) on a range beyond the end of any file
that represents a part of the file: lock byte ``BASE`` + N is sector N. So the locks of overlapping
parts conflict, but not with locks of programs on bytes of the image (qemu: 100 to 203) or with
flock(2). The kernel releases the lock when the description is closed, even after a crash.
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

# A file ends below 2^63 bytes, which are 2^54 sectors; so the last lock byte is a valid off_t.
BASE = 1 << 62
# Seconds to wait for another lock. A mount that was just undone, because its caller has ended or
# its sandbox was killed, keeps its lock until its last descriptor is closed. With the kernel's
# driver this delay is not visible.
PATIENCE = 2.0
_OFD_PID = -1  # l_pid of a lock that belongs to an open file description

# Errors of a filesystem that does not support locks, or not so far beyond the end of a file.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EOVERFLOW})
# Reasons why a file that we have open cannot be reopened: it was opened by another user, is on a
# mount that is read-only by now, is being executed, or has a lease. EBADF (see _lock) means that
# the description that we have is not open for reading, or not for writing.
_NOT_ANEW = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY, errno.EAGAIN})


class ImageLock:
    """A locked part of an image, until :meth:`release` or until the last descriptor is closed.

    Attributes:
        without: a sentence that says why the lock is missing or limited; else "".
    """

    def __init__(self, file: Descriptor, offset: int, length: int, without: str) -> None:
        self._file: Descriptor | None = file
        self._part = offset, length
        self.without = without

    @classmethod
    def take(cls, device: BlockDevice, start: int, length: int, *, write: bool) -> ImageLock:
        """Lock the part of an image that is below a part of a device, for writing or for reading.

        It waits up to ``PATIENCE`` seconds for another lock, and can block because the image may be
        on a FUSE filesystem: it must be called by a thread that can block.

        Args:
            device: bound to a file, or to another of our devices.
            start, length: bytes of the device. Two parts that share a sector of the file
                overlap.
        Raises:
            LoopfsError: EBUSY if another mount uses an overlapping part and one of the two is for
                writing. The message names the file.
            OSError: EIO if the device has no file (any more). Others as open(2) and fcntl(2).
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
        """Return a descriptor of the locked description; each duplicate holds the lock."""
        assert self._file is not None
        return self._file.fd

    def for_writing(self, device: BlockDevice) -> None:
        """Change a lock for reading to one for writing, without unlocking it in between.

        Args:
            device: the device that was passed to :meth:`take`.
        Raises:
            LoopfsError: EBUSY if another mount uses an overlapping part.
            OSError: as :meth:`take`.
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
        """Change a lock for writing to one for reading."""
        assert self._file is not None
        _lock(self._file.fd, range_of(fcntl.F_RDLCK, *self._part))

    def release(self) -> None:
        """Unlock at once, also for all who have a duplicate of the descriptor."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # there was no lock, or the server that had it has ended
                _set(file.fd, range_of(fcntl.F_UNLCK, *self._part))


def lowest(device: BlockDevice, start: int, length: int) -> tuple[BackingFile, int, int]:
    """Return the file below a device, through all devices in between, and a part's place in it.

    Args:
        start, length: bytes of the device.
    Returns:
        the file, and the offset and length of the part in bytes.
    Raises:
        OSError: EIO if there is no file.
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
    """Return a descriptor to lock, and a sentence about its limitation or "".

    The descriptor of the device shares its description with the process that bound it: that process
    can release a lock on it, and another device bound with it would share the lock.
    """
    mode = os.O_RDWR if write else os.O_RDONLY
    try:
        return backing.opened_anew(mode), ""
    except OSError as problem:
        if problem.errno not in _NOT_ANEW:
            raise
        why = f"{backing.path} cannot be reopened ({problem.strerror})"
    sentence = f"{why}: a process that has the device's descriptor of it can mount it twice"
    return backing.duplicate(), sentence


def range_of(kind: int, offset: int, length: int) -> bytes:
    """Return the struct flock of the lock for a part of a file.

    Args:
        kind: F_RDLCK, F_WRLCK or F_UNLCK.
        offset, length: bytes of the file; the length must not be 0.
    """
    first, last = offset // SECTOR_SIZE, (offset + length - 1) // SECTOR_SIZE
    return Flock(kind, BASE + first, last - first + 1).pack()


def _lock(fd: int, flock: bytes) -> str:
    """Set a lock. Return the reason if it cannot be set, else "".

    Raises:
        BlockingIOError: another mount holds a conflicting lock.
    """
    end = monotonic() + PATIENCE
    while True:
        try:
            _set(fd, flock)
            return ""
        except BlockingIOError:
            other = Flock.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, flock))
            if other.type == fcntl.F_UNLCK:  # it has just been released
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
