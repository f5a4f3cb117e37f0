"""A volume as a tree that a FUSE server serves: what the kernel's VFS and its isofs do together.

Nothing ever changes, so all that the kernel is told it may remember. Names of one file can be many
(case, dots at the end); each of them is a name of the same node.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import count

from loopfs.fuse.tree import Buffer, Caller, Handle, Space, Tree
from loopfs.iso9660.errors import refused
from loopfs.iso9660.inode import Inode, Place, number
from loopfs.iso9660.zisofs import Zisofs
from loopfs.lean import TYPE_CHECKING
from loopfs.uapi.fuse import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FUSE_ROOT_ID, Attr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopfs.iso9660.volume import Volume

NAME_VALID = 3600  # seconds
_NAME_MAX = 255
_LONGEST_LINK = 4095  # bytes
_DT_UNKNOWN, _DT_DIR = 0, 4


class File(Handle[Inode]):
    """An open file; ``zisofs``: of a compressed one."""

    __slots__ = ("zisofs",)

    def __init__(self, node: Inode, zisofs: Zisofs | None) -> None:
        super().__init__(node, FOPEN_KEEP_CACHE)
        self.zisofs = zisofs


class Iso9660(Tree[Inode]):
    """A mounted volume."""

    negative_valid = NAME_VALID

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._root = volume.root
        self._root.nodeid = FUSE_ROOT_ID
        self._nodeids = count(FUSE_ROOT_ID + 1)
        self._known: dict[Place, Inode] = {}  # to the kernel
        volume.directory(self._root)

    # --- nodes ------------------------------------------------------------------

    def root(self) -> Inode:
        return self._root

    def known(self, node: Inode) -> None:
        self._known[node.place] = node
        node.known += 1

    def forgotten(self, node: Inode) -> None:
        node.known -= 1
        if not node.known:
            self._known.pop(node.place, None)
            self._volume.let_go(node)

    def _node(self, place: Place, parent: Inode) -> Inode:
        if (node := self._known.get(place)) is None:
            node = self._volume.inode(place)
            node.nodeid, node.up = next(self._nodeids), parent.ino
        return node

    def getattr(self, node: Inode) -> Attr:
        return node.attributes(self._volume.block_size)

    def statfs(self) -> Space:
        size = self._volume.block_size
        return Space(self._volume.blocks, 0, 0, 0, 0, size, _NAME_MAX, size)

    # --- names -----------------------------------------------------------------

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, int]:
        volume = self._volume
        place = volume.directory(parent).found.get(volume.fold(name))
        if place is None:
            raise refused(errno.ENOENT)
        node = self._node(place, parent)
        if node is self._root:  # which has no name
            raise refused(errno.ELOOP)
        return node, NAME_VALID

    def readlink(self, node: Inode) -> bytes:
        if node.target is None or len(node.target) > _LONGEST_LINK:
            raise refused(errno.EIO)
        return node.target

    # --- open files -------------------------------------------------------------

    def open(self, caller: Caller, node: Inode, flags: int) -> Handle[Inode]:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise refused(errno.EROFS)
        if node.zisofs is None:
            return File(node, None)

        def stored(offset: int, size: int) -> bytes:
            data = self._volume.read(node, offset, size)
            if len(data) != size:
                raise refused(errno.EIO)
            return data

        return File(node, Zisofs(stored, *node.zisofs, node.size))

    def opendir(self, caller: Caller, node: Inode) -> Handle[Inode]:
        self._volume.directory(node)
        return Handle(node, FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR)

    def entries(
        self, handle: Handle[Inode], place: int
    ) -> Iterator[tuple[int, bytes, int, int, Inode | None]]:
        """A place is 0 to 2 for the dots, then the number of the entry and 3."""
        directory, content = handle.node, self._volume.directory(handle.node)
        if content.damaged and place >= len(content.entries) + 2:
            raise refused(errno.EIO)
        if place < 1:
            yield 1, b".", directory.ino, _DT_DIR, None
        if place < 2:
            yield 2, b"..", directory.up, _DT_DIR, None
        for at in range(max(place - 2, 0), len(content.entries)):
            yield at + 3, *self._listed(content.entries[at], directory)

    def _listed(
        self, entry: tuple[bytes, Place, bool], directory: Inode
    ) -> tuple[bytes, int, int, Inode | None]:
        name, place, is_first = entry
        try:
            node = self._node(place, directory)
        except OSError:  # it is listed all the same; who looks at it hears of it
            return name, number(place, self._volume.block_size), _DT_UNKNOWN, None
        told = node if is_first and node is not self._root else None
        return name, node.ino, stat.S_IFMT(node.mode) >> 12, told

    def read(self, handle: Handle[Inode], offset: int, size: int) -> Buffer:
        if isinstance(handle, File) and handle.zisofs is not None:
            return handle.zisofs.read(offset, size)
        return self._volume.read(handle.node, offset, size)
