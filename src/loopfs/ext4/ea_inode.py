"""Values of extended attributes that have an inode of their own (fs/ext4/xattr.c: ea_inode).

Such an inode counts the entries that name it, in the place of its version and ctime; its atime
is the checksum of the value. The kernel lets files share them; ours makes one for each value.
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
    """Where such a value is.

    Args:
        ino: 0: of one that is to be made.
        size: bytes.
        hash: of the entry: of its name, and of the value's checksum.
        in_block: it is named by an entry of a block, which files may share.
    """

    ino: int
    size: int
    hash: int = 0
    in_block: bool = False


def is_possible(volume: Volume) -> bool:
    """The filesystem has the feature."""
    return bool(volume.super.incompat & INCOMPAT_EA_INODE)


def is_wanted(volume: Volume, size: int) -> bool:
    """A value of ``size`` bytes goes there at once (EXT4_XATTR_MIN_LARGE_EA_SIZE)."""
    return is_possible(volume) and (size + 3 & ~3) > volume.super.block_size - 20 - 32 - 4


def blocks_of(volume: Volume, size: int) -> int:
    """Blocks that a value of ``size`` bytes may need."""
    return -(-size // volume.super.block_size) + 1


def get(volume: Volume, ino: int) -> Inode:
    """The inode of a value. Raises OSError EUCLEAN, EBADMSG."""
    return volume.get(ino, value=True)


def read(volume: Volume, large: Large) -> bytes:
    """A value. Raises OSError EUCLEAN, EBADMSG, and the device's."""
    inode = get(volume, large.ino)
    try:
        return _read(volume, inode, large)
    finally:
        if not inode.known:
            volume.forget(inode)


def _read(volume: Volume, inode: Inode, large: Large) -> bytes:
    if large.size != inode.size or large.size > _VALUE_MAX:
        raise Damaged(f"inode {large.ino} has another value of an attribute", large.ino)
    from loopfs.ext4 import file

    buffer = memoryview(bytearray(large.size))
    file.read(volume, inode, 0, buffer)
    value = bytes(buffer)
    if crc32c(volume.super.seed, value) != _checksum(inode):
        raise Damaged(
            f"the value of an attribute in inode {large.ino} has another checksum", large.ino
        )
    return value


def _checksum(inode: Inode) -> int:
    return inode.atime // _SECOND & 0xFFFFFFFF


def checksum(volume: Volume, value: bytes) -> bytes:
    """What stands for a value in the hash of its entry."""
    return struct.pack("<I", crc32c(volume.super.seed, value))


def make(volume: Volume, owner: Inode, value: bytes) -> Inode:
    """An inode for a value, named by one entry.

    Raises:
        OSError: ENOSPC, and the device's; there is none then.
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
    """So many more entries name it, or one less; of the last one it goes."""
    count = _count(inode) + by
    if count > 0:
        _set_count(volume, inode, count)
    else:
        volume.end(inode)
