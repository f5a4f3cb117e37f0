"""Memory devices (such as /dev/null) that can be opened on a FUSE mount, which is nodev.

Such a node has two faces, like a node of /dev (:mod:`loopfs.filesystems.faces`): stat(2) sees a
special file, open(2) a regular file. Its names are not cached.
"""

from __future__ import annotations

import stat

from loopfs import memory_devices
from loopfs.ext4.inode import Inode
from loopfs.fuse.tree import Handle
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FOPEN_NOFLUSH, Attr


def name_of(node: Inode) -> bytes | None:
    """Return the name of the memory device that a node is, or None."""
    return memory_devices.NAMES.get(node.rdev) if stat.S_ISCHR(node.mode) else None


class DeviceHandle(Handle[Inode]):
    """An open memory device."""

    __slots__ = ("name",)

    def __init__(self, node: Inode, name: bytes) -> None:
        """Open the device. Raises OSError ENXIO: it cannot be replaced."""
        memory_devices.check_opens(name)
        super().__init__(node, FOPEN_DIRECT_IO | FOPEN_NOFLUSH)
        self.name = name


def data_face(node: Inode, attr: Attr) -> Attr:
    """Return the attributes of a device's data face: those of a regular file."""
    mode = stat.S_IFREG | stat.S_IMODE(attr.mode)
    return attr._replace(mode=mode, rdev=0, size=memory_devices.size_of(name_of(node) or b""))
