"""Keeping a change to a part of a device of which the engine holds an unchanged copy."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from loopfs.driver.bdev import BlockDevice
from loopfs.filesystems import blockdev
from loopfs.filesystems.backing import BackingFile
from loopfs.fuse.session import Request
from loopfs.lean import NamedTuple

Change = Callable[[bytes], bytes]


class _Part(NamedTuple):
    start: int
    end: int
    change: Change


class Rewriting:
    """The writes of an engine, in which one part of the device is changed.

    The lock is held while that part is written, so that the image has the latest change,
    whatever is written at the same time.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._part: _Part | None = None
        self._written = False  # the part was written since begin(), and so changed
        self._lock = threading.Lock()

    def begin(self, start: int, length: int, change: Change) -> None:
        """Change a part of the device whenever it is written from now on.

        Args:
            start, length: the part, in bytes.
            change: is called with the data of that part, and returns as many bytes.
        """
        with self._lock:
            self._part = _Part(start, start + length, change)
            self._written = False

    def apply(self) -> None:
        """Change the part in the image, which must have all data written before :meth:`begin`.

        Raises:
            OSError: as a disk does.
        """
        with self._lock:
            if self._part is not None and not self._written:
                start, end, change = self._part
                self.store(start, change(self.read(start, end - start)))

    def read(self, start: int, length: int) -> bytes:
        """Return a part of the device as it is in the image. Raises OSError as a disk does."""
        backing, place, length = self._extent(start, length)
        data = bytearray(length)
        backing.read_into(memoryview(data), place)
        return bytes(data)

    def store(self, start: int, data: bytes) -> None:
        """Write a part of the device to the image. Raises OSError as a disk does."""
        backing, place, _ = self._extent(start, len(data))
        backing.write(data, place)

    def _extent(self, start: int, length: int) -> tuple[BackingFile, int, int]:
        extent = blockdev.extent_of(self._device, start, length)
        if extent is None or extent[2] < length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return extent

    def write(
        self, request: Request, offset: int, data: memoryview, answer: int | None = None
    ) -> int | None:
        """As :func:`loopfs.filesystems.blockdev.write`."""
        part = self._part
        if part is None or offset >= part.end or offset + len(data) <= part.start:
            return blockdev.write(self._device, request, offset, data, answer)
        with self._lock:
            self._written = True
            offset, changed = self._changed(offset, data)
            return blockdev.write(self._device, request, offset, changed, answer)

    def _changed(self, offset: int, data: memoryview) -> tuple[int, memoryview]:
        """Extend data that overlaps the part to all of the part, and change the part in it."""
        assert self._part is not None
        start, end, change = self._part
        first, last = min(start, offset), max(end, offset + len(data))
        out = bytearray(last - first)
        part = slice(start - first, end - first)
        if (first, last) != (offset, offset + len(data)):
            out[part] = self.read(start, end - start)
        out[offset - first : offset - first + len(data)] = data
        out[part] = change(bytes(out[part]))
        return first, memoryview(out)
