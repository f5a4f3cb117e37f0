"""Data in inodes (fs/ext4/inline.c): it is read there, and moved to blocks before it changes."""

from __future__ import annotations

import struct

from loopfs.ext4 import dir as directories
from loopfs.ext4 import extents, xattr
from loopfs.ext4.errors import Damaged
from loopfs.ext4.inode import FL_EXTENTS, FL_INLINE_DATA, Inode
from loopfs.ext4.super import INCOMPAT_FILETYPE
from loopfs.ext4.volume import Volume
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.ext4.dir import Directory

_FIRST = 60  # bytes in i_block
_PARENT = 4  # bytes of a directory's i_block that hold the inode number of ".."


def content(volume: Volume, inode: Inode) -> bytes:
    """Return the data, ``inode.size`` bytes. Raises OSError EUCLEAN."""
    more = xattr.data(volume, inode)
    if inode.size > _FIRST + len(more):
        raise Damaged(f"inode {inode.ino} has an inline size of {inode.size} bytes", inode.ino)
    return (inode.block + more)[: inode.size]


def load_directory(volume: Volume, inode: Inode) -> Directory:
    """Return the contents of an inline directory. Raises OSError EUCLEAN."""
    data = inode.block + xattr.data(volume, inode)
    (parent,) = struct.unpack_from("<I", data)
    found = directories.Directory(parent)
    if inode.size > len(data):
        raise Damaged(f"directory {inode.ino} has an inline size of {inode.size} bytes", inode.ino)
    first, rest = bytearray(data[_PARENT:_FIRST]), bytearray(data[_FIRST : inode.size])
    directories.parse(volume, inode, found, first, _PARENT, len(first))
    directories.parse(volume, inode, found, rest, _FIRST, len(rest))
    return found


def change_entry(volume: Volume, inode: Inode, place: int, ino: int, kind: int) -> None:
    """Make the entry at ``place`` refer to inode ``ino`` (0: make it unused); it stays inline."""
    number = struct.pack("<I", ino)
    typed = bytes([kind]) if ino and volume.super.incompat & INCOMPAT_FILETYPE else b""
    for at, part in ((place, number), (place + 7, typed)):
        if at < _FIRST:
            inode.block = inode.block[:at] + part + inode.block[at + len(part) :]
        elif part:
            xattr.change_data(inode, at - _FIRST, part)
    volume.touch(inode)


def change_parent(volume: Volume, inode: Inode, parent: int) -> None:
    """Change the inode number of ".."; the directory stays inline."""
    inode.block = struct.pack("<I", parent) + inode.block[_PARENT:]
    volume.touch(inode)


def _leave(volume: Volume, inode: Inode) -> None:
    """Remove the inline data. The inode has no blocks yet afterwards."""
    attributes = xattr.load(volume, inode)
    if attributes.pop(xattr.DATA, None) is not None:
        inode.xattrs_changed = True
    inode.flags &= ~FL_INLINE_DATA
    inode.map, inode.nodes, inode.indirect = [], (), None
    inode.block = bytes(60)
    if volume.super.incompat & 0x40:
        inode.flags |= FL_EXTENTS
        inode.block = extents.EMPTY
    inode.map_changed = True
    volume.touch(inode)


def convert_file(volume: Volume, inode: Inode) -> None:
    """Move a file's inline data to a block. Raises OSError ENOSPC, EUCLEAN."""
    data, size = content(volume, inode), volume.super.block_size
    group = volume.groups.all[(inode.ino - 1) // volume.super.inodes_per_group]
    run = volume.allocate(group.first, 1) if data else None
    if run is not None:
        try:
            volume.device.write(run[0] * size, data.ljust(size, b"\0"))
        except OSError:
            volume.release(*run)
            raise
    _leave(volume, inode)
    if run is not None:
        volume.insert(inode, 0, run, False)


def convert_directory(volume: Volume, inode: Inode) -> None:
    """Move an inline directory to a block. Raises OSError ENOSPC, EUCLEAN."""
    found, size = directories.load(volume, inode), volume.super.block_size
    limit = directories.limit(volume)
    group = volume.groups.all[(inode.ino - 1) // volume.super.inodes_per_group]
    run = volume.allocate(group.first, 1)
    _leave(volume, inode)
    volume.insert(inode, 0, run, False)
    inode.size = size
    block = volume.blocks.new(run[0])
    directories.set_tail(volume, block)
    directories.put_dots(volume, block, inode.ino, found.parent)
    found.blocks = [run[0]]
    at = 12
    for name, (ino, kind, _) in list(found.names.items()):
        (used,) = struct.unpack_from("<B", block, at + 6)
        struct.pack_into("<H", block, at + 4, directories.space(used))
        at += directories.space(used)
        struct.pack_into("<H", block, at + 4, directories.disk_length(limit - at))
        directories.put(volume, block, at, ino, name, kind)
        found.names[name] = (ino, kind, at)
    found.last[0] = at
    directories.dirty(volume, inode, run[0])
