"""File data (fs/ext4/file.c, inode.c, extents.c): reading, writing, sizes, holes.

Data is written to its final location at once, the metadata that refers to it at the next commit, as
with data=ordered.
"""

from __future__ import annotations

import errno
import os

from loopfs.ext4 import inline
from loopfs.ext4.errors import refused
from loopfs.ext4.extents import MAX_BLOCK
from loopfs.ext4.extents_status import MAX_UNWRITTEN, find, pieces
from loopfs.ext4.inode import Inode
from loopfs.ext4.volume import Volume, now_of
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE

_ZEROS = memoryview(bytes(1 << 20))


def read(volume: Volume, inode: Inode, offset: int, buffer: memoryview) -> int:
    """Fill ``buffer`` from ``offset`` on; return the number of bytes, fewer at the end of file."""
    size = min(len(buffer), inode.size - offset)
    if size <= 0:
        return 0
    if inode.has_inline_data:
        buffer[:size] = inline.content(volume, inode)[offset : offset + size]
        return size
    unit = volume.super.block_size
    first, skip = divmod(offset, unit)
    count = -(-(skip + size) // unit)
    at = 0
    for _, length, place in pieces(volume.map(inode), first, count):
        part = min(length * unit - skip, size - at)
        if place is None:
            buffer[at : at + part] = bytes(part)
        else:
            volume.device.read_into(place * unit + skip, buffer[at : at + part])
        at, skip = at + part, 0
    return size


def most_size(volume: Volume, inode: Inode) -> int:
    """Return the largest possible size of the file, in bytes."""
    return volume.most_blocks(inode) * volume.super.block_size


def write(volume: Volume, inode: Inode, offset: int, data: memoryview) -> int:
    """Write ``data``; return the number of bytes, fewer if the filesystem is full.

    Raises:
        OSError: ENOSPC (nothing was written), EFBIG, or an error of the device.
    """
    volume.change()
    most = most_size(volume, inode)
    if offset >= most:
        raise refused(errno.EFBIG)
    data = data[: most - offset]
    volume.reserve()
    if inode.has_inline_data:
        inline.convert_file(volume, inode)
    done = 0
    try:
        while done < len(data):
            done += _write_some(volume, inode, offset + done, data[done:])
            # The next part may wait for a commit, which must not store blocks beyond the size.
            inode.size = max(inode.size, offset + done)
    except OSError as problem:
        if problem.errno != errno.ENOSPC or not done:
            raise
    finally:
        if done:
            inode.mtime = inode.ctime = now_of(volume, inode)
            volume.touch(inode)
    return done


def _write_some(volume: Volume, inode: Inode, offset: int, data: memoryview) -> int:
    unit, mapped = volume.super.block_size, volume.map(inode)
    volume.reserve(-(-len(data) // unit))
    block, skip = divmod(offset, unit)
    _, extent = find(mapped, block)
    here = extent is not None and extent[0] <= block
    if extent is not None and here and not extent[3]:
        size = min(len(data), (extent[0] + extent[1]) * unit - offset)
        volume.device.write((extent[2] + block - extent[0]) * unit + skip, data[:size])
        return size
    want = -(-(skip + len(data)) // unit)
    if extent is not None and here:
        count = min(want, extent[0] + extent[1] - block)
        run = extent[2] + block - extent[0], count
    else:
        if extent is not None:
            want = min(want, extent[0] - block)
        run = volume.allocate(volume.goal(inode, block), want)
    place, count = run
    size = min(len(data), count * unit - skip)
    tail = -(skip + size) % unit
    parts = [part for part in (_ZEROS[:skip], data[:size], _ZEROS[:tail]) if part]
    try:
        volume.device.write(place * unit, *parts)
    except OSError:
        if not here:
            volume.release(*run)
        raise
    if here:
        volume.written(inode, block, count)
    else:
        volume.insert(inode, block, run, False)
    return size


def truncate(volume: Volume, inode: Inode, size: int) -> None:
    """Set the size of a file. Raises OSError EFBIG."""
    volume.change()
    if size > most_size(volume, inode):
        raise refused(errno.EFBIG)
    volume.reserve()
    if inode.has_inline_data:
        inline.convert_file(volume, inode)
    if size < inode.size:
        unit = volume.super.block_size
        _zero_within(volume, inode, size, -size % unit)
        volume.remove(inode, -(-size // unit), MAX_BLOCK + 1)
    inode.size = size
    inode.mtime = inode.ctime = now_of(volume, inode)
    volume.touch(inode)


def _zero_within(volume: Volume, inode: Inode, offset: int, length: int) -> None:
    """Write zeros to a part of one block, if the block has data."""
    unit = volume.super.block_size
    block, skip = divmod(offset, unit)
    for _, _, place in pieces(volume.map(inode), block, 1):
        if place is not None and length:
            volume.device.write(place * unit + skip, bytes(length))


def fallocate(volume: Volume, inode: Inode, mode: int, offset: int, length: int) -> None:
    """Implement fallocate(2). Raises OSError EOPNOTSUPP, EFBIG, ENOSPC."""
    volume.change()
    known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE
    mapped = not (inode.has_extents or inode.has_inline_data)  # a block map: only holes
    if mode & ~known or (mapped and not mode & FALLOC_FL_PUNCH_HOLE):
        raise refused(errno.EOPNOTSUPP)
    if not inode.is_regular:
        raise refused(errno.EOPNOTSUPP if inode.is_dir else errno.ENODEV)
    end = offset + length
    if end > most_size(volume, inode):
        raise refused(errno.EFBIG)
    volume.reserve()
    if inode.has_inline_data:
        inline.convert_file(volume, inode)
    if mode & FALLOC_FL_PUNCH_HOLE:
        _punch(volume, inode, offset, min(end, _round_up(volume, inode.size)))
    else:
        if mode & FALLOC_FL_ZERO_RANGE:
            _punch(volume, inode, offset, end)
        _preallocate(volume, inode, offset, end)
        if not mode & FALLOC_FL_KEEP_SIZE and end > inode.size:
            inode.size = end
    inode.mtime = inode.ctime = now_of(volume, inode)
    volume.touch(inode)


def _round_up(volume: Volume, size: int) -> int:
    return size + -size % volume.super.block_size


def _punch(volume: Volume, inode: Inode, offset: int, end: int) -> None:
    unit = volume.super.block_size
    if end <= offset:
        return
    first, last = -(-offset // unit), end // unit
    if offset // unit == (end - 1) // unit and (offset % unit or end % unit):
        _zero_within(volume, inode, offset, end - offset)
        return
    _zero_within(volume, inode, offset, -offset % unit)
    _zero_within(volume, inode, end - end % unit, end % unit)
    if last > first:
        volume.remove(inode, first, last)


def _preallocate(volume: Volume, inode: Inode, offset: int, end: int) -> None:
    unit = volume.super.block_size
    block, last = offset // unit, -(-end // unit)
    while block < last:
        _, extent = find(volume.map(inode), block)
        if extent is not None and extent[0] <= block:
            block = extent[0] + extent[1]
            continue
        stop = min(last if extent is None else min(last, extent[0]), block + MAX_UNWRITTEN)
        volume.reserve(stop - block)
        run = volume.allocate(volume.goal(inode, block), stop - block)
        volume.insert(inode, block, run, True)
        block += run[1]


def seek(volume: Volume, inode: Inode, offset: int, whence: int) -> int:
    """Implement SEEK_DATA and SEEK_HOLE. Raises OSError ENXIO, EINVAL."""
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        raise refused(errno.EINVAL)
    if offset >= inode.size or offset < 0:
        raise refused(errno.ENXIO)
    if inode.has_inline_data:
        return offset if whence == os.SEEK_DATA else inode.size
    unit = volume.super.block_size
    first = offset // unit
    count = -(-inode.size // unit) - first
    for block, _, place in pieces(volume.map(inode), first, count):
        if (place is not None) == (whence == os.SEEK_DATA):
            return max(offset, block * unit)
    if whence == os.SEEK_HOLE:
        return inode.size
    raise refused(errno.ENXIO)
