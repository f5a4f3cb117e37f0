"""A session: one FUSE mount that is served by one reading thread.

Requests are dispatched in the order in which the kernel queues them. Filesystems rely on
this: close(2) queues its RELEASE before the caller's next system call, so a filesystem that answers
in this thread sees requests in the order of the caller's system calls.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache

from loopfs.errors import errno_of
from loopfs.fuse.connection import abort, watch
from loopfs.fuse.operations import Buffer, Operations, SetAttr
from loopfs.fuse.replies import BUFFER_SIZE, WANTED, pack_attr, pack_entry, pack_init
from loopfs.uapi import fuse as uapi

_HEADER = uapi.IN_HEADER.size
_WRITE_DATA = _HEADER + uapi.WRITE_IN.size

Answer = Buffer | None
Handler = Callable[["Session", "Request", bytes], Answer]


class Request:
    """A request of the kernel, which must be answered exactly once."""

    __slots__ = ("_fd", "from_cache", "gid", "nodeid", "pid", "uid", "unique")

    def __init__(
        self, fd: int, unique: int, nodeid: int, pid: int, uid: int = 0, gid: int = 0
    ) -> None:
        self._fd = fd
        self.unique = unique
        self.nodeid = nodeid
        self.pid = pid
        self.uid, self.gid = uid, gid
        self.from_cache = False  # whether a FUSE_WRITE is of dirty pages, not of a write(2)

    @property
    def connection(self) -> int:
        """The file descriptor of /dev/fuse from which it was read."""
        return self._fd

    def reply(self, *parts: Buffer) -> None:
        """Reply with success and the structures in ``parts``."""
        self._send((self._success(*parts), *parts))

    def reply_from(self, view: memoryview) -> None:
        """Reply with the contents of a mapping; with EIO if a part of it cannot be read."""
        try:
            self._write((self._success(view), view))
        except OSError as problem:
            if problem.errno != errno.EFAULT:  # then the kernel itself has failed it with EIO
                raise

    def fail(self, code: int) -> None:
        """Reply with the errno ``code``."""
        self._send((self._failure(code),))

    def fail_with(self, problem: Exception) -> None:
        """Reply with the errno of an exception; report one that is not a system error."""
        if not isinstance(problem, OSError | MemoryError):
            sys.excepthook(*sys.exc_info())  # a bug in loopfs: fails one request
        self.fail(errno_of(problem))

    def _failure(self, code: int) -> bytes:
        return uapi.OUT_HEADER.pack(uapi.OUT_HEADER.size, -code, self.unique)

    def reply_ioctl(self, result: int) -> None:
        """Reply to FUSE_IOCTL with the return value of ioctl(2)."""
        self.reply(uapi.IOCTL_OUT.pack(result, 0, 0, 0))

    def _success(self, *parts: Buffer) -> bytes:
        length = uapi.OUT_HEADER.size + sum(map(len, parts))
        return uapi.OUT_HEADER.pack(length, 0, self.unique)

    def _send(self, parts: tuple[Buffer, ...]) -> None:
        """Send a reply; if the kernel rejects it (a bug in loopfs, or no memory), reply with EIO.

        Without a reply the caller would block forever.
        """
        try:
            self._write(parts)
        except OSError:
            sys.excepthook(*sys.exc_info())
            try:
                self._write((self._failure(errno.EIO),))
            except OSError:
                sys.excepthook(*sys.exc_info())

    def _write(self, parts: tuple[Buffer, ...]) -> None:
        try:
            os.writev(self._fd, parts)
        except OSError as problem:
            # ENOENT: the request was interrupted or already answered; ENODEV: unmounted.
            if problem.errno not in (errno.ENOENT, errno.ENODEV):
                raise


class Session:
    """The server's end of one mount.

    Args:
        fd: an open /dev/fuse that has been or will be mounted; a :class:`Connection` if it is to be
            closed when it is no longer used.
        filesystem: the operations.
        writeback: the kernel caches writes until fsync(2) or close(2), and then only the kernel
            knows the size of a file.
        watched: poll for requests. Not for an engine that is a program, whose idleness is detected
            by the read(2) of its thread (:mod:`loopfs.engines.sync_job`).
    """

    def __init__(
        self, fd: int, filesystem: Operations, *, writeback: bool = False, watched: bool = False
    ) -> None:
        self.fd: int | None = fd
        self._watched = watched
        self.filesystem = filesystem
        self._busy = watched  # until the thread that reads has found no request
        self._wanted = WANTED | (uapi.FUSE_WRITEBACK_CACHE if writeback else 0)

    def serve(self) -> None:
        """Answer requests until the filesystem is unmounted or the connection aborted.

        To be called once.
        """
        assert self.fd is not None
        try:
            self._serve(self.fd)
        except BaseException:
            self.abort()  # no thread would answer
            raise
        finally:
            self.fd = None

    def abort(self) -> None:
        """End the connection: all its requests fail."""
        if (fd := self.fd) is not None:
            abort(fd)
            self.fd = None

    def _serve(self, fd: int) -> None:
        buffer = mmap.mmap(-1, BUFFER_SIZE)  # only the pages that are used take memory
        view = memoryview(buffer)
        buffers = [buffer]
        unpack = uapi.IN_HEADER.unpack_from
        wait = watch(fd) if self._watched else None
        while True:
            try:
                length = os.readv(fd, buffers)
            except BlockingIOError:
                if wait is not None:
                    self._busy = False
                    wait()
                    self._busy = True  # before the request is read; until then idle() sees it
                continue
            except OSError as problem:
                if problem.errno in (errno.ENODEV, errno.ECONNABORTED):  # the latter: in the read
                    return
                if problem.errno in (errno.ENOENT, errno.EINTR, errno.ENOMEM):
                    continue
                raise
            if length < _HEADER:
                return  # abort() was called
            self._busy = True
            _, opcode, unique, nodeid, uid, gid, pid, _, _ = unpack(buffer)
            request = Request(fd, unique, nodeid, pid, uid, gid)
            try:
                if opcode == uapi.FUSE_READ:
                    self._read(request, view)
                elif opcode == uapi.FUSE_WRITE:
                    self._write(request, view)
                else:
                    self._dispatch(opcode, request, bytes(view[_HEADER:length]))
            except Exception as problem:
                request.fail_with(problem)
            self._busy = wait is not None
            if opcode == uapi.FUSE_DESTROY:
                return

    def idle(self) -> bool:
        """Return whether no request waits, or is being answered by the reading thread."""
        if (fd := self.fd) is None:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return not poller.poll(0) and not self._busy

    # READ and WRITE are separate: they need no copy of the data and no lookup of a handler.

    def _read(self, request: Request, view: memoryview) -> None:
        handle, offset, size, _, _, flags, _ = uapi.READ_IN.unpack_from(view, _HEADER)
        data = self.filesystem.read(request, handle, offset, size, flags)
        if data is not None:
            request.reply(data)

    def _write(self, request: Request, view: memoryview) -> None:
        handle, offset, size, how, _, flags, _ = uapi.WRITE_IN.unpack_from(view, _HEADER)
        request.from_cache = bool(how & uapi.FUSE_WRITE_CACHE)
        data = view[_WRITE_DATA : _WRITE_DATA + size]
        written = self.filesystem.write(request, handle, offset, data, flags)
        if written is not None:
            request.reply(uapi.WRITE_OUT.pack(written, 0))

    def _dispatch(self, opcode: int, request: Request, body: bytes) -> None:
        if opcode in _UNANSWERED:
            self._forget(opcode, request.nodeid, body)
            return
        handler = _HANDLERS.get(opcode)
        if handler is None:
            request.fail(_REFUSED.get(opcode, errno.ENOSYS))
            return
        answer = handler(self, request, body)
        if answer is not None:
            request.reply(answer)

    def invalidate(self, nodeid: int, offset: int = 0, length: int = 0) -> None:
        """Invalidate the cached attributes and pages of a node (FUSE_NOTIFY_INVAL_INODE).

        Blocks until reads and writes in progress have ended, so it must not be called by the
        thread that serves them.

        Args:
            offset: bytes from the start of the file; negative to keep the pages.
            length: bytes; 0 means up to the end.
        """
        self._notify(
            uapi.FUSE_NOTIFY_INVAL_INODE,
            uapi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length),
        )

    def grow(self, nodeid: int, size: int) -> None:
        """Tell the kernel that a file now has at least ``size`` bytes (FUSE_NOTIFY_STORE).

        Otherwise it learns the size when it asks for the attributes, which a page fault does not
        do. The byte to be stored is unreadable: the write fails with EFAULT after the kernel has
        taken the size, and before it changes a page.
        """
        store = uapi.NOTIFY_STORE_OUT.pack(nodeid, size - 1, 1)
        self._notify(uapi.FUSE_NOTIFY_STORE, store, _unreadable())

    def forget_name(self, parent: int, name: bytes) -> None:
        """Invalidate a name that the kernel may have cached (FUSE_NOTIFY_INVAL_ENTRY).

        Blocks until lookups in that directory have ended, so it must not be called by the thread
        that serves them.
        """
        body = uapi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0"
        self._notify(uapi.FUSE_NOTIFY_INVAL_ENTRY, body)

    def _notify(self, code: int, body: bytes, unreadable: Buffer = b"") -> None:
        length = uapi.OUT_HEADER.size + len(body) + len(unreadable)
        header = uapi.OUT_HEADER.pack(length, code, 0)
        if (fd := self.fd) is None:  # unmounted
            return
        # ENOENT: the kernel does not know the node; ENODEV: unmounted.
        expected = [errno.ENOENT, errno.ENODEV] + [errno.EFAULT] * len(unreadable)
        try:
            os.writev(fd, (header, body, unreadable))
        except OSError as problem:
            if problem.errno not in expected:
                raise

    # --- a handler for each request --------------------------------------------

    def _init(self, request: Request, body: bytes) -> bytes:
        return pack_init(body, self._wanted)

    def _lookup(self, request: Request, body: bytes) -> Answer:
        entry = self.filesystem.lookup(request, request.nodeid, _name(body))
        return None if entry is None else pack_entry(*entry)

    def _forget(self, opcode: int, nodeid: int, body: bytes) -> None:
        if opcode == uapi.FUSE_FORGET:
            self.filesystem.forget(nodeid, *uapi.FORGET_IN.unpack_from(body))
        elif opcode == uapi.FUSE_BATCH_FORGET:
            head, size = uapi.BATCH_FORGET_IN.size, uapi.FORGET_ONE.size
            (count,) = uapi.BATCH_FORGET_IN.unpack_from(body)
            for each in uapi.FORGET_ONE.iter_unpack(body[head : head + count * size]):
                self.filesystem.forget(*each)

    def _getattr(self, request: Request, body: bytes) -> bytes:
        return pack_attr(self.filesystem.getattr(request.nodeid))

    def _setattr(self, request: Request, body: bytes) -> bytes:
        changes = unpack_setattr(body, time.time_ns())
        return pack_attr(self.filesystem.setattr(request.nodeid, changes))

    def _readlink(self, request: Request, body: bytes) -> bytes:
        return self.filesystem.readlink(request.nodeid)

    def _listxattr(self, request: Request, body: bytes) -> bytes:
        """Reply with an empty list: there are no attributes, which is not an error."""
        (room,) = uapi.GETXATTR_IN.unpack_from(body)
        return b"" if room else uapi.GETXATTR_OUT.pack(0)

    def _unlink(self, request: Request, body: bytes) -> None:
        self.filesystem.unlink(request, request.nodeid, _name(body))

    def _rmdir(self, request: Request, body: bytes) -> None:
        self.filesystem.rmdir(request, request.nodeid, _name(body))

    def _create(self, request: Request, body: bytes) -> None:
        # After ENOSYS the kernel uses MKNOD and OPEN instead.
        request.fail(errno.ENOSYS if self.filesystem.makes_files else errno.EACCES)

    def _mknod(self, request: Request, body: bytes) -> bytes:
        mode, *_ = uapi.MKNOD_IN.unpack_from(body)
        name = _name(body[uapi.MKNOD_IN.size :])
        return pack_entry(*self.filesystem.mknod(request, request.nodeid, name, mode))

    def _mkdir(self, request: Request, body: bytes) -> bytes:
        mode, _ = uapi.MKDIR_IN.unpack_from(body)
        name = _name(body[uapi.MKDIR_IN.size :])
        return pack_entry(*self.filesystem.mkdir(request, request.nodeid, name, mode))

    def _symlink(self, request: Request, body: bytes) -> bytes:
        name, target, *_ = body.split(b"\0")
        return pack_entry(*self.filesystem.symlink(request, request.nodeid, name, target))

    def _link(self, request: Request, body: bytes) -> bytes:
        (old,) = uapi.LINK_IN.unpack_from(body)
        name = _name(body[uapi.LINK_IN.size :])
        return pack_entry(*self.filesystem.link(request, old, request.nodeid, name))

    def _rename(self, request: Request, body: bytes) -> None:
        self._do_rename(request, body, uapi.RENAME_IN, 0)

    def _rename2(self, request: Request, body: bytes) -> None:
        _, flags = uapi.RENAME2_IN.unpack_from(body)
        self._do_rename(request, body, uapi.RENAME2_IN, flags)

    def _do_rename(self, request: Request, body: bytes, head: struct.Struct, flags: int) -> None:
        to, *_ = head.unpack_from(body)
        name, to_name, *_ = body[head.size :].split(b"\0")
        self.filesystem.rename(request, request.nodeid, name, to, to_name, flags)

    def _open(self, request: Request, body: bytes) -> Answer:
        flags, _ = uapi.OPEN_IN.unpack_from(body)
        opened = self.filesystem.open(request, request.nodeid, flags)
        return None if opened is None else uapi.OPEN_OUT.pack(*opened, 0)

    def _release(self, request: Request, body: bytes) -> None:
        handle, *_ = uapi.RELEASE_IN.unpack_from(body)
        self.filesystem.release(request, handle)

    def _opendir(self, request: Request, body: bytes) -> bytes:
        return uapi.OPEN_OUT.pack(0, 0, 0)

    def _releasedir(self, request: Request, body: bytes) -> bytes:
        return b""

    def _readdir(self, request: Request, body: bytes) -> bytes:
        handle, offset, size, *_ = uapi.READ_IN.unpack_from(body)
        out: list[bytes] = []
        for place, name, ino, kind in self._entries(request, handle, offset):
            packed = uapi.pack_dirent(ino, place, kind >> 12, name)
            size -= len(packed)
            if size < 0:
                break
            out.append(packed)
        return b"".join(out)

    def _entries(
        self, request: Request, handle: int, offset: int
    ) -> Iterator[tuple[int, bytes, int, int]]:
        """Yield the entries of a directory from ``offset`` on, with the offset after each."""
        own = self.filesystem.getattr(request.nodeid).ino
        dots = (b".", b"..")
        for index in range(offset, len(dots)):
            yield index + 1, dots[index], own, stat.S_IFDIR
        start = max(offset - len(dots), 0)
        entries = self.filesystem.entries(request, request.nodeid, handle, start)
        for place, name, ino, kind in entries:
            yield place + len(dots), name, ino, kind

    def _fsync(self, request: Request, body: bytes) -> None:
        handle, flags, _ = uapi.FSYNC_IN.unpack_from(body)
        self.filesystem.fsync(request, handle, bool(flags & 1))

    def _fallocate(self, request: Request, body: bytes) -> None:
        handle, offset, length, mode, _ = uapi.FALLOCATE_IN.unpack_from(body)
        self.filesystem.fallocate(request, handle, mode, offset, length)

    def _ioctl(self, request: Request, body: bytes) -> None:
        handle, flags, cmd, arg, in_size, _ = uapi.IOCTL_IN.unpack_from(body)
        if flags & uapi.FUSE_IOCTL_DIR:
            raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        data = body[uapi.IOCTL_IN.size : uapi.IOCTL_IN.size + in_size]
        compat = bool(flags & uapi.FUSE_IOCTL_COMPAT)
        self.filesystem.ioctl(request, handle, cmd, arg, data, compat)

    def _statfs(self, request: Request, body: bytes) -> bytes:
        bsize, namelen, blocks = self.filesystem.statfs()
        return uapi.STATFS_OUT.pack(blocks, 0, 0, 0, 0, bsize, namelen, bsize, 0)

    def _destroy(self, request: Request, body: bytes) -> bytes:
        return b""


_HANDLERS: dict[int, Handler] = {
    uapi.FUSE_INIT: Session._init,
    uapi.FUSE_LOOKUP: Session._lookup,
    uapi.FUSE_GETATTR: Session._getattr,
    uapi.FUSE_SETATTR: Session._setattr,
    uapi.FUSE_READLINK: Session._readlink,
    uapi.FUSE_LISTXATTR: Session._listxattr,
    uapi.FUSE_UNLINK: Session._unlink,
    uapi.FUSE_CREATE: Session._create,
    uapi.FUSE_MKNOD: Session._mknod,
    uapi.FUSE_MKDIR: Session._mkdir,
    uapi.FUSE_RMDIR: Session._rmdir,
    uapi.FUSE_SYMLINK: Session._symlink,
    uapi.FUSE_LINK: Session._link,
    uapi.FUSE_RENAME: Session._rename,
    uapi.FUSE_RENAME2: Session._rename2,
    uapi.FUSE_OPEN: Session._open,
    uapi.FUSE_RELEASE: Session._release,
    uapi.FUSE_OPENDIR: Session._opendir,
    uapi.FUSE_RELEASEDIR: Session._releasedir,
    uapi.FUSE_READDIR: Session._readdir,
    uapi.FUSE_FSYNC: Session._fsync,
    uapi.FUSE_FALLOCATE: Session._fallocate,
    uapi.FUSE_IOCTL: Session._ioctl,
    uapi.FUSE_STATFS: Session._statfs,
    uapi.FUSE_DESTROY: Session._destroy,
}
_UNANSWERED = frozenset({uapi.FUSE_FORGET, uapi.FUSE_BATCH_FORGET, uapi.FUSE_INTERRUPT})
# What the VFS returns for a special file, or for a directory without the operation. For others
# ENOSYS, after which the kernel does not send them again and does the work itself.
_REFUSED = {
    uapi.FUSE_LSEEK: errno.EINVAL,  # SEEK_DATA and SEEK_HOLE: these files have no holes
    uapi.FUSE_COPY_FILE_RANGE: errno.EINVAL,  # otherwise the kernel would copy by itself
    uapi.FUSE_COPY_FILE_RANGE_64: errno.EINVAL,
    uapi.FUSE_TMPFILE: errno.EOPNOTSUPP,
}


@cache
def _unreadable() -> memoryview:
    """Return a byte that no system call can read."""
    from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

    return memoryview(mmap(-1, 1, MAP_PRIVATE | MAP_ANONYMOUS, prot=0))


def _name(body: bytes) -> bytes:
    return body[: body.index(0)]


def unpack_setattr(body: bytes, now: int) -> SetAttr:
    """Decode a struct fuse_setattr_in; ``now`` (nanoseconds) replaces times set to "now"."""
    valid, _, _, size, _, atime, mtime, _, an, mn, _, mode, _, uid, gid, _ = (
        uapi.SETATTR_IN.unpack_from(body)
    )

    def moment(given: int, is_now: int, value: int) -> int | None:
        if valid & is_now:
            return now
        return value if valid & given else None

    return SetAttr(
        mode=mode if valid & uapi.FATTR_MODE else None,
        uid=uid if valid & uapi.FATTR_UID else None,
        gid=gid if valid & uapi.FATTR_GID else None,
        size=size if valid & uapi.FATTR_SIZE else None,
        atime=moment(uapi.FATTR_ATIME, uapi.FATTR_ATIME_NOW, atime * 1_000_000_000 + an),
        mtime=moment(uapi.FATTR_MTIME, uapi.FATTR_MTIME_NOW, mtime * 1_000_000_000 + mn),
        by_handle=bool(valid & uapi.FATTR_FH),
    )
