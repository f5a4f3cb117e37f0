"""ioctls of files (linux/fs.h): flags, the label and the UUID, FITRIM."""

from __future__ import annotations

import errno
import struct

from loopfs.ext4 import migrate
from loopfs.ext4.errors import refused
from loopfs.ext4.inode import FL_DAX, FL_EXTENTS, FL_INLINE_DATA, FL_OTHER, FL_REGULAR, Inode
from loopfs.ext4.volume import Volume, now_of

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS = 0x80086601, 0x40086602
FS_IOC32_GETFLAGS, FS_IOC32_SETFLAGS = 0x80046601, 0x40046602
FS_IOC_GETVERSION = 0x80087601
FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR = 0x801C581F, 0x401C5820
FS_IOC_GETFSLABEL, FS_IOC_SETFSLABEL = 0x81009431, 0x41009432
FS_IOC_GETFSUUID = 0x80111500
FS_IOC_FIEMAP = 0xC020660B
FITRIM = 0xC0185879
EXT4_IOC_RESIZE_FS = 0x40086610

_NOT_WITH_DAX = 0x100000 | 0x800 | 0x4000 | FL_INLINE_DATA
_VISIBLE = 0x725BDFFF  # EXT4_FL_USER_VISIBLE
_REFUSED = 0x4000 | 0x40000000  # data=journal, casefold
_MODIFIABLE = 0x624BC0FF & ~_REFUSED & ~FL_EXTENTS  # EXT4_FL_USER_MODIFIABLE
_XFLAGS = {
    0x10: 0x8,
    0x20: 0x10,
    0x8: 0x20,
    0x80: 0x40,
    0x40: 0x80,
    0x20000000: 0x200,
    FL_DAX: 0x8000,
}
_FSXATTR = struct.Struct("=5I8x")
_RANGE = struct.Struct("=QQQ")
_LABEL_MAX, _FSLABEL_MAX = 16, 256


def get_flags(inode: Inode) -> int:
    """Return the flags as FS_IOC_GETFLAGS does (lsattr(1))."""
    return inode.flags & _VISIBLE


def set_flags(volume: Volume, inode: Inode, flags: int) -> None:
    """Set the flags (chattr(1)). The kernel has checked permissions.

    Raises:
        OSError: EOPNOTSUPP, EROFS; EINVAL, EOPNOTSUPP, ENOSPC when all is set but how blocks are
            mapped, as in the kernel.
    """
    volume.change()
    if flags & ~_VISIBLE or (flags ^ inode.flags) & _REFUSED:
        raise refused(errno.EOPNOTSUPP)
    if migrates := (flags ^ inode.flags) & FL_EXTENTS:
        volume.reserve()
    flags &= _MODIFIABLE
    if flags & FL_DAX and inode.flags & _NOT_WITH_DAX:
        raise refused(errno.EOPNOTSUPP)
    if not inode.is_dir and flags & ~(FL_REGULAR if inode.is_regular else FL_OTHER):
        raise refused(errno.EOPNOTSUPP)
    inode.flags = inode.flags & ~_MODIFIABLE | flags
    inode.ctime = now_of(volume, inode)
    volume.touch(inode)
    if migrates and inode.has_extents:
        migrate.to_block_map(volume, inode)
    elif migrates:
        migrate.to_extents(volume, inode)


def get_fsxattr(inode: Inode) -> bytes:
    """Return a struct fsxattr. Project quotas are not supported."""
    value = sum(bit for flag, bit in _XFLAGS.items() if inode.flags & flag)
    return _FSXATTR.pack(value, 0, 0, 0, 0)


def set_fsxattr(volume: Volume, inode: Inode, data: bytes) -> None:
    """Apply a struct fsxattr. Raises OSError EOPNOTSUPP for a project or an extent size."""
    value, extsize, _, project, _ = _FSXATTR.unpack_from(data)
    if project or extsize or value & ~sum(_XFLAGS.values()):
        raise refused(errno.EOPNOTSUPP)
    flags = sum(flag for flag, bit in _XFLAGS.items() if value & bit)
    set_flags(volume, inode, get_flags(inode) & ~sum(_XFLAGS) | flags)


def get_label(volume: Volume) -> bytes:
    """Implement FS_IOC_GETFSLABEL."""
    return bytes(volume.super.raw[120 : 120 + _LABEL_MAX]).ljust(_FSLABEL_MAX, b"\0")


def get_uuid(volume: Volume) -> bytes:
    """Return a struct fsuuid2."""
    return b"\x10" + volume.super.uuid


def set_label(volume: Volume, data: bytes) -> None:
    """Implement FS_IOC_SETFSLABEL, with the next commit. Raises OSError EINVAL: too long."""
    volume.change()
    name = data.partition(b"\0")[0]
    if len(name) > _LABEL_MAX:
        raise refused(errno.EINVAL)
    volume.super.raw[120 : 120 + _LABEL_MAX] = name.ljust(_LABEL_MAX, b"\0")


def trim(volume: Volume, data: bytes) -> bytes:
    """Implement FITRIM: discard free blocks.

    Returns:
        struct fstrim_range, with the number of bytes discarded.
    Raises:
        OSError: EINVAL: the range is outside of the filesystem; EOPNOTSUPP.
    """
    start, length, least = _RANGE.unpack(data)
    sb = volume.super
    unit = sb.block_size
    if start // unit >= sb.blocks or length < unit:
        raise refused(errno.EINVAL)
    volume.change()
    volume.wait_for_blocks()
    end, trimmed = min(start + length, sb.blocks * unit), 0
    for group in volume.groups.all:
        used, at = volume.groups.block_map(group), 0
        while (at := used.find(0, at)) >= 0:
            stop = used.find(1, at)
            stop = len(used) if stop < 0 else stop
            first = max((group.first + at) * unit, start + -start % unit)
            last = min((group.first + stop) * unit, end - end % unit)
            if last - first >= max(least, unit):
                volume.device.discard(first, last - first)
                trimmed += last - first
            at = stop
    return _RANGE.pack(start, trimmed, least)
