"""Change a file between extents and a block map (fs/ext4/migrate.c): chattr +e and -e."""

from __future__ import annotations

import errno

from loopfs.ext4 import extents, indirect
from loopfs.ext4.errors import refused
from loopfs.ext4.inode import FL_EXTENTS, Inode
from loopfs.ext4.super import INCOMPAT_EXTENTS
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.ext4.volume import Volume


def to_extents(volume: Volume, inode: Inode) -> None:
    """Map a file by extents.

    Raises:
        OSError: EINVAL: the filesystem has no extents, or the data is inline; ENOSPC, and the
            file is as before.
    """
    if not volume.super.incompat & INCOMPAT_EXTENTS or inode.has_inline_data:
        raise refused(errno.EINVAL)
    volume.map(inode)
    extents.fit_nodes(volume, inode)
    inode.flags |= FL_EXTENTS
    indirect.drop_all_nodes(volume, inode)
    volume.map_changed(inode)


def to_block_map(volume: Volume, inode: Inode) -> None:
    """Map a file by block numbers in its inode.

    Raises:
        OSError: EOPNOTSUPP: the file has more than one extent, or blocks that are not among the
            first twelve.
    """
    mapped = volume.map(inode)
    if len(mapped) > 1 or inode.nodes or any(b + n > indirect.DIRECT for b, n, _, _ in mapped):
        raise refused(errno.EOPNOTSUPP)
    if any(unwritten for _, _, _, unwritten in mapped):
        raise refused(errno.EOPNOTSUPP)
    inode.flags &= ~FL_EXTENTS
    volume.map_changed(inode)
