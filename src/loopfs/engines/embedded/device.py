"""A device as the file object that the parsers read."""

from __future__ import annotations

import io
import os

from loopfs.file_device import FileDevice


class DeviceFile(io.RawIOBase):
    """A device as a file object; the end of the device is the end of the file."""

    def __init__(self, device: FileDevice) -> None:
        self._device = device
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._device.size}
        self._place = max(start[whence] + offset, 0)
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(min(len(buffer), self._device.size - self._place), 0)
        self._device.read_into(self._place, memoryview(buffer)[:length])
        self._place += length
        return length
