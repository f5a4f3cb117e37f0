"""Directory operations: create, link, unlink, rename (fs/ext4/namei.c), and what is inherited."""

from __future__ import annotations

import errno
import stat

from loopfs.ext4 import acl, extents, file, xattr
from loopfs.ext4 import dir as directories
from loopfs.ext4.dir import FILE_TYPES
from loopfs.ext4.errors import Damaged, refused
from loopfs.ext4.inode import (
    FL_APPEND,
    FL_EXTENTS,
    FL_IMMUTABLE,
    FL_INHERITED,
    FL_OTHER,
    FL_REGULAR,
    Inode,
)
from loopfs.ext4.super import RO_COMPAT_DIR_NLINK
from loopfs.ext4.volume import LINK_MAX, Volume, now_of
from loopfs.fuse.tree import Caller

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


def lookup(volume: Volume, parent: Inode, name: bytes) -> Inode:
    """Return the inode that ``name`` refers to.

    Raises:
        OSError: ENOENT, ENAMETOOLONG, ENOTDIR, EUCLEAN.
    """
    if name == b".":
        return parent
    if name == b"..":
        return volume.get(directories.load(volume, parent).parent)
    found = directories.find(volume, parent, name)
    if found is None:
        raise refused(errno.ENOENT)
    return volume.get(found[0])


def _changing(volume: Volume, parent: Inode, blocks: int = 0) -> None:
    volume.change()
    volume.reserve(blocks)
    if not parent.nlink:
        raise refused(errno.ENOENT)
    if parent.flags & FL_IMMUTABLE:
        raise refused(errno.EPERM)


def _stamp(volume: Volume, *inodes: Inode) -> None:
    for inode in inodes:
        inode.mtime = inode.ctime = now_of(volume, inode)
        volume.touch(inode)


# --- making ------------------------------------------------------------------------


def make(
    volume: Volume,
    parent: Inode,
    name: bytes | None,
    mode: int,
    caller: Caller,
    *,
    rdev: int = 0,
    target: bytes = b"",
) -> Inode:
    """Make a new inode of any type, with a directory entry.

    Args:
        name: None: no directory entry (O_TMPFILE).
        mode: with the file type.
        target: of a symbolic link.
    Raises:
        OSError: EEXIST, ENAMETOOLONG, ENOSPC, EMLINK, EPERM.
    """
    _changing(volume, parent, 1)  # a block for the target of a symbolic link
    if name is not None and directories.find(volume, parent, name) is not None:
        raise refused(errno.EEXIST)
    if stat.S_ISDIR(mode) and _is_full(volume, parent):
        raise refused(errno.EMLINK)
    if len(target) >= volume.super.block_size:
        raise refused(errno.ENAMETOOLONG)
    directories.load(volume, parent)
    mode, attributes = _inherit(volume, parent, mode, caller.umask)
    volume.reserve(1 + xattr.blocks_of(volume, attributes))
    gid = caller.gid
    if parent.mode & stat.S_ISGID or volume.options.grpid:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= parent.mode & stat.S_ISGID
    inode = volume.make(parent, mode, caller.uid, gid)
    try:
        _fill(volume, inode, parent, rdev, target, attributes)
        if name is not None:
            directories.add(volume, parent, name, inode.ino, FILE_TYPES[stat.S_IFMT(mode)])
    except OSError:
        volume.end(inode)
        raise
    if name is None:
        inode.nlink = 0
        volume.orphans.add(inode)
        volume.orphans_changed = True
        return inode
    if inode.is_dir:
        _count(volume, parent, 1)
    _stamp(volume, parent)
    return inode


def _inherit(
    volume: Volume, parent: Inode, mode: int, umask: int
) -> tuple[int, dict[bytes, bytes]]:
    """Return the mode and the access control lists of a new inode in a directory."""
    attributes: dict[bytes, bytes] = {}
    if stat.S_ISLNK(mode):
        return mode, attributes
    default = None
    if not volume.options.noacl and parent.xattrs != {}:
        default = xattr.find(volume, parent, acl.DEFAULT)
    if default is None:
        return mode & ~umask, attributes
    access, bits = acl.with_mode(default, mode, masked=True)
    if access is not None:
        attributes[acl.ACCESS] = access
    if stat.S_ISDIR(mode):
        attributes[acl.DEFAULT] = default
    return mode & ~0o777 | bits, attributes


def _fill(
    volume: Volume,
    inode: Inode,
    parent: Inode,
    rdev: int,
    target: bytes,
    attributes: dict[bytes, bytes],
) -> None:
    """Set up the contents of a new inode. Raises OSError ENOSPC."""
    inherited = parent.flags & FL_INHERITED
    if not inode.is_dir:
        inherited &= FL_REGULAR if inode.is_regular else FL_OTHER
    inode.flags |= inherited
    has_map = inode.is_regular or inode.is_dir or (inode.is_link and len(target) >= 60)
    if has_map and volume.super.incompat & 0x40:
        inode.flags |= FL_EXTENTS
        inode.block = extents.EMPTY
    if attributes:
        xattr.replace(volume, inode, attributes)
    if inode.is_dir:
        directories.make(volume, inode, parent.ino)
        inode.nlink = 2
    elif inode.is_link:
        if has_map:
            file.write(volume, inode, 0, memoryview(target))
            if inode.size != len(target):
                raise refused(errno.ENOSPC)
        else:
            inode.block, inode.size = target.ljust(60, b"\0"), len(target)
    elif rdev:
        inode.set_rdev(rdev)


def _is_full(volume: Volume, parent: Inode) -> bool:
    """Return whether a directory has as many subdirectories as possible (EXT4_DIR_LINK_MAX)."""
    return not volume.super.ro_compat & RO_COMPAT_DIR_NLINK and parent.nlink >= LINK_MAX


def _count(volume: Volume, parent: Inode, by: int) -> None:
    """Change a directory's link count; 1 stands for more than it can hold (dir_nlink)."""
    if parent.nlink == 1:
        return
    parent.nlink += by
    if parent.nlink >= LINK_MAX and volume.super.ro_compat & RO_COMPAT_DIR_NLINK:
        parent.nlink = 1
    parent.nlink = max(parent.nlink, 1)


def link(volume: Volume, inode: Inode, parent: Inode, name: bytes) -> None:
    """Add a name for an inode. Raises OSError EMLINK, EEXIST, EPERM, ENOSPC."""
    _changing(volume, parent)
    if inode.flags & (FL_IMMUTABLE | FL_APPEND):
        raise refused(errno.EPERM)
    if inode.nlink >= LINK_MAX:
        raise refused(errno.EMLINK)
    if directories.find(volume, parent, name) is not None:
        raise refused(errno.EEXIST)
    directories.add(volume, parent, name, inode.ino, FILE_TYPES[stat.S_IFMT(inode.mode)])
    inode.nlink += 1
    if inode in volume.orphans:  # made by O_TMPFILE
        volume.orphans.discard(inode)
        volume.orphans_changed = True
        inode.dtime = 0
    inode.ctime = now_of(volume, inode)
    volume.touch(inode)
    _stamp(volume, parent)


def read_link(volume: Volume, inode: Inode) -> bytes:
    """Return the target of a symbolic link. Raises OSError EINVAL, EUCLEAN, EOPNOTSUPP."""
    if not inode.is_link:
        raise refused(errno.EINVAL)
    inode.check_readable()
    if not 0 < inode.size <= 4096:
        raise Damaged(f"the symbolic link {inode.ino} has {inode.size} bytes", inode.ino)
    if inode.is_fast_link and not inode.has_inline_data:
        target = inode.block[: inode.size]
    else:
        buffer = memoryview(bytearray(inode.size))
        file.read(volume, inode, 0, buffer)
        target = bytes(buffer)
    target = target.partition(b"\0")[0]
    if not target:
        raise Damaged(f"the symbolic link {inode.ino} is empty", inode.ino)
    return target


# --- removing ------------------------------------------------------------------------


def _victim(volume: Volume, parent: Inode, name: bytes) -> Inode:
    found = directories.find(volume, parent, name)
    if found is None:
        raise refused(errno.ENOENT)
    inode = volume.get(found[0])
    _may_go(parent, inode)
    return inode


def _may_go(parent: Inode, inode: Inode) -> None:
    if (parent.flags | inode.flags) & (FL_APPEND | FL_IMMUTABLE):
        raise refused(errno.EPERM)


def unlink(volume: Volume, parent: Inode, name: bytes) -> None:
    """Remove a name of a file. Raises OSError ENOENT, EISDIR, EPERM, EUCLEAN."""
    _changing(volume, parent)
    inode = _victim(volume, parent, name)
    if inode.is_dir:
        raise refused(errno.EISDIR)
    directories.drop(volume, parent, name)
    _stamp(volume, parent)
    _drop(volume, inode)


def rmdir(volume: Volume, parent: Inode, name: bytes) -> None:
    """Remove a directory. Raises OSError ENOENT, ENOTDIR, ENOTEMPTY, EPERM, EUCLEAN."""
    _changing(volume, parent)
    inode = _victim(volume, parent, name)
    _check_empty(volume, inode)
    directories.drop(volume, parent, name)
    _count(volume, parent, -1)
    _stamp(volume, parent)
    _drop(volume, inode)


def _check_empty(volume: Volume, inode: Inode) -> None:
    if not inode.is_dir:
        raise refused(errno.ENOTDIR)
    if directories.load(volume, inode).names:
        raise refused(errno.ENOTEMPTY)


def _drop(volume: Volume, inode: Inode) -> None:
    """Account for a removed name: decrement the link count, and free the inode if it was the last.

    While the kernel still refers to the inode, it becomes an orphan instead.
    """
    inode.ctime = now_of(volume, inode)
    inode.nlink = 0 if inode.is_dir else inode.nlink - 1
    if inode.nlink > 0:
        volume.touch(inode)
    elif inode.known:
        inode.nlink = 0
        volume.orphans.add(inode)
        volume.orphans_changed = True
        volume.touch(inode)
    else:
        volume.end(inode)


# --- renaming ------------------------------------------------------------------------


def rename(
    volume: Volume,
    parent: Inode,
    name: bytes,
    to: Inode,
    to_name: bytes,
    flags: int,
    caller: Caller,
) -> None:
    """Implement renameat2(2). The kernel has checked file types and that no loop results.

    Raises:
        OSError: ENOENT, EEXIST, ENOTEMPTY, EMLINK, EPERM, EINVAL, ENOSPC, ENAMETOOLONG.
    """
    _changing(volume, parent)
    _changing(volume, to)
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
        raise refused(errno.EINVAL)
    inode = _victim(volume, parent, name)
    found = directories.find(volume, to, to_name)
    other = None if found is None else volume.get(found[0])
    if flags & RENAME_EXCHANGE:
        if other is None:
            raise refused(errno.ENOENT)
        _may_go(to, other)
        _check_moves(volume, inode, parent, to)
        _check_moves(volume, other, to, parent)
        _exchange(volume, parent, name, inode, to, to_name, other)
        return
    if other is not None:
        if flags & RENAME_NOREPLACE:
            raise refused(errno.EEXIST)
        if other is inode:
            return
        _may_go(to, other)
        if inode.is_dir:
            _check_empty(volume, other)
        elif other.is_dir:
            raise refused(errno.EISDIR)
    elif inode.is_dir and to is not parent and _is_full(volume, to):
        raise refused(errno.EMLINK)
    _check_moves(volume, inode, parent, to)
    white = None
    if flags & RENAME_WHITEOUT:
        white = make(volume, parent, None, stat.S_IFCHR, caller._replace(umask=0))
    kind = FILE_TYPES[stat.S_IFMT(inode.mode)]
    if other is not None:
        directories.change(volume, to, to_name, inode.ino, kind)
    else:
        try:
            directories.add(volume, to, to_name, inode.ino, kind)
        except OSError:
            if white is not None:
                volume.end(white)
            raise
    if white is not None:
        directories.change(volume, parent, name, white.ino, FILE_TYPES[stat.S_IFCHR])
        white.nlink = 1
        volume.orphans.discard(white)
        volume.touch(white)
    else:
        directories.drop(volume, parent, name)
    if other is not None:
        if other.is_dir:
            _count(volume, to, -1)
        _drop(volume, other)
    _moved(volume, inode, parent, to)
    inode.ctime = now_of(volume, inode)
    volume.touch(inode)
    _stamp(volume, parent, to)


def _exchange(
    volume: Volume,
    parent: Inode,
    name: bytes,
    inode: Inode,
    to: Inode,
    to_name: bytes,
    other: Inode,
) -> None:
    directories.change(volume, parent, name, other.ino, FILE_TYPES[stat.S_IFMT(other.mode)])
    directories.change(volume, to, to_name, inode.ino, FILE_TYPES[stat.S_IFMT(inode.mode)])
    _moved(volume, inode, parent, to)
    _moved(volume, other, to, parent)
    for one in (inode, other):
        one.ctime = now_of(volume, one)
        volume.touch(one)
    _stamp(volume, parent, to)


def _check_moves(volume: Volume, inode: Inode, parent: Inode, to: Inode) -> None:
    """Check that :func:`_moved` will succeed. Raises OSError EUCLEAN, EBADMSG, EOPNOTSUPP."""
    if inode.is_dir and parent is not to:
        directories.load(volume, inode)


def _moved(volume: Volume, inode: Inode, parent: Inode, to: Inode) -> None:
    """Update ".." of a directory and the link counts of its old and its new parent."""
    if inode.is_dir and parent is not to:
        directories.change(volume, inode, b"..", to.ino, 2)
        _count(volume, parent, -1)
        _count(volume, to, 1)
        volume.touch(inode)
