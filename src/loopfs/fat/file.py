"""Operations on the data and attributes of an inode (fs/fat/file.c)."""

from __future__ import annotations

import errno

from loopfs.fat.dir import load
from loopfs.fat.errors import refused
from loopfs.fat.inode import ATTR_ARCH, ATTR_RO, MAX_SIZE, Inode
from loopfs.fat.namei import changing
from loopfs.fat.volume import Volume
from loopfs.lean import NamedTuple
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE
from loopfs.uapi.fuse import Attr

_PAGE = 4096
_RX, _W = 0o555, 0o222


class Changes(NamedTuple):
    """The attributes to change; None for those that stay. ``size``: bytes, times: nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None


def getattr(volume: Volume, inode: Inode) -> Attr:
    """Return the attributes for stat(2). The root has no times on disk."""
    links, size, atime, mtime = 1, inode.size, 0, 0
    if inode is not volume.root:
        mtime = volume.clock.nanoseconds(inode.date, inode.time)
        seen = inode.seen if volume.options.msdos else inode.adate
        atime = volume.clock.nanoseconds(seen, 0)
    if inode.is_dir:
        content = load(volume, inode)
        links, size = 2 + content.subdirs, len(content.data)
    options, unit = volume.options, volume.cluster
    return Attr(
        inode.ino,
        size,
        volume.mode(inode),
        0 if inode.gone else links,
        options.uid,
        options.gid,
        0,
        (atime, mtime, mtime),
        unit,
        -(-size // unit) * (unit >> 9),
    )


def setattr(volume: Volume, inode: Inode, changes: Changes) -> None:
    """Change attributes, as far as FAT can store them (fat_setattr()).

    Raises:
        OSError: EPERM, unless the option ``quiet`` is set; EISDIR, EFBIG, ENOSPC.
    """
    options = volume.options
    changing(volume, inode)
    other_owner = changes.uid not in (None, options.uid) or changes.gid not in (None, options.gid)
    if other_owner or (changes.mode is not None and changes.mode & 0o7000):
        if options.quiet:
            return
        raise refused(errno.EPERM)
    if changes.size is not None and changes.size != inode.size:
        truncate(volume, inode, changes.size)
    if changes.mode is not None:
        _chmod(volume, inode, changes.mode)
    if inode is volume.root:
        return
    if changes.atime is not None:
        date = volume.clock.pack(changes.atime)[0]
        if options.msdos:
            inode.seen = date
        else:
            inode.adate = date
    mtime = changes.mtime
    if mtime is None and changes.size is not None:
        mtime = volume.now()
    if mtime is not None:
        inode.date, inode.time, _ = volume.clock.pack(mtime)
    volume.save(inode)


def _chmod(volume: Volume, inode: Inode, mode: int) -> None:
    """Store a mode as fat_sanitize_mode() does: all users can write or none; else ignore it."""
    options = volume.options
    mask = options.dmask if inode.is_dir else options.fmask
    current, wanted, writable = volume.mode(inode), mode & 0o777 & ~mask, _W & ~mask
    if wanted & _RX != current & _RX:
        return
    # On a directory Windows gives the bit another meaning; the option rodir makes it count.
    holds = writable != 0 and (options.rodir or not inode.is_dir)
    if wanted & _W not in ((writable, 0) if holds else (writable,)):
        return
    if holds:
        inode.attr = inode.attr & ~ATTR_RO if wanted & _W else inode.attr | ATTR_RO


def truncate(volume: Volume, inode: Inode, size: int) -> None:
    """Set the size in bytes, and write table and entry.

    Raises:
        OSError: EISDIR, EFBIG, ENOSPC; nothing has changed then.
    """
    if inode.is_dir:
        raise refused(errno.EISDIR)
    if size > MAX_SIZE:
        raise refused(errno.EFBIG)
    if size > inode.size:
        _extend(volume, inode, size)
        inode.size = size
        volume.commit(inode)
        return
    want = -(-size // volume.cluster)
    volume.chain(inode)  # raises Damaged: a damaged chain is not cut
    # The entry first: it must never refer to clusters that another file has.
    start, inode.size = inode.start, size
    inode.start = start if want else 0
    try:
        volume.save(inode)
    finally:
        inode.start, inode.kept = start, False
        volume.shrink(inode, want)
    volume.table.flush()


def _extend(volume: Volume, inode: Inode, size: int) -> None:
    """Allocate clusters for ``size`` bytes, zeroed from the current size on, or change nothing."""
    before = volume.chain(inode).total
    volume.reserve(inode, size)
    try:
        volume.zero(inode, inode.size, size)
    except OSError:
        volume.shrink(inode, before)
        raise


def read(volume: Volume, inode: Inode, offset: int, buffer: memoryview) -> int:
    """Fill ``buffer`` from ``offset`` on; return the number of bytes, fewer at the end of file."""
    size = min(len(buffer), inode.size - offset)
    if size <= 0:
        return 0
    at = 0
    for place, length in volume.extents(inode, offset, size):
        volume.device.read_into(place, buffer[at : at + length])
        at += length
    return size


def accessed(volume: Volume, inode: Inode) -> None:
    """Update atime after a read. It is a date, so it changes once a day, as with relatime."""
    today = volume.clock.pack(volume.now())[0]
    if today > inode.adate and not inode.gone and inode is not volume.root:
        volume.change()
        inode.adate = today
        volume.save(inode)


def write(volume: Volume, inode: Inode, offset: int, data: memoryview) -> int:
    """Write ``data`` at ``offset``; return the number of bytes, fewer if the volume is full.

    Data, table and entry are written in this order, so that an entry never refers to data that is
    not written.

    Raises:
        OSError: ENOSPC, EFBIG, or an error of the device; the file is unchanged, or extended with
            zeros.
    """
    volume.change()
    if offset >= MAX_SIZE:
        raise refused(errno.EFBIG)
    end, before = min(offset + len(data), MAX_SIZE), volume.chain(inode).total
    try:
        if offset > inode.size:
            _extend(volume, inode, offset)
        end = _room(volume, inode, end)
        if end <= offset:
            raise refused(errno.ENOSPC)
        _store(volume, inode, offset, data[: end - offset], before)
    except OSError:
        volume.shrink(inode, max(before, -(-inode.size // volume.cluster)))
        volume.table.flush()
        raise
    inode.size = max(inode.size, end)
    inode.attr |= ATTR_ARCH
    inode.date, inode.time, _ = volume.clock.pack(volume.now())
    volume.commit(inode)
    return end - offset


def _room(volume: Volume, inode: Inode, end: int) -> int:
    """Allocate clusters up to ``end``; return the end of those that are available."""
    want, unit = -(-end // volume.cluster), volume.cluster
    if want > volume.chain(inode).total:
        volume.grow(inode, want)
        end = min(end, volume.chain(inode).total * unit)
    return end


def _store(volume: Volume, inode: Inode, offset: int, data: memoryview, before: int) -> None:
    """Write data to clusters, of which the first ``before`` existed already."""
    end, clusters = offset + len(data), volume.chain(inode).total
    for place, length in volume.extents(inode, offset, len(data)):
        pad = 0
        if length == len(data) and clusters > before:
            # Pad the last page of a new cluster: a partial page would be read before it is written.
            pad = min(-(place + length) % _PAGE, clusters * volume.cluster - end)
        volume.device.write(place, data[:length], bytes(pad))
        data = data[length:]


def fallocate(volume: Volume, inode: Inode, mode: int, offset: int, length: int) -> None:
    """Allocate clusters for a range. With FALLOC_FL_KEEP_SIZE they are kept until the last close.

    Raises:
        OSError: EOPNOTSUPP, EFBIG, ENOSPC, EISDIR.
    """
    changing(volume, inode)
    if mode & ~FALLOC_FL_KEEP_SIZE:
        raise refused(errno.EOPNOTSUPP)
    if inode.is_dir:
        raise refused(errno.EISDIR)
    size = offset + length
    if size > MAX_SIZE:
        raise refused(errno.EFBIG)
    if mode & FALLOC_FL_KEEP_SIZE:
        volume.reserve(inode, size)
        inode.kept = True
    elif size > inode.size:
        _extend(volume, inode, size)
        inode.size = size
    inode.date, inode.time, _ = volume.clock.pack(volume.now())
    volume.commit(inode)


def close(volume: Volume, inode: Inode) -> None:
    """Free what the last close(2) of a file frees: a removed file, clusters beyond the size."""
    if volume.read_only:
        return
    if inode.gone:
        volume.orphans.discard(inode)
        volume.shrink(inode, 0)
        volume.drop_chain(inode)
        volume.table.flush()
    elif inode.kept:
        inode.kept = False
        volume.shrink(inode, -(-inode.size // volume.cluster))
        volume.save(inode)  # an empty file has lost its first cluster
        volume.table.flush()
