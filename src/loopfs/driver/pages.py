"""Which cache holds which bytes of a disk, and when cached pages are written or dropped.

A node of an instance has pages in the kernel's page cache. write(2) returns after the data is in
the image, so these pages are clean; only a store through mmap(2) makes a page dirty. A filesystem
mounted from a device is served by an engine, which has a cache of its own:

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

An engine that uses the backing file itself instead of a device has no dirty pages: what it has
written is in the image. So each byte has one writer: the nodes, or the engine of a mounted
filesystem. Before a state changes, or an ioctl (:data:`CHANGES`) changes what a page contains, the
dirty pages of the disk and of its partitions are written and all pages are dropped. They are
dropped again when an engine has released the device. As in the kernel, a disk and its partitions
have separate caches.
"""

from __future__ import annotations

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.lean import NamedTuple
from loopfs.uapi import block, loop

# Commands of ioctl(2), 64-bit and 32-bit, before which pages are written and dropped.
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
    """A range of bytes of a device."""

    start: int
    length: int


def nodes_of(disk: LoopDevice) -> list[BlockDevice]:
    """Return the disk and its partitions that are open: only these can have cached pages."""
    devices = [disk, *disk.partitions.in_order()]
    return [device for device in devices if device.openers]


def seen_by(device: BlockDevice, start: int, length: int, other: BlockDevice) -> Range | None:
    """Return the part of ``other`` that has the same bytes as a part of ``device``.

    Args:
        start, length: the part of ``device``, in bytes.
        other: a device on the same disk.
    """
    start += device.start
    low = max(start, other.start)
    high = min(start + length, other.start + other.capacity)
    return Range(low - other.start, high - low) if low < high else None
