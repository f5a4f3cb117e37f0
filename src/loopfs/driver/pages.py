"""Who holds which bytes of a disk, and what is written or dropped when that changes.

A node of an instance has pages in the kernel's cache. What write(2) brings is in the image when
it returns, so these pages are clean; only a store through mmap(2) makes one dirty. A filesystem
that is mounted from a device is served by an engine, which has a cache of its own:

================================  =====================  ======================  =================
state of the device               its nodes              the engine              the image
================================  =====================  ======================  =================
free                              nothing                -                       -
bound                             clean pages; dirty     -                       all but the dirty
                                  ones by mmap(2)                                pages
mounted for reading               as bound               clean pages             as bound
mounted for writing               clean pages; dirty     the bytes that the      the bytes that
                                  ones only of bytes     filesystem uses, dirty  it does not use
                                  that it does not use   until it syncs
================================  =====================  ======================  =================

An engine that has the image's file instead of a device of its own keeps no dirty pages: what it has
written is in the image. So each byte has one writer: the nodes, or the engine of what is mounted.
Before a state changes or an ioctl changes what a page means (:data:`CHANGES`), the dirty pages of
the disk and of its partitions are written, and all are dropped; and they are dropped once more when
an engine has let go of the device. Disk and partition are cached apart, as in the kernel.
"""

from __future__ import annotations

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.lean import NamedTuple
from loopfs.uapi import block, loop

# Commands of ioctl(2) before which pages are written and dropped, of 64-bit and 32-bit callers.
CHANGES = frozenset(
    {
        loop.LOOP_SET_STATUS,
        loop.LOOP_SET_STATUS64,
        loop.LOOP_SET_CAPACITY,
        loop.LOOP_SET_BLOCK_SIZE,
        loop.LOOP_CHANGE_FD,
        loop.LOOP_CLR_FD,
        block.BLKFLSBUF,
        block.BLKRRPART,
        block.BLKPG,
        block.BLKBSZSET,
        block.BLKBSZSET - block.WORDS_APART,
    }
)


class Range(NamedTuple):
    """Bytes of a device: the first one, and how many."""

    start: int
    length: int


def nodes_of(disk: LoopDevice) -> list[BlockDevice]:
    """The disk and its partitions: those that have pages of it, if they are open."""
    devices = [disk, *disk.partitions.in_order()]
    return [device for device in devices if device.openers]


def seen_by(device: BlockDevice, start: int, length: int, other: BlockDevice) -> Range | None:
    """The part of ``other`` that is the same bytes as a part of ``device``.

    Args:
        start, length: the part of ``device``, in bytes.
        other: a device of the same disk.
    """
    start += device.start
    low = max(start, other.start)
    high = min(start + length, other.start + other.capacity)
    return Range(low - other.start, high - low) if low < high else None
