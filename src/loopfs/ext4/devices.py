"""Character devices that open, though a FUSE mount of a user namespace is nodev: memory devices.

Such a node has two faces, as a node of /dev has (:mod:`loopfs.filesystems.faces`): special to look
at, regular to open. Its names are looked up each time.
"""

from __future__ import annotations

import stat

from loopfs import memory_devices
from loopfs.ext4.inode import Inode
from loopfs.fuse.tree import Handle
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FOPEN_NOFLUSH, Attr


def name_of(node: Inode) -> bytes | None:
    """What the device is called, if it opens."""
    return memory_devices.NAMES.get(node.rdev) if stat.S_ISCHR(node.mode) else None


class DeviceHandle(Handle[Inode]):
    """An open device."""

    __slots__ = ("name",)

    def __init__(self, node: Inode, name: bytes) -> None:
        """Raises OSError ENXIO."""
        memory_devices.check_opens(name)
        super().__init__(node, FOPEN_DIRECT_IO | FOPEN_NOFLUSH)
        self.name = name


def data_face(node: Inode, attr: Attr) -> Attr:
    """The attributes of a device as those of a regular file."""
    mode = stat.S_IFREG | stat.S_IMODE(attr.mode)
    return attr._replace(mode=mode, rdev=0, size=memory_devices.size_of(name_of(node) or b""))
