"""A volume as a tree that a FUSE server serves: the operations of the VFS layer and isofs."""

from __future__ import annotations

import errno

from loopfs.fuse.fixed_tree import LONGEST_LINK, FixedTree
from loopfs.fuse.tree import Buffer, Caller, Handle, Space
from loopfs.iso9660.errors import refused
from loopfs.iso9660.inode import Inode
from loopfs.iso9660.zisofs import Zisofs
from loopfs.lean import TYPE_CHECKING
from loopfs.uapi.fuse import FOPEN_KEEP_CACHE, Attr

if TYPE_CHECKING:
    from loopfs.iso9660.volume import Volume

_NAME_MAX = 255


class Compressed(Handle[Inode]):
    """An open file that is compressed by zisofs."""

    __slots__ = ("zisofs",)

    def __init__(self, node: Inode, zisofs: Zisofs) -> None:
        super().__init__(node, FOPEN_KEEP_CACHE)
        self.zisofs = zisofs


class Iso9660(FixedTree[Inode]):
    """A mounted volume."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.volume = volume

    def getattr(self, node: Inode) -> Attr:
        return node.attributes(self.volume.block_size)

    def statfs(self) -> Space:
        size = self.volume.block_size
        return Space(self.volume.blocks, 0, 0, 0, 0, size, _NAME_MAX, size)

    def readlink(self, node: Inode) -> bytes:
        if node.target is None or len(node.target) > LONGEST_LINK:
            raise refused(errno.EIO)
        return node.target

    def open(self, caller: Caller, node: Inode, flags: int) -> Handle[Inode]:
        handle = super().open(caller, node, flags)
        if node.zisofs is None:
            return handle

        def stored(offset: int, size: int) -> bytes:
            data = self.volume.read(node, offset, size)
            if len(data) != size:
                raise refused(errno.EIO)
            return data

        return Compressed(node, Zisofs(stored, *node.zisofs, node.size))

    def read(self, handle: Handle[Inode], offset: int, size: int) -> Buffer:
        if isinstance(handle, Compressed):
            return handle.zisofs.read(offset, size)
        return self.volume.read(handle.node, offset, size)
