"""What a filesystem of ours is on: a protocol, and a window of a file as one."""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.lean import Protocol
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

Buffer = bytes | bytearray | memoryview

_PUNCH_LEAST = 64 << 10  # bytes; fewer zeros are sooner written than punched
_PIECE = 1 << 20  # bytes of zeros at a time
_VECTORS = 1000  # below IOV_MAX
_ZEROS = memoryview(bytes(_PIECE))


class Device(Protocol):
    """A block device. Offsets and lengths are bytes.

    What is outside of it is EIO; what fails is OSError, with the errno that a caller shall see.
    """

    @property
    def size(self) -> int: ...

    @property
    def read_only(self) -> bool:
        """Nothing could be written, whatever the mount is for."""

    def read(self, offset: int, length: int) -> bytes:
        """All of ``length`` bytes."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The whole of ``buffer``."""

    def write(self, offset: int, *parts: Buffer) -> None:
        """All of ``parts``, one behind the other."""

    def zero(self, offset: int, length: int) -> None:
        """Have it read as zeros."""

    def discard(self, offset: int, length: int) -> None:
        """The contents are of no use any more; EOPNOTSUPP where that means nothing."""

    def barrier(self) -> None:
        """What was written is on the disk before what will be."""

    def written(self) -> None:
        """What was written is to be seen by all who read the device."""

    def sync(self) -> None:
        """Both: until what was written is on the disk."""


class FileDevice:
    """A window of an open file.

    Args:
        fd: stays the caller's.
        size: bytes; those of the file when it is None.
        offset: where in the file the window begins.
    """

    def __init__(self, fd: int, size: int | None = None, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset
        # Not fstat(2), which says 0 of a block device.
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
                # The image's own filesystem is full, or beyond a limit: the next try says which.
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
