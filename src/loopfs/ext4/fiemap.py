"""FS_IOC_FIEMAP: where the data of a file is (linux/fiemap.h)."""

from __future__ import annotations

from loopfs.ext4.inode import Inode
from loopfs.ext4.volume import Volume

EXTENT_LAST, EXTENT_NOT_ALIGNED, EXTENT_DATA_INLINE, EXTENT_UNWRITTEN = 0x1, 0x100, 0x200, 0x800
ExtentRow = tuple[int, int, int, int]  # logical offset, physical offset, length (bytes); flags


def rows(volume: Volume, inode: Inode, start: int, length: int) -> list[ExtentRow]:
    """Return the extents that overlap a range; adjacent ones are merged, as in the kernel.

    Args:
        start, length: bytes.
    Raises:
        OSError: EUCLEAN, EBADMSG.
    """
    if inode.has_inline_data:
        flags = EXTENT_LAST | EXTENT_NOT_ALIGNED | EXTENT_DATA_INLINE
        return [(0, 0, inode.size, flags)] if start < inode.size else []
    unit = volume.super.block_size
    end = start + length
    merged: list[list[int]] = []
    for block, count, place, unwritten in volume.map(inode):
        flags = EXTENT_UNWRITTEN if unwritten else 0
        row = [block * unit, place * unit, count * unit, flags]
        last = merged[-1] if merged else None
        if last and _follows(last, row):
            last[2] += row[2]
        else:
            merged.append(row)
    if merged:
        merged[-1][3] |= EXTENT_LAST
    return [
        (logical, physical, size, flags)
        for logical, physical, size, flags in merged
        if logical < end and logical + size > start
    ]


def _follows(last: list[int], row: list[int]) -> bool:
    size = last[2]
    return (last[0] + size, last[1] + size, last[3]) == (row[0], row[1], row[3])
