"""A volume as a tree that a FUSE server serves: the operations of the VFS layer and udf."""

from __future__ import annotations

import errno

from loopfs.fuse.fixed_tree import FixedTree
from loopfs.fuse.tree import Buffer, Handle, Space
from loopfs.lean import TYPE_CHECKING
from loopfs.uapi.fuse import Attr
from loopfs.udf.errors import refused
from loopfs.udf.icb import Inode

if TYPE_CHECKING:
    from loopfs.udf.volume import Volume

_NAME_MAX = 254
_NOT_KNOWN = 0xFFFFFFFF  # a count of free blocks that is not known


class Udf(FixedTree[Inode]):
    """A mounted volume."""

    def __init__(self, volume: Volume) -> None:
        super().__init__(volume)
        self.volume = volume

    def getattr(self, node: Inode) -> Attr:
        return node.attributes(self.volume.block_size)

    def statfs(self) -> Space:
        volume, told = self.volume, self.volume.described.integrity
        size, partition = volume.block_size, volume.described.file_set[0]
        free = files = 0
        if told is not None:
            known = told.free[partition : partition + 1]
            free = sum(count for count in known if count != _NOT_KNOWN)
            files = told.files
        free = free or volume.free_by_bitmap
        return Space(volume.blocks, free, free, files + free, free, size, _NAME_MAX, size)

    def readlink(self, node: Inode) -> bytes:
        if node.target is None:
            raise refused(errno.EIO)
        return node.target

    def read(self, handle: Handle[Inode], offset: int, size: int) -> Buffer:
        return self.volume.read(handle.node, offset, size)
