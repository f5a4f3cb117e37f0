"""The ioctls of files and directories (include/uapi/linux/msdos_fs.h, FITRIM of linux/fs.h)."""

from __future__ import annotations

import errno
import struct

from loopfs.fat import namei
from loopfs.fat.boot import FAT_START_ENT
from loopfs.fat.dir import load
from loopfs.fat.errors import refused
from loopfs.fat.inode import ATTR_DIR, ATTR_VOLUME, Inode
from loopfs.fat.volume import Volume

FAT_IOCTL_GET_ATTRIBUTES = 0x80047210
FAT_IOCTL_SET_ATTRIBUTES = 0x40047211
FAT_IOCTL_GET_VOLUME_ID = 0x80047213
FITRIM = 0xC0185879
# By number: whether only the short name is requested, and the layout of struct __fat_dirent.
_DIRENT64, _DIRENT32 = struct.Struct("=qqH256s6x"), struct.Struct("=iiH256s2x")
VFAT_IOCTL_READDIR_BOTH = 0x82307201
VFAT_IOCTL_READDIR_SHORT = 0x82307202
READDIRS = {
    VFAT_IOCTL_READDIR_BOTH: (False, _DIRENT64),
    VFAT_IOCTL_READDIR_SHORT: (True, _DIRENT64),
    0x82187201: (False, _DIRENT32),
    0x82187202: (True, _DIRENT32),
}
_RANGE = struct.Struct("=QQQ")  # struct fstrim_range
_NAME_SIZE = 256


def get_attributes(inode: Inode) -> bytes:
    """Implement FAT_IOCTL_GET_ATTRIBUTES."""
    return inode.attr.to_bytes(4, "little")


def set_attributes(volume: Volume, inode: Inode, data: bytes, uid: int) -> None:
    """Implement FAT_IOCTL_SET_ATTRIBUTES.

    Args:
        uid: the caller's.
    Raises:
        OSError: EINVAL: the root has no attributes; EPERM: the caller is not the owner.
    """
    keep = ATTR_VOLUME | ATTR_DIR
    value = int.from_bytes(data[:4], "little") & 0xFF & ~keep | inode.attr & keep
    if inode is volume.root and value != ATTR_DIR:
        raise refused(errno.EINVAL)
    namei.changing(volume, inode)
    if uid not in (0, volume.options.uid):
        raise refused(errno.EPERM)
    namei.set_attributes(volume, inode, value)


def get_volume_id(volume: Volume) -> bytes:
    """Implement FAT_IOCTL_GET_VOLUME_ID."""
    return volume.shape.volume_id.to_bytes(4, "little")


def trim(volume: Volume, data: bytes) -> bytes:
    """Implement FITRIM: discard free clusters.

    Returns:
        struct fstrim_range, with the number of bytes discarded.
    Raises:
        OSError: EINVAL: the range is outside of the volume; EOPNOTSUPP.
    """
    start, length, least = _RANGE.unpack(data)
    unit, table = volume.cluster, volume.table
    first = max(start // unit, FAT_START_ENT)
    if first >= table.limit or length < unit:
        raise refused(errno.EINVAL)
    last = min(first + length // unit - 1, table.limit - 1)
    volume.change()
    # Clusters that are free only in memory may still be in use on disk: write the table first.
    table.flush()
    trimmed = 0
    for cluster, count in table.free_runs(first, last):
        if count * unit >= max(least, unit):
            volume.device.discard(volume.place(cluster), count * unit)
            trimmed += count * unit
    return _RANGE.pack(start, trimmed, least)


def read_directory(volume: Volume, inode: Inode, place: int, cmd: int) -> tuple[int, int, bytes]:
    """Implement VFAT_IOCTL_READDIR_BOTH and _SHORT: the next entry with its short and long name.

    Args:
        place: 0, or the place returned by the previous call.
    Returns:
        The next place, the result of the ioctl (0 at the end), two struct __fat_dirent.
    """
    short_only, layout = READDIRS[cmd]
    for dot, name in enumerate((b".", b"..")):
        if place <= dot:
            return dot + 1, 1, _dirents(layout, name, b"", 0, 0)
    content = load(volume, inode)
    for slot in range(place - 2, len(content.used)):
        child = content.inodes.get(slot)
        if child is None:
            continue
        short = volume.names.shown(child.short, child.lcase, child.attr)
        if short_only or child.first == child.slot:
            return slot + 3, 1, _dirents(layout, short, b"", 0, 0)
        return slot + 3, 1, _dirents(layout, short, child.name, child.ino, slot + 3)
    return place, 0, _dirents(layout, b"", b"", 0, 0)


def _dirents(layout: struct.Struct, short: bytes, name: bytes, ino: int, off: int) -> bytes:
    ino &= 0x7FFFFFFF
    short, name = short[: _NAME_SIZE - 1], name[: _NAME_SIZE - 1]
    return layout.pack(0, 0, len(short), short) + layout.pack(ino, off, len(name), name)
