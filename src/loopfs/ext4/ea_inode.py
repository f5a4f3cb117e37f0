"""Extended attribute values that have an inode of their own (fs/ext4/xattr.c: ea_inode).

The version and ctime of such an inode hold the number of entries that refer to it, and its atime
the checksum of the value. The kernel shares equal values between files; this driver makes an inode
for each value.
"""

from __future__ import annotations

import stat
import struct

from loopfs.ext4 import extents
from loopfs.ext4.crc import crc32c
from loopfs.ext4.errors import Damaged
from loopfs.ext4.inode import FL_EA_INODE, FL_EXTENTS, Inode
from loopfs.ext4.super import INCOMPAT_EA_INODE, INCOMPAT_EXTENTS
from loopfs.ext4.volume import Volume
from loopfs.lean import NamedTuple

_VALUE_MAX = 65536  # bytes: XATTR_SIZE_MAX
_SECOND = 1_000_000_000


class Large(NamedTuple):
    """A reference to such a value.

    Args:
        ino: its inode; 0 if that is not made yet.
        size: bytes.
        hash: the hash of the entry, computed from its name and the value's checksum.
        in_block: the entry is in an attribute block, which files may share.
    """

    ino: int
    size: int
    hash: int = 0
    in_block: bool = False


def is_possible(volume: Volume) -> bool:
    """Return whether the filesystem has the feature ea_inode."""
    return bool(volume.super.incompat & INCOMPAT_EA_INODE)


def is_wanted(volume: Volume, size: int) -> bool:
    """Return whether a value gets an inode by its size alone (EXT4_XATTR_MIN_LARGE_EA_SIZE)."""
    return is_possible(volume) and (size + 3 & ~3) > volume.super.block_size - 20 - 32 - 4


def blocks_of(volume: Volume, size: int) -> int:
    """Return how many blocks a value of ``size`` bytes may need."""
    return -(-size // volume.super.block_size) + 1


def get(volume: Volume, ino: int) -> Inode:
    """Return the inode of a value. Raises OSError EUCLEAN, EBADMSG."""
    return volume.get(ino, value=True)


def read(volume: Volume, large: Large) -> bytes:
    """Return a value. Raises OSError EUCLEAN, EBADMSG, or an error of the device."""
    inode = get(volume, large.ino)
    try:
        return _read(volume, inode, large)
    finally:
        if not inode.known:
            volume.forget(inode)


def _read(volume: Volume, inode: Inode, large: Large) -> bytes:
    if large.size != inode.size or large.size > _VALUE_MAX:
        raise Damaged(f"the attribute value in inode {large.ino} has a wrong size", large.ino)
    from loopfs.ext4 import file

    buffer = memoryview(bytearray(large.size))
    file.read(volume, inode, 0, buffer)
    value = bytes(buffer)
    if crc32c(volume.super.seed, value) != _checksum(inode):
        raise Damaged(
            f"the checksum of the attribute value in inode {large.ino} is wrong", large.ino
        )
    return value


def _checksum(inode: Inode) -> int:
    return inode.atime // _SECOND & 0xFFFFFFFF


def checksum(volume: Volume, value: bytes) -> bytes:
    """Return the checksum that replaces the value in the hash of its entry."""
    return struct.pack("<I", crc32c(volume.super.seed, value))


def make(volume: Volume, owner: Inode, value: bytes) -> Inode:
    """Make an inode for a value, with one entry that refers to it.

    Raises:
        OSError: ENOSPC, or an error of the device; then no inode is made.
    """
    inode = volume.make(owner, stat.S_IFREG | 0o600, owner.uid, owner.gid)
    inode.flags |= FL_EA_INODE
    if volume.super.incompat & INCOMPAT_EXTENTS:
        inode.flags |= FL_EXTENTS
        inode.block = extents.EMPTY
    (crc,) = struct.unpack("<i", checksum(volume, value))
    inode.atime = crc * _SECOND
    _set_count(volume, inode, 1)
    try:
        _write(volume, inode, value)
    except OSError:
        volume.end(inode)
        raise
    return inode


def _write(volume: Volume, inode: Inode, value: bytes) -> None:
    unit, block = volume.super.block_size, 0
    padded = memoryview(value + bytes(-len(value) % unit))
    while block * unit < len(padded):
        run = volume.allocate(volume.goal(inode, block), len(padded) // unit - block)
        volume.insert(inode, block, run, False)
        part = padded[block * unit : (block + run[1]) * unit]
        volume.device.write(run[0] * unit, part)
        block += run[1]
    inode.size = len(value)


def _count(inode: Inode) -> int:
    return (inode.ctime // _SECOND & 0xFFFFFFFF) << 32 | inode.version


def _set_count(volume: Volume, inode: Inode, count: int) -> None:
    inode.ctime, inode.version = (count >> 32) * _SECOND, count & 0xFFFFFFFF
    volume.touch(inode)


def use(volume: Volume, inode: Inode, by: int) -> None:
    """Change the number of entries that refer to an inode; free it when none is left."""
    count = _count(inode) + by
    if count > 0:
        _set_count(volume, inode, count)
    else:
        volume.end(inode)
