"""Directory operations: lookup, create, remove, rename (fs/fat/namei_vfat.c)."""

from __future__ import annotations

import errno

from loopfs.fat.boot import ENTRY_SIZE
from loopfs.fat.dir import Directory, dots, load
from loopfs.fat.errors import refused
from loopfs.fat.inode import ATTR_ARCH, ATTR_DIR, ATTR_SYS, Inode
from loopfs.fat.volume import Volume

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_START_HIGH, _START_LOW = 20, 26  # offsets in a short entry


def find(volume: Volume, parent: Inode, name: bytes) -> Inode | None:
    """Return the inode that a name refers to in any spelling, or None."""
    return load(volume, parent).by_key.get(volume.names.key(name))


def lookup(volume: Volume, parent: Inode, name: bytes) -> Inode:
    """Return the inode that a name refers to in any spelling.

    Raises:
        OSError: ENOENT.
    """
    found = find(volume, parent, name)
    if found is None:
        raise refused(errno.ENOENT)
    return found


def changing(volume: Volume, *inodes: Inode) -> None:
    """Prepare for a change of inodes, or for removing or moving them.

    Raises:
        OSError: EROFS; EPERM: one is immutable (option sys_immutable).
    """
    volume.change()
    if volume.options.sys_immutable and any(inode.attr & ATTR_SYS for inode in inodes):
        raise refused(errno.EPERM)


def create(volume: Volume, parent: Inode, name: bytes) -> Inode:
    """Make a file.

    Raises:
        OSError: EEXIST, ENOSPC, or the error of an invalid name.
    """
    content, text = _place_for(volume, parent, name)
    inode = volume.fresh(volume.names.attributes(ATTR_ARCH, name))
    content.add(inode, text)
    volume.touch(parent)
    return inode


def mkdir(volume: Volume, parent: Inode, name: bytes) -> Inode:
    """Make a directory. Raises OSError as :func:`create`."""
    content, text = _place_for(volume, parent, name)
    inode = volume.fresh(volume.names.attributes(ATTR_DIR, name))
    volume.reserve(inode, 1)
    try:
        data = bytearray(volume.cluster)
        data[: 2 * ENTRY_SIZE] = dots(inode, _dotdot(volume, parent))
        volume.device.write(volume.place(inode.start), data)
        volume.table.flush()
        content.add(inode, text)
    except OSError:
        volume.shrink(inode, 0)
        volume.table.flush()
        raise
    made = Directory(volume, inode, data)
    made.used[:2] = b"\1\1"
    volume.hold(inode, made)
    volume.touch(parent)
    return inode


def _place_for(volume: Volume, parent: Inode, name: bytes) -> tuple[Directory, str]:
    if parent.gone:
        raise refused(errno.ENOENT)
    if find(volume, parent, name) is not None:
        raise refused(errno.EEXIST)
    changing(volume, parent)
    return load(volume, parent), volume.names.decode(name)


def _dotdot(volume: Volume, parent: Inode) -> int:
    return 0 if parent is volume.root else parent.start


def unlink(volume: Volume, parent: Inode, name: bytes) -> Inode:
    """Remove a file's name. If it is open, its clusters are freed when it is closed.

    Raises:
        OSError: ENOENT, EISDIR.
    """
    inode = lookup(volume, parent, name)
    if inode.is_dir:
        raise refused(errno.EISDIR)
    changing(volume, parent, inode)
    load(volume, parent).remove(inode)
    try:
        volume.touch(parent)
    finally:
        lose(volume, inode)
    return inode


def rmdir(volume: Volume, parent: Inode, name: bytes) -> Inode:
    """Remove an empty directory.

    Raises:
        OSError: ENOENT, ENOTDIR, ENOTEMPTY.
    """
    inode = lookup(volume, parent, name)
    if not inode.is_dir:
        raise refused(errno.ENOTDIR)
    if load(volume, inode):
        raise refused(errno.ENOTEMPTY)
    changing(volume, parent, inode)
    load(volume, parent).remove(inode)
    try:
        volume.touch(parent)
    finally:
        lose(volume, inode)
    return inode


def lose(volume: Volume, inode: Inode) -> None:
    """Free the clusters of an inode without a name, now or when it is closed."""
    inode.gone = True
    if inode.opens:
        volume.orphans.add(inode)
        return
    volume.shrink(inode, 0)
    volume.drop_chain(inode)
    inode.size = 0
    volume.table.flush()


def rename(
    volume: Volume, parent: Inode, name: bytes, to: Inode, to_name: bytes, flags: int
) -> tuple[Inode, Inode | None]:
    """Move a file or directory. If the new name exists, its spelling is kept.

    Args:
        flags: RENAME_NOREPLACE or RENAME_EXCHANGE.
    Returns:
        The inode that was moved, and the other inode that had the new name, or None.
    Raises:
        OSError: ENOENT, EEXIST, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL, ENOSPC and more.
    """
    known = RENAME_NOREPLACE if volume.options.msdos else RENAME_NOREPLACE | RENAME_EXCHANGE
    if flags & ~known:
        raise refused(errno.EINVAL)
    inode, victim = lookup(volume, parent, name), find(volume, to, to_name)
    changing(volume, parent, to, inode, *([victim] if victim else []))
    if flags & RENAME_EXCHANGE:
        if victim is None:
            raise refused(errno.ENOENT)
        if victim is not inode:
            _exchange(volume, inode, victim)
        return inode, victim
    if to is inode.parent and volume.names.differs_by_dot(to_name, inode.short):
        return inode, None  # the kernel treats both as one name
    if victim is inode:
        return inode, None
    if victim is not None:
        _check_victim(volume, inode, victim, flags)
    if to.gone:
        raise refused(errno.ENOENT)
    if inode.is_dir and _is_within(to, inode):
        raise refused(errno.EINVAL)
    attr = volume.names.attributes(inode.attr, to_name)
    _move(volume, inode, to, to_name, victim, attr)
    return inode, victim


def set_attributes(volume: Volume, inode: Inode, attr: int) -> None:
    """Set ATTR_*, on which the name can depend (type msdos)."""
    if not volume.options.msdos or inode.gone or inode.parent is None:
        inode.attr = attr
    else:
        content = load(volume, inode.parent)
        content.leave(inode)
        inode.attr = attr
        inode.name = volume.names.named(inode.short, inode.lcase, attr, None)
        content.enter(inode)
    volume.save(inode)


def _check_victim(volume: Volume, inode: Inode, victim: Inode, flags: int) -> None:
    if flags & RENAME_NOREPLACE:
        raise refused(errno.EEXIST)
    if victim.is_dir != inode.is_dir:
        raise refused(errno.EISDIR if victim.is_dir else errno.ENOTDIR)
    if victim.is_dir and load(volume, victim):
        raise refused(errno.ENOTEMPTY)


def _is_within(inode: Inode | None, directory: Inode) -> bool:
    while inode is not None:
        if inode is directory:
            return True
        inode = inode.parent
    return False


def _move(
    volume: Volume, inode: Inode, to: Inode, name: bytes, victim: Inode | None, attr: int
) -> None:
    """Write the new entry, then free the old one, so that at least one survives a crash.

    If both are in the same page of a directory, they are changed by a single write.

    Args:
        attr: the attributes to set.
    """
    parent = inode.parent
    assert parent is not None, "the root has no directory entry"
    old, new = load(volume, parent), load(volume, to)
    at_once = old is new
    was = _shadow(volume, inode)
    _swap_in(old, inode, was)
    inode.attr = attr
    try:
        if victim is None:
            new.add(inode, volume.names.decode(name), write=not at_once)
        else:
            _take_entry(new, inode, victim, write=not at_once)
    except OSError:
        _restore(inode, was)
        inode.attr = was.attr
        _swap_in(old, was, inode)
        raise
    old.remove(was, write=False)
    if victim is not None:
        victim.gone = True
    # After this point a failed write is repeated by the next sync: in memory the move is complete.
    try:
        _reparent(volume, inode, parent)
        old.flush()
        volume.touch(to)
        if parent is not to:
            volume.touch(parent)
    finally:
        if victim is not None:
            lose(volume, victim)


def _shadow(volume: Volume, inode: Inode) -> Inode:
    """Return an inode that stands for the old entry until that is removed."""
    was = Inode(inode.ino, inode.parent)
    was.attr, was.name, was.keys = inode.attr, inode.name, inode.keys
    was.first, was.slot = inode.first, inode.slot
    was.short, was.lcase = inode.short, inode.lcase
    return was


def _swap_in(content: Directory, one: Inode, other: Inode) -> None:
    """Make ``other`` own the entry of ``one`` in the tables of a directory."""
    content.inodes[one.slot] = other
    for table in (content.by_key, content.shorts):
        for key in [*one.keys, one.short]:
            if table.get(key) is one:
                table[key] = other


def _restore(inode: Inode, was: Inode) -> None:
    inode.parent, inode.name, inode.keys = was.parent, was.name, was.keys
    inode.first, inode.slot = was.first, was.slot
    inode.short, inode.lcase = was.short, was.lcase


def _take_entry(content: Directory, inode: Inode, victim: Inode, *, write: bool) -> None:
    """Give ``victim``'s entry, with the name written there, to ``inode``."""
    parent, first = victim.parent, victim.first
    content.leave(victim)
    inode.parent, inode.first, inode.slot = parent, first, victim.slot
    inode.short, inode.lcase, inode.name = victim.short, victim.lcase, victim.name
    content.replace(inode.slot, inode.packed())
    if write:
        try:
            content.flush()
        except OSError:
            content.replace(victim.slot, victim.packed())
            content.enter(victim)
            raise
    content.enter(inode)


def _reparent(volume: Volume, inode: Inode, old: Inode | None) -> None:
    """Update ".." of a directory that was moved."""
    parent = inode.parent
    if not inode.is_dir or parent is old or parent is None:
        return
    content = load(volume, inode)
    raw = content.data[ENTRY_SIZE : 2 * ENTRY_SIZE]
    if raw[:2] == b"..":
        up = _dotdot(volume, parent)
        raw[_START_HIGH : _START_HIGH + 2] = (up >> 16).to_bytes(2, "little")
        raw[_START_LOW : _START_LOW + 2] = (up & 0xFFFF).to_bytes(2, "little")
        content.replace(1, bytes(raw))
        content.flush()


def _exchange(volume: Volume, one: Inode, other: Inode) -> None:
    """Exchange two entries; with a single write if both are in the same page of a directory."""
    parents = one.parent, other.parent
    assert parents[0] is not None and parents[1] is not None, "the root has no directory entry"
    contents = load(volume, parents[0]), load(volume, parents[1])
    contents[0].leave(one)
    contents[1].leave(other)
    mine, its = _shadow(volume, one), _shadow(volume, other)
    _restore(one, its)
    _restore(other, mine)
    contents[0].enter(other)
    contents[1].enter(one)
    contents[1].replace(one.slot, one.packed())
    contents[0].replace(other.slot, other.packed())
    contents[1].flush()
    contents[0].flush()
    for inode, old in ((one, parents[0]), (other, parents[1])):
        _reparent(volume, inode, old)
        if inode.parent is not None:
            volume.touch(inode.parent)
