"""The interface of a filesystem: a method for each request of the FUSE protocol."""

from __future__ import annotations

import errno
import os
import stat

from loopfs.lean import TYPE_CHECKING, NamedTuple
from loopfs.uapi.fuse import Attr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loopfs.fuse.session import Request

Buffer = bytes | bytearray | memoryview


class Entry(NamedTuple):
    """The reply to a lookup: a node id (never reused) and the node's attributes.

    ``valid``: for how many seconds the kernel may cache the name.
    """

    nodeid: int
    attr: Attr
    valid: int = 0


class Statfs(NamedTuple):
    """The reply to FUSE_STATFS: block size in bytes, longest name, number of blocks (none free)."""

    bsize: int = 4096
    namelen: int = 255
    blocks: int = 0


class SetAttr(NamedTuple):
    """The attributes that FUSE_SETATTR changes; None for those that stay.

    ``size`` is in bytes, times are nanoseconds since the epoch. ``by_handle``: the caller named an
    open file (ftruncate(2)), not a path.
    """

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime: int | None
    mtime: int | None
    by_handle: bool


class Operations:
    """A filesystem. Override what it supports; the rest fails with the VFS's errno.

    A method returns its reply, or None if it keeps the request and will call ``request.reply`` or
    ``request.fail`` from another thread. It raises OSError to refuse. ``pid`` of a request is the
    calling thread's id in the pid namespace of the process that mounted; ``uid`` and ``gid`` are
    those of the mount's user namespace. Buffers passed in are valid until the method returns.
    """

    makes_files = False  # whether :meth:`mknod` makes regular files

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def forget(self, nodeid: int, nlookup: int) -> None:
        """Decrement the kernel's lookup count of a node by ``nlookup``."""

    def getattr(self, nodeid: int) -> Attr:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        raise _refused(errno.EPERM)

    def readlink(self, nodeid: int) -> bytes:
        raise _refused(errno.EINVAL)

    def readdir(self, request: Request, nodeid: int, handle: int) -> list[tuple[bytes, int, int]]:
        """Return name, inode number and S_IF* type of each entry except "." and ".."."""
        raise _refused(errno.ENOTDIR)

    def entries(
        self, request: Request, nodeid: int, handle: int, place: int
    ) -> Iterable[tuple[int, bytes, int, int]]:
        """Return the entries of :meth:`readdir` from ``place`` on, each with the place after it.

        To be overridden for large directories, so that the cost of a page is constant.
        """
        all_of_them = self.readdir(request, nodeid, handle)
        return ((n + 1, *all_of_them[n]) for n in range(place, len(all_of_them)))

    def mknod(self, request: Request, parent: int, name: bytes, mode: int) -> Entry:
        """Make a file that is not a directory or link; ``mode`` includes its S_IF* type."""
        # The VFS makes a regular file by another operation (vfs_create).
        raise _refused(errno.EACCES if stat.S_ISREG(mode) else errno.EPERM)

    def mkdir(self, request: Request, parent: int, name: bytes, mode: int) -> Entry:
        raise _refused(errno.EPERM)

    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Entry:
        raise _refused(errno.EPERM)

    def link(self, request: Request, nodeid: int, parent: int, name: bytes) -> Entry:
        raise _refused(errno.EPERM)

    def rmdir(self, request: Request, parent: int, name: bytes) -> None:
        """Remove a directory. Must reply."""
        raise _refused(errno.EPERM)

    def unlink(self, request: Request, parent: int, name: bytes) -> None:
        """Remove a name. Must reply."""
        raise _refused(errno.EPERM)

    def rename(
        self, request: Request, parent: int, name: bytes, to: int, to_name: bytes, flags: int
    ) -> None:
        """Implement renameat2(2). Must reply."""
        raise _refused(errno.EPERM)

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        """Return a file handle and FOPEN_* flags."""
        raise _refused(errno.EACCES)

    def release(self, request: Request, handle: int) -> None:
        """Release a file handle: the last reference to the open file was closed. Must reply."""
        request.reply()

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        """Return data. ``flags`` are the open file's current O_* flags, also in :meth:`write`."""
        raise _refused(errno.EIO)

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        """Return how many bytes were written."""
        raise _refused(errno.EIO)

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        """Implement fsync(2) or fdatasync(2). Must reply."""
        request.reply()

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        """Implement fallocate(2). Must reply."""
        raise _refused(errno.EOPNOTSUPP)

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        """Implement ioctl(2); ``data`` was copied in. Must reply with ``request.reply_ioctl``."""
        raise _refused(errno.ENOTTY)

    def statfs(self) -> Statfs:
        return Statfs()


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
