"""The device that a filesystem of loopfs is on: a protocol, and an implementation on a file."""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.lean import Protocol
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

Buffer = bytes | bytearray | memoryview

_PUNCH_LEAST = 64 << 10  # bytes; writing fewer zeros is faster than punching a hole
_PIECE = 1 << 20  # bytes of zeros written at a time
_VECTORS = 1000  # below IOV_MAX
_ZEROS = memoryview(bytes(_PIECE))


class Device(Protocol):
    """A block device. Offsets and lengths are in bytes.

    Access beyond its end fails with EIO. Methods raise OSError with the errno for the caller.
    """

    @property
    def size(self) -> int: ...

    @property
    def read_only(self) -> bool:
        """Whether writing is impossible, whatever the mount options are."""

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of ``buffer``."""

    def write(self, offset: int, *parts: Buffer) -> None:
        """Write all of ``parts``, one after the other."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros."""

    def discard(self, offset: int, length: int) -> None:
        """Discard a range, whose contents are not needed. EOPNOTSUPP: it cannot be discarded."""

    def barrier(self) -> None:
        """Write everything to disk that was written before, so that later writes follow it."""

    def written(self) -> None:
        """Make everything written visible to other readers of the device."""

    def sync(self) -> None:
        """Write everything to disk, and make it visible to other readers."""


class FileDevice:
    """A window of an open file.

    Args:
        fd: the file; it belongs to the caller.
        size: bytes; None: up to the end of the file.
        offset: where in the file the window begins, in bytes.
    """

    def __init__(self, fd: int, size: int | None = None, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset
        # Not fstat(2), which reports 0 for a block device.
        self._size = os.lseek(fd, 0, os.SEEK_END) - offset if size is None else size

    @property
    def size(self) -> int:
        return self._size

    @property
    def read_only(self) -> bool:
        return False

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise _refused(errno.EIO)
        data = os.pread(self._fd, length, self._offset + offset)
        if len(data) != length:
            raise _refused(errno.EIO)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset + len(buffer) > self._size:
            raise _refused(errno.EIO)
        if os.preadv(self._fd, [buffer], self._offset + offset) != len(buffer):
            raise _refused(errno.EIO)

    def write(self, offset: int, *parts: Buffer) -> None:
        if offset + sum(map(len, parts)) > self._size:
            raise _refused(errno.EIO)
        for begin in range(0, len(parts), _VECTORS):
            some = parts[begin : begin + _VECTORS]
            length = sum(map(len, some))
            done = os.pwritev(self._fd, some, self._offset + offset)
            if done != length:
                # The filesystem of the image is full, or a limit is reached: writing again fails.
                rest = memoryview(b"".join(some))[done:]
                while rest:
                    at = self._offset + offset + length - len(rest)
                    rest = rest[os.pwrite(self._fd, rest, at) :]
            offset += length

    def zero(self, offset: int, length: int) -> None:
        if length >= _PUNCH_LEAST and offset + length <= self._size:
            try:
                return self.discard(offset, length)
            except OSError as problem:
                if problem.errno not in (errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL):
                    raise
        while length > 0:
            piece = min(length, _PIECE)
            self.write(offset, _ZEROS[:piece])
            offset, length = offset + piece, length - piece
        return None

    def discard(self, offset: int, length: int) -> None:
        if offset + length > self._size:
            raise _refused(errno.EIO)
        mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
        syscalls.fallocate(self._fd, mode, self._offset + offset, length)

    def barrier(self) -> None:
        os.fdatasync(self._fd)

    def written(self) -> None:
        return

    def sync(self) -> None:
        os.fsync(self._fd)


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
