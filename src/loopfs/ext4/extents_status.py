"""The mapping of a file's blocks in memory (fs/ext4/extents_status.c): a sorted list of extents.

It is the same for extent trees and for block maps; :mod:`~loopfs.ext4.extents` and
:mod:`~loopfs.ext4.indirect` read and store them.
"""

from __future__ import annotations

from bisect import bisect_left

from loopfs.ext4.inode import Extent
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_WRITTEN, MAX_UNWRITTEN = 32768, 32767  # the largest extent, in blocks


def find(extents: list[Extent], block: int) -> tuple[int, Extent | None]:
    """Return the index and the extent that maps ``block``, or else of the first one after it."""
    at = bisect_left(extents, (block + 1,)) - 1
    if at >= 0 and extents[at][0] + extents[at][1] > block:
        return at, extents[at]
    return at + 1, extents[at + 1] if at + 1 < len(extents) else None


def insert(extents: list[Extent], block: int, count: int, place: int, unwritten: bool) -> None:
    """Map blocks that are not mapped, and merge the extent with its neighbours if possible."""
    most = MAX_UNWRITTEN if unwritten else MAX_WRITTEN
    at = bisect_left(extents, (block,))
    if at:
        before = extents[at - 1]
        joins = before[3] == unwritten and before[0] + before[1] == block
        if joins and before[2] + before[1] == place and before[1] + count <= most:
            at -= 1
            block, count, place = before[0], before[1] + count, before[2]
            del extents[at]
    if at < len(extents):
        after = extents[at]
        joins = after[3] == unwritten and block + count == after[0]
        if joins and place + count == after[2] and after[1] + count <= most:
            count += after[1]
            del extents[at]
    extents.insert(at, (block, count, place, unwritten))


def remove(extents: list[Extent], start: int, end: int) -> list[tuple[int, int]]:
    """Unmap the blocks from ``start`` up to ``end``; return their runs on disk: (first, count)."""
    gone = []
    at, extent = find(extents, start)
    first, rest = at, []
    while extent is not None and extent[0] < end:
        block, count, place, unwritten = extent
        begin, stop = max(block, start), min(block + count, end)
        if block < begin:
            rest.append((block, begin - block, place, unwritten))
        if stop < block + count:
            rest.append((stop, block + count - stop, place + stop - block, unwritten))
        gone.append((place + begin - block, stop - begin))
        at += 1
        extent = extents[at] if at < len(extents) else None
    extents[first:at] = rest
    return gone


def pieces(extents: list[Extent], block: int, count: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield the parts of a range: first block, count, first block on disk (None: no data)."""
    end = block + count
    at, extent = find(extents, block)
    while block < end:
        if extent is None or extent[0] >= end:
            yield block, end - block, None
            return
        if extent[0] > block:
            yield block, extent[0] - block, None
            block = extent[0]
        stop = min(extent[0] + extent[1], end)
        place = None if extent[3] else extent[2] + block - extent[0]
        yield block, stop - block, place
        block, at = stop, at + 1
        extent = extents[at] if at < len(extents) else None
