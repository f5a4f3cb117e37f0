"""The memory devices of /dev as files of ours (drivers/char/mem.c, drivers/char/random.c).

They are used where /dev is bind-mounted without the host's nodes on it. The other devices
(terminals, fuse, kvm) cannot be implemented through FUSE: opening them fails with ENXIO.
"""

from __future__ import annotations

import os
import stat

from loopfs import memory_devices
from loopfs.filesystems.dev_layout import NUMBERS, hidden_name
from loopfs.filesystems.nodes import Node
from loopfs.fuse.operations import Buffer
from loopfs.uapi.fuse import Attr, encode_dev


class Character(Node):
    """A character device; its name is its name in the hidden directory."""

    __slots__ = ("number",)

    def __init__(self, path: str, ino: int, special: int, data: int, now: int) -> None:
        number = NUMBERS[path]
        rdev = encode_dev(number.major, number.minor)
        super().__init__(hidden_name(path), ino, stat.S_IFCHR, rdev, now, None)
        self.mode = number.mode
        self.special, self.data = special, data
        self.number = os.makedev(number.major, number.minor)

    @property
    def device_number(self) -> int:
        return self.number

    def attr(self, nodeid: int) -> Attr:
        attr = super().attr(nodeid)
        if nodeid == self.special:
            return attr
        return attr._replace(size=memory_devices.size_of(self.name))

    def check_opens(self) -> None:
        """Check that the device can be opened. Raises OSError ENXIO."""
        memory_devices.check_opens(self.name)

    def read(self, size: int) -> Buffer:
        return memory_devices.read(self.name, size)

    def write(self, size: int) -> int:
        """Return how many bytes were written. Raises OSError ENOSPC."""
        return memory_devices.write(self.name, size)
