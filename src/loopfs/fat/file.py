"""What is done with an inode's data and attributes (fs/fat/file.c)."""

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
    """What setattr is to change: None for what stays. ``size`` is bytes, times nanoseconds."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None


def getattr(volume: Volume, inode: Inode) -> Attr:
    """What stat(2) says; the root has no times on disk."""
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
    """chmod(2), chown(2), truncate(2), utimensat(2): what FAT can keep of them (fat_setattr()).

    Raises:
        OSError: EPERM, unless ``quiet``; EISDIR, EFBIG, ENOSPC.
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
    """fat_sanitize_mode(): all may write or nobody; what cannot be kept is silently left."""
    options = volume.options
    mask = options.dmask if inode.is_dir else options.fmask
    current, wanted, writable = volume.mode(inode), mode & 0o777 & ~mask, _W & ~mask
    if wanted & _RX != current & _RX:
        return
    # Of a directory the bit means something else to Windows; rodir says that it counts.
    holds = writable != 0 and (options.rodir or not inode.is_dir)
    if wanted & _W not in ((writable, 0) if holds else (writable,)):
        return
    if holds:
        inode.attr = inode.attr & ~ATTR_RO if wanted & _W else inode.attr | ATTR_RO


def truncate(volume: Volume, inode: Inode, size: int) -> None:
    """Another size in bytes; table and entry are written.

    Raises:
        OSError: EISDIR, EFBIG, ENOSPC; then nothing has changed.
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
    volume.chain(inode)  # a damaged one is not to be cut
    # The entry first: it must not promise clusters that are another's.
    start, inode.size = inode.start, size
    inode.start = start if want else 0
    try:
        volume.save(inode)
    finally:
        inode.start, inode.kept = start, False
        volume.shrink(inode, want)
    volume.table.flush()


def _extend(volume: Volume, inode: Inode, size: int) -> None:
    """Clusters for ``size`` bytes, and zeros from the present size on; all or nothing."""
    before = volume.chain(inode).total
    volume.reserve(inode, size)
    try:
        volume.zero(inode, inode.size, size)
    except OSError:
        volume.shrink(inode, before)
        raise


def read(volume: Volume, inode: Inode, offset: int, buffer: memoryview) -> int:
    """Fill ``buffer`` with what is at ``offset``; returns the bytes read, fewer at the end."""
    size = min(len(buffer), inode.size - offset)
    if size <= 0:
        return 0
    at = 0
    for place, length in volume.extents(inode, offset, size):
        volume.device.read_into(place, buffer[at : at + length])
        at += length
    return size


def accessed(volume: Volume, inode: Inode) -> None:
    """After a read: of atime a date is kept, and it is renewed as with relatime."""
    today = volume.clock.pack(volume.now())[0]
    if today > inode.adate and not inode.gone and inode is not volume.root:
        volume.change()
        inode.adate = today
        volume.save(inode)


def write(volume: Volume, inode: Inode, offset: int, data: memoryview) -> int:
    """Store ``data`` at ``offset``; returns how many bytes, fewer when the volume is full.

    Data, table and entry are written in that order, so that no entry ever promises what is not
    there.

    Raises:
        OSError: ENOSPC, EFBIG, and the device's; the file is as it was, or longer by zeros.
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
    """Clusters up to ``end``; returns the end of those that could be had."""
    want, unit = -(-end // volume.cluster), volume.cluster
    if want > volume.chain(inode).total:
        volume.grow(inode, want)
        end = min(end, volume.chain(inode).total * unit)
    return end


def _store(volume: Volume, inode: Inode, offset: int, data: memoryview, before: int) -> None:
    """Write data into clusters; ``before`` of them are old."""
    end, clusters = offset + len(data), volume.chain(inode).total
    for place, length in volume.extents(inode, offset, len(data)):
        pad = 0
        if length == len(data) and clusters > before:
            # The last page of a new cluster: a whole one need not be read before it is written.
            pad = min(-(place + length) % _PAGE, clusters * volume.cluster - end)
        volume.device.write(place, data[:length], bytes(pad))
        data = data[length:]


def fallocate(volume: Volume, inode: Inode, mode: int, offset: int, length: int) -> None:
    """Clusters for a range; kept beyond the file's size until it is closed, if so asked.

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
    """The last open file is gone: so is what only that kept."""
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
        volume.save(inode)  # of an empty file also the first cluster is gone
        volume.table.flush()
