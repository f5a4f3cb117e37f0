"""The handlers of the requests that :class:`loopfs.fuse.server.Server` passes to its tree.

A handler decodes the request, calls the tree and encodes the reply.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from loopfs.fuse.tree import FACE, Buffer, Caller, Changes, Handle, Later, N
from loopfs.lean import TYPE_CHECKING, Callable
from loopfs.uapi import fuse as uapi
from loopfs.uapi.stat import STATX_BASIC_STATS, STATX_BTIME

if TYPE_CHECKING:
    from typing import Any

    from loopfs.fuse.server import Server

    Answer = Buffer | Later
    Handler = Callable[[Server[Any], int, Caller, bytes], Answer]

ATTR_VALID = 3600  # seconds for which attributes are cached: only the kernel changes them
_NO_ATTR = bytes(uapi.ATTR.size)
_NO_ENTRY = bytes(uapi.ENTRY_OUT.size + uapi.ATTR.size)
_SECOND = 1_000_000_000


def pack_entry(server: Server[N], found: tuple[N, int], face: int | None = None) -> bytes:
    """Return a struct fuse_entry_out, and count the lookup.

    Args:
        face: the node id in the reply; None: the node's own.
    """
    node, valid = found
    nodeid = node.nodeid if face is None else face
    attr = server.attr(node, nodeid).pack()
    server.count_lookup(node, nodeid)
    return uapi.ENTRY_OUT.pack(nodeid, 0, valid, _attr_valid(nodeid), 0, 0) + attr


def _attr_valid(nodeid: int) -> int:
    """Return how long attributes are cached: not at all for a face, which its node may change."""
    return 0 if nodeid & FACE else ATTR_VALID


def _pack_attr(server: Server[N], node: N, nodeid: int) -> bytes:
    """Return a struct fuse_attr_out."""
    head = uapi.ATTR_OUT.pack(_attr_valid(nodeid), 0, 0)
    return head + server.attr(node, nodeid).pack()


_TOUCH = uapi.FATTR_ATIME_NOW | uapi.FATTR_MTIME
_NOT_TIMES = uapi.FATTR_MODE | uapi.FATTR_UID | uapi.FATTR_GID | uapi.FATTR_SIZE


def unpack_changes(server: Server[N], body: bytes, now: int) -> Changes:
    """Decode a struct fuse_setattr_in; ``now`` (nanoseconds) replaces times set to "now"."""
    valid, _, fh, size, _, atime, mtime, ctime, an, mn, cn, mode, _, uid, gid, _ = (
        uapi.SETATTR_IN.unpack_from(body)
    )

    def moment(given: int, is_now: int, value: int) -> int | None:
        if valid & is_now:
            return now
        return value if valid & given else None

    # With the writeback cache the kernel sends its current time as mtime and as ctime.
    mtime_is_now = valid & uapi.FATTR_MTIME_NOW or (mtime, mn) == (ctime, cn)
    touch = valid & _NOT_TIMES == 0 and valid & _TOUCH == _TOUCH and bool(mtime_is_now)
    return Changes(
        touch=touch,
        mode=mode if valid & uapi.FATTR_MODE else None,
        uid=uid if valid & uapi.FATTR_UID else None,
        gid=gid if valid & uapi.FATTR_GID else None,
        size=size if valid & uapi.FATTR_SIZE else None,
        atime=moment(uapi.FATTR_ATIME, uapi.FATTR_ATIME_NOW, atime * _SECOND + an),
        mtime=moment(uapi.FATTR_MTIME, uapi.FATTR_MTIME_NOW, mtime * _SECOND + mn),
        ctime=moment(uapi.FATTR_CTIME, 0, ctime * _SECOND + cn),
        handle=server.handle(fh) if valid & uapi.FATTR_FH else None,
    )


def _name(body: bytes, at: int = 0) -> bytes:
    return body[at : body.index(0, at)]


def _opened(server: Server[N], handle: Handle[N], flags: int = 0) -> bytes:
    handle.noatime = bool(flags & os.O_NOATIME)
    return uapi.OPEN_OUT.pack(server.add_handle(handle), handle.flags, 0)


# --- nodes ------------------------------------------------------------------------


def _lookup(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    valid = server.tree.negative_valid
    try:
        found = server.tree.lookup(server.node(nodeid), _name(body))
    except FileNotFoundError:
        if not valid:
            raise
    else:
        return pack_entry(server, found, None if found[1] else server.tree.face(caller, found[0]))
    return uapi.ENTRY_OUT.pack(0, 0, valid, 0, 0, 0) + _NO_ATTR


def _forget(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    server.forget(nodeid, *uapi.FORGET_IN.unpack_from(body))
    return b""


def _batch_forget(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    (count,) = uapi.BATCH_FORGET_IN.unpack_from(body)
    begin = uapi.BATCH_FORGET_IN.size
    for one in uapi.FORGET_ONE.iter_unpack(body[begin : begin + count * uapi.FORGET_ONE.size]):
        server.forget(*one)
    return b""


def _getattr(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    flags, _, fh = uapi.GETATTR_IN.unpack_from(body)
    node = server.handle(fh).node if flags & uapi.FUSE_GETATTR_FH else server.node(nodeid)
    return _pack_attr(server, node, nodeid)


def _statx(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    """Reply to STATX, which the kernel sends for the birth time; it uses the other fields too."""
    flags, _, fh, _, _ = uapi.STATX_IN.unpack_from(body)
    node = server.handle(fh).node if flags & uapi.FUSE_GETATTR_FH else server.node(nodeid)
    born = server.tree.birth(node)
    attr = server.attr(node, nodeid)
    major, minor = attr.rdev >> 8 & 0xFFF, attr.rdev & 0xFF | attr.rdev >> 12 & 0xFFF00
    mask, atime, mtime, ctime = STATX_BASIC_STATS, *attr.times
    if born is not None:
        mask |= STATX_BTIME
    times = (divmod(time, _SECOND) for time in (atime, born or 0, ctime, mtime))
    return uapi.STATX_OUT.pack(
        *(
            _attr_valid(nodeid),
            0,
            0,
            mask,
            attr.blksize,
            0,
            attr.nlink,
            attr.uid,
            attr.gid,
            attr.mode,
        ),
        *(attr.ino, attr.size, attr.blocks, 0),
        *(part for time in times for part in time),
        *(major, minor, 0, 0),
    )


def _setattr(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> Answer:
    changes = unpack_changes(server, body, time.time_ns())
    node = server.node(nodeid)
    valid = uapi.SETATTR_IN.unpack_from(body)[0]
    owned = valid & (uapi.FATTR_UID | uapi.FATTR_GID)  # chown(2) clears the bits for every caller
    if valid & uapi.FATTR_KILL_SUIDGID and (caller.uid or owned):
        server.tree.drop_privileges(node)
    later = server.tree.setattr(caller, node, changes)
    if nodeid & FACE:
        server.attributes_changed(node.nodeid)

    def answer() -> bytes:
        return _pack_attr(server, node, nodeid)

    if later is None:
        return answer()
    work = later.work

    def both() -> bytes:
        work()
        return answer()

    return Later(both)


def _statfs(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    return uapi.STATFS_OUT.pack(*server.tree.statfs(), 0)


# --- names ------------------------------------------------------------------------


def _create(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    flags, mode, umask, _ = uapi.CREATE_IN.unpack_from(body)
    name, caller = _name(body, uapi.CREATE_IN.size), caller._replace(umask=umask)
    found, handle = server.tree.create(caller, server.node(nodeid), name, mode, flags)
    return pack_entry(server, found) + _opened(server, handle, flags)


def _mknod(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    mode, rdev, umask = uapi.MKNOD_IN.unpack_from(body)
    name, caller = _name(body, uapi.MKNOD_IN.size), caller._replace(umask=umask)
    found = server.tree.mknod(caller, server.node(nodeid), name, mode, rdev)
    attr = server.tree.getattr(found[0])
    if stat.S_IFMT(attr.mode) == stat.S_IFMT(mode):
        return pack_entry(server, found)
    # The kernel only accepts a file of the type that it has asked for.
    attr = attr._replace(mode=stat.S_IFMT(mode) | stat.S_IMODE(attr.mode), rdev=0)
    return uapi.ENTRY_OUT.pack(server.new_stand_in(), 0, 0, 0, 0, 0) + attr.pack()


def _mkdir(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    mode, umask = uapi.MKDIR_IN.unpack_from(body)
    name, caller = _name(body, uapi.MKDIR_IN.size), caller._replace(umask=umask)
    return pack_entry(server, server.tree.mkdir(caller, server.node(nodeid), name, mode))


def _symlink(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    name, target, *_ = body.split(b"\0")
    return pack_entry(server, server.tree.symlink(caller, server.node(nodeid), name, target))


def _link(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    (old,) = uapi.LINK_IN.unpack_from(body)
    parent, name = server.node(nodeid), _name(body, uapi.LINK_IN.size)
    return pack_entry(server, server.tree.link(caller, server.node(old), parent, name))


def _tmpfile(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    flags, mode, umask, _ = uapi.CREATE_IN.unpack_from(body)
    caller = caller._replace(umask=umask)
    found, handle = server.tree.tmpfile(caller, server.node(nodeid), mode, flags)
    return pack_entry(server, found) + _opened(server, handle, flags)


def _unlink(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    server.tree.unlink(caller, server.node(nodeid), _name(body))
    return b""


def _rmdir(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    server.tree.rmdir(caller, server.node(nodeid), _name(body))
    return b""


def _rename(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    (to,) = uapi.RENAME_IN.unpack_from(body)
    return _move(server, nodeid, caller, to, body[uapi.RENAME_IN.size :], 0)


def _rename2(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    to, flags = uapi.RENAME2_IN.unpack_from(body)
    return _move(server, nodeid, caller, to, body[uapi.RENAME2_IN.size :], flags)


def _move(
    server: Server[N], nodeid: int, caller: Caller, to: int, names: bytes, flags: int
) -> bytes:
    name, to_name, *_ = names.split(b"\0")
    parent, target = server.node(nodeid), server.node(to)
    server.tree.rename(caller, parent, name, target, to_name, flags)
    return b""


def _readlink(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    return server.tree.readlink(server.node(nodeid))


# --- extended attributes -------------------------------------------------------


def _setxattr(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    size, flags = uapi.SETXATTR_IN.unpack_from(body)
    name = _name(body, uapi.SETXATTR_IN.size)
    begin = uapi.SETXATTR_IN.size + len(name) + 1
    value = body[begin : begin + size]
    server.tree.setxattr(caller, server.node(nodeid), name, value, flags)
    return b""


def _getxattr(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    (room,) = uapi.GETXATTR_IN.unpack_from(body)
    name = _name(body, uapi.GETXATTR_IN.size)
    return _sized(server.tree.getxattr(server.node(nodeid), name), room)


def _listxattr(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    (room,) = uapi.GETXATTR_IN.unpack_from(body)
    names = server.tree.listxattr(server.node(nodeid))
    return _sized(b"".join(name + b"\0" for name in names), room)


def _sized(value: bytes, room: int) -> bytes:
    """Return a reply as for getxattr(2): the size alone if ``room`` is 0."""
    if not room:
        return uapi.GETXATTR_OUT.pack(len(value))
    if len(value) > room:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value


def _removexattr(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    server.tree.removexattr(caller, server.node(nodeid), _name(body))
    return b""


# --- open files -------------------------------------------------------------------


def _open(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    flags, open_flags = uapi.OPEN_IN.unpack_from(body)
    node = server.node(nodeid)
    if open_flags & uapi.FUSE_OPEN_KILL_SUIDGID and caller.uid:
        server.tree.drop_privileges(node)
    return _opened(server, server.tree.open(caller, node, flags), flags)


def _opendir(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    flags, _ = uapi.OPEN_IN.unpack_from(body)
    return _opened(server, server.tree.opendir(caller, server.node(nodeid)), flags)


def _release(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    fh, *_ = uapi.RELEASE_IN.unpack_from(body)
    server.tree.release(server.drop_handle(fh))
    return b""


def _readdir(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    fh, offset, size, *_ = uapi.READ_IN.unpack_from(body)
    out: list[bytes] = []
    for place, name, ino, kind, _ in server.tree.entries(server.handle(fh), offset):
        packed = uapi.pack_dirent(ino, place, kind, name)
        size -= len(packed)
        if size < 0:
            break
        out.append(packed)
    return b"".join(out)


def _readdirplus(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    fh, offset, size, *_ = uapi.READ_IN.unpack_from(body)
    out: list[bytes] = []
    for place, name, ino, kind, node in server.tree.entries(server.handle(fh), offset):
        packed = uapi.pack_dirent(ino, place, kind, name)
        size -= len(packed) + len(_NO_ENTRY)
        if size < 0:
            break
        entry = _NO_ENTRY
        if node is not None:
            try:
                entry = pack_entry(server, (node, ATTR_VALID))
            except OSError:  # a damaged node is listed without attributes; accessing it fails
                entry = _NO_ENTRY
        out += entry, packed
    return b"".join(out)


def _fsync(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> Answer:
    fh, flags, _ = uapi.FSYNC_IN.unpack_from(body)
    datasync = bool(flags & uapi.FUSE_FSYNC_FDATASYNC)
    return server.tree.fsync(server.handle(fh), datasync) or b""


def _fallocate(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> Answer:
    fh, offset, length, mode, _ = uapi.FALLOCATE_IN.unpack_from(body)
    return server.tree.fallocate(server.handle(fh), mode, offset, length) or b""


def _lseek(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    fh, offset, whence, _ = uapi.LSEEK_IN.unpack_from(body)
    return uapi.LSEEK_OUT.pack(server.tree.lseek(server.handle(fh), offset, whence))


def _ioctl(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    fh, flags, cmd, arg, in_size, out_size = uapi.IOCTL_IN.unpack_from(body)
    data = body[uapi.IOCTL_IN.size : uapi.IOCTL_IN.size + in_size]
    compat, handle = bool(flags & uapi.FUSE_IOCTL_COMPAT), server.handle(fh)
    result, out = server.tree.ioctl(caller, handle, cmd, arg, data, compat)
    return uapi.IOCTL_OUT.pack(result, 0, 0, 0) + out[:out_size]


def _nothing(server: Server[N], nodeid: int, caller: Caller, body: bytes) -> bytes:
    return b""


# Other requests are answered with ENOSYS, after which the kernel does not send them again and does
# the work itself: FLUSH, ACCESS, POLL, COPY_FILE_RANGE.
HANDLERS: dict[int, Handler] = {
    uapi.FUSE_LOOKUP: _lookup,
    uapi.FUSE_FORGET: _forget,
    uapi.FUSE_BATCH_FORGET: _batch_forget,
    uapi.FUSE_GETATTR: _getattr,
    uapi.FUSE_STATX: _statx,
    uapi.FUSE_SETATTR: _setattr,
    uapi.FUSE_STATFS: _statfs,
    uapi.FUSE_CREATE: _create,
    uapi.FUSE_MKNOD: _mknod,
    uapi.FUSE_MKDIR: _mkdir,
    uapi.FUSE_SYMLINK: _symlink,
    uapi.FUSE_LINK: _link,
    uapi.FUSE_TMPFILE: _tmpfile,
    uapi.FUSE_UNLINK: _unlink,
    uapi.FUSE_RMDIR: _rmdir,
    uapi.FUSE_RENAME: _rename,
    uapi.FUSE_RENAME2: _rename2,
    uapi.FUSE_READLINK: _readlink,
    uapi.FUSE_SETXATTR: _setxattr,
    uapi.FUSE_GETXATTR: _getxattr,
    uapi.FUSE_LISTXATTR: _listxattr,
    uapi.FUSE_REMOVEXATTR: _removexattr,
    uapi.FUSE_OPEN: _open,
    uapi.FUSE_OPENDIR: _opendir,
    uapi.FUSE_RELEASE: _release,
    uapi.FUSE_RELEASEDIR: _release,
    uapi.FUSE_READDIR: _readdir,
    uapi.FUSE_READDIRPLUS: _readdirplus,
    uapi.FUSE_FSYNC: _fsync,
    uapi.FUSE_FSYNCDIR: _fsync,
    uapi.FUSE_FALLOCATE: _fallocate,
    uapi.FUSE_LSEEK: _lseek,
    uapi.FUSE_IOCTL: _ioctl,
    uapi.FUSE_DESTROY: _nothing,
}
