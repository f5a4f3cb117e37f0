"""The device that a filesystem is on, with an overlay of blocks that a replay has changed."""

from __future__ import annotations

from loopfs.file_device import Buffer
from loopfs.file_device import Device as Lower
from loopfs.lean import Sequence


class Device:
    """A device. Offsets and lengths are in bytes; access beyond its end fails with EIO.

    Args:
        lower: where the bytes are stored.

    Attributes:
        overlay: blocks that are read instead of those of ``lower``, by offset, all of one size.
    """

    def __init__(self, lower: Lower) -> None:
        self.overlay: dict[int, bytes] = {}
        self.lower = lower
        self.write = lower.write
        self.zero = lower.zero
        self.discard = lower.discard
        self.barrier = lower.barrier
        self.written = lower.written

    @property
    def size(self) -> int:
        return self.lower.size

    @property
    def read_only(self) -> bool:
        return self.lower.read_only

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        data = self.lower.read(offset, length)
        if self.overlay:
            patched = bytearray(data)
            self._lay_over(offset, memoryview(patched))
            return bytes(patched)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill all of ``buffer``."""
        self.lower.read_into(offset, buffer)
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


def write_blocks(
    device: Device, size: int, numbers: Sequence[int], blocks: Sequence[Buffer]
) -> None:
    """Write blocks of ``size`` bytes to ascending block numbers, adjacent blocks in one call."""
    begin = 0
    while begin < len(numbers):
        end = begin + 1
        while end < len(numbers) and numbers[end] == numbers[end - 1] + 1:
            end += 1
        device.write(numbers[begin] * size, *blocks[begin:end])
        begin = end
