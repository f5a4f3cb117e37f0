"""Block maps on disk (fs/ext4/indirect.c): the mapping used by ext2 and ext3."""

from __future__ import annotations

import struct

from loopfs.ext4 import extents_status
from loopfs.ext4.errors import Damaged
from loopfs.ext4.extents_status import MAX_WRITTEN
from loopfs.ext4.inode import Extent, Inode
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.ext4.volume import Volume

DIRECT = 12  # the number of blocks that the inode maps directly
DEPTHS = (1, 2, 3)


def most_blocks(block_size: int, *, huge: bool) -> int:
    """Return the largest possible size of a file, in blocks.

    The data and the indirect blocks together must fit into i_blocks: 32 bits of sectors, or 48 bits
    of blocks.

    Args:
        huge: the filesystem has huge_file (ext4_max_bitmap_size).
    """
    per = block_size // 4
    most = DIRECT + per + per**2 + per**3
    counted = (1 << 48) - 1 if huge else 0xFFFFFFFF // (block_size // 512)
    if most + 3 + 2 * per + per**2 <= counted:
        return most
    rest = counted - DIRECT - per
    if rest < per**2:
        return counted - 2 + rest // -per
    rest -= per**2
    return counted - 3 - per + rest // -per + rest // -(per**2)


def _span(per: int, depth: int) -> int:
    return int(per**depth)


def _bases(per: int) -> tuple[int, int, int]:
    """Return the first block that the top indirect block of each depth maps."""
    return DIRECT, DIRECT + per, DIRECT + per + per * per


def load(volume: Volume, inode: Inode) -> None:
    """Read the map into ``inode.map`` and ``inode.indirect``. Raises OSError EUCLEAN."""
    extents: list[Extent] = []
    seen: set[int] = set()
    numbers = struct.unpack("<15I", inode.block)
    inode.indirect = None
    for block, place in enumerate(numbers[:DIRECT]):
        _append(volume, extents, block, place)
    per = volume.super.block_size // 4
    for depth, base in zip(DEPTHS, _bases(per), strict=True):
        if numbers[DIRECT + depth - 1]:
            _load(volume, inode, numbers[DIRECT + depth - 1], depth, base, extents, seen)
    inode.map = extents


def _know(inode: Inode) -> dict[tuple[int, int], int]:
    if inode.indirect is None:
        inode.indirect = {}
    return inode.indirect


def _load(
    volume: Volume,
    inode: Inode,
    place: int,
    depth: int,
    first: int,
    extents: list[Extent],
    seen: set[int],
) -> None:
    per = volume.super.block_size // 4
    if volume.blocks.check(place) in seen:
        raise Damaged(f"the block map of inode {inode.ino} contains a loop", inode.ino)
    seen.add(place)
    _know(inode)[depth, first] = place
    numbers = struct.unpack(f"<{per}I", volume.blocks.get(place))
    if not any(numbers):
        return
    step = _span(per, depth - 1)
    for index, number in enumerate(numbers):
        if not number:
            continue
        if depth > 1:
            _load(volume, inode, number, depth - 1, first + index * step, extents, seen)
        else:
            _append(volume, extents, first + index, number)


def _append(volume: Volume, extents: list[Extent], block: int, place: int) -> None:
    if not place:
        return
    volume.blocks.check(place)
    if extents:
        before, count, start, _ = extents[-1]
        if before + count == block and start + count == place and count < MAX_WRITTEN:
            extents[-1] = (before, count + 1, start, False)
            return
    extents.append((block, 1, place, False))


def _needed(per: int, start: int, end: int) -> set[tuple[int, int]]:
    """Return the indirect blocks that map a range: depth, and first block that each maps."""
    needed = set()
    for depth, base in zip(DEPTHS, _bases(per), strict=True):
        begin, stop = max(start, base), min(end, base + _span(per, depth))
        if begin >= stop:
            continue
        for level in range(1, depth + 1):
            span = _span(per, level)
            low, high = (begin - base) // span, (stop - 1 - base) // span
            needed |= {(level, base + index * span) for index in range(low, high + 1)}
    return needed


def add_nodes(volume: Volume, inode: Inode, start: int, end: int) -> None:
    """Allocate the indirect blocks for what was mapped from block ``start`` up to ``end``.

    Raises:
        OSError: ENOSPC; then the map has the same blocks as before.
    """
    extents = inode.map
    assert extents is not None
    needed = _needed(volume.super.block_size // 4, start, end)
    added: list[tuple[int, int]] = []
    try:
        for key in sorted(needed - _know(inode).keys()):
            goal = extents_status.find(extents, key[1])[1] or extents[-1]
            _know(inode)[key] = volume.allocate(goal[2], 1, metadata=True)[0]
            inode.count(volume.super.block_size // 512)
            added.append(key)
    except OSError:
        _release(volume, inode, added)
        raise


def drop_nodes(volume: Volume, inode: Inode) -> None:
    """Release the indirect blocks below which nothing is mapped any more."""
    extents, per = inode.map, volume.super.block_size // 4
    assert extents is not None
    empty = []
    for level, first in inode.indirect or ():
        _, extent = extents_status.find(extents, first)
        if extent is None or extent[0] >= first + _span(per, level):
            empty.append((level, first))
    _release(volume, inode, empty)


def drop_all_nodes(volume: Volume, inode: Inode) -> None:
    """Release all indirect blocks: the file is mapped by extents now."""
    _release(volume, inode, list(inode.indirect or ()))


def _release(volume: Volume, inode: Inode, keys: list[tuple[int, int]]) -> None:
    for key in keys:
        volume.release(_know(inode).pop(key), 1)
        inode.count(-(volume.super.block_size // 512))


def store(volume: Volume, inode: Inode) -> None:
    """Encode the map; a block whose contents stay the same is not written."""
    extents, indirect = inode.map, inode.indirect or {}
    assert extents is not None
    per = volume.super.block_size // 4
    root = [0] * 15
    root[:DIRECT] = _numbers(extents, 0, DIRECT)
    for depth, base in zip(DEPTHS, _bases(per), strict=True):
        root[DIRECT + depth - 1] = indirect.get((depth, base), 0)
    inode.block = struct.pack("<15I", *root)
    for (level, first), place in indirect.items():
        if level == 1:
            numbers = _numbers(extents, first, per)
        else:
            span = _span(per, level - 1)
            below = range(first, first + per * span, span)
            numbers = [indirect.get((level - 1, block), 0) for block in below]
        node = bytearray(struct.pack(f"<{per}I", *numbers))
        if volume.blocks.get(place) != node:
            volume.blocks.put(place, node)


def _numbers(extents: list[Extent], first: int, count: int) -> list[int]:
    """Return where each of ``count`` blocks is, 0 for those that are not mapped."""
    numbers = [0] * count
    for block, length, place in extents_status.pieces(extents, first, count):
        if place is not None:
            numbers[block - first : block - first + length] = range(place, place + length)
    return numbers
