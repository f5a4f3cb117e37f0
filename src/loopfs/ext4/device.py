"""What a filesystem is on: a file or a block device, by pread(2) and pwritev(2)."""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.ext4.errors import refused
from loopfs.lean import Sequence
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

Buffer = bytes | bytearray | memoryview

_PIECE = 1 << 20  # bytes of zeros at a time
_PUNCH_LEAST = 64 << 10  # bytes; fewer zeros are sooner written than punched
_VECTORS = 1000  # below IOV_MAX
_ZEROS = memoryview(bytes(_PIECE))


class Device:
    """Offsets and lengths are bytes. What is outside of it is EIO; what fails is OSError.

    Args:
        fd: stays the caller's.

    Attributes:
        overlay: blocks that are read instead of what is there, by their offset, all of one size.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.overlay: dict[int, bytes] = {}
        self.size = os.lseek(fd, 0, os.SEEK_END)  # fstat(2) says 0 of a block device

    def read(self, offset: int, length: int) -> bytes:
        """All of ``length`` bytes."""
        data = os.pread(self._fd, length, offset) if offset + length <= self.size else b""
        if len(data) != length:
            raise refused(errno.EIO)
        if self.overlay:
            patched = bytearray(data)
            self._lay_over(offset, memoryview(patched))
            return bytes(patched)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """The whole of ``buffer``."""
        if offset + len(buffer) > self.size:
            raise refused(errno.EIO)
        if os.preadv(self._fd, [buffer], offset) != len(buffer):
            raise refused(errno.EIO)
        if self.overlay:
            self._lay_over(offset, buffer)

    def _lay_over(self, offset: int, buffer: memoryview) -> None:
        size = len(next(iter(self.overlay.values())))
        end = offset + len(buffer)
        for place in range(offset - offset % size, end, size):
            block = self.overlay.get(place)
            if block is not None:
                begin, stop = max(place, offset), min(place + size, end)
                buffer[begin - offset : stop - offset] = block[begin - place : stop - place]

    def write(self, offset: int, *parts: Buffer) -> None:
        """All of ``parts``, one behind the other."""
        if offset + sum(map(len, parts)) > self.size:
            raise refused(errno.EIO)
        for begin in range(0, len(parts), _VECTORS):
            some = parts[begin : begin + _VECTORS]
            length = sum(map(len, some))
            done = os.pwritev(self._fd, some, offset)
            if done != length:  # the image's own filesystem is full: the next try says so
                rest = memoryview(b"".join(some))[done:]
                while rest:
                    rest = rest[os.pwrite(self._fd, rest, offset + length - len(rest)) :]
            offset += length

    def zero(self, offset: int, length: int) -> None:
        """Have it read as zeros."""
        if length >= _PUNCH_LEAST and offset + length <= self.size:
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
        """The contents are of no use any more. EOPNOTSUPP where that means nothing."""
        if offset + length > self.size:
            raise refused(errno.EIO)
        syscalls.fallocate(self._fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)

    def sync(self) -> None:
        """Until what was written is on the disk."""
        os.fdatasync(self._fd)


def write_blocks(
    device: Device, size: int, numbers: Sequence[int], blocks: Sequence[Buffer]
) -> None:
    """Blocks of ``size`` bytes at their numbers, which ascend; neighbours in one call."""
    begin = 0
    while begin < len(numbers):
        end = begin + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        device.write(numbers[begin] * size, *blocks[begin:end])
        begin = end
