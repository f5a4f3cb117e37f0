"""What a filesystem answers: a method for each request of the FUSE protocol."""

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
    """A name's answer: which node it is (an id never used again) and its attributes.

    ``valid`` are the seconds for which the kernel may remember it.
    """

    nodeid: int
    attr: Attr
    valid: int = 0


class Statfs(NamedTuple):
    """FUSE_STATFS: block size in bytes, the longest name, blocks in all (none is free)."""

    bsize: int = 4096
    namelen: int = 255
    blocks: int = 0


class SetAttr(NamedTuple):
    """FUSE_SETATTR: the attributes to change; None for those that stay.

    ``size`` is bytes, times are nanoseconds since the epoch; ``by_handle`` says that
    the caller named an open file (ftruncate(2)), not a path.
    """

    mode: int | None
    uid: int | None
    gid: int | None
    size: int | None
    atime: int | None
    mtime: int | None
    by_handle: bool


class Operations:
    """A filesystem. Override what it can do; the rest is refused as the VFS would.

    A method returns its answer, or None when it has kept the request and will call
    ``request.reply`` or ``request.fail`` from another thread. It raises OSError to
    refuse. ``pid`` of a request is the calling thread's id in the pid namespace of
    the process that mounted; ``uid`` and ``gid`` are those of the mount's user namespace.
    Buffers passed in are valid until the method returns.
    """

    makes_files = False  # regular ones, by :meth:`mknod`

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def forget(self, nodeid: int, nlookup: int) -> None:
        """The kernel drops ``nlookup`` of the times that a lookup has told it of a node."""

    def getattr(self, nodeid: int) -> Attr:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        raise _refused(errno.EPERM)

    def readlink(self, nodeid: int) -> bytes:
        raise _refused(errno.EINVAL)

    def readdir(self, request: Request, nodeid: int, handle: int) -> list[tuple[bytes, int, int]]:
        """Name, inode number and S_IF* type of each entry but "." and ".."."""
        raise _refused(errno.ENOTDIR)

    def entries(
        self, request: Request, nodeid: int, handle: int, place: int
    ) -> Iterable[tuple[int, bytes, int, int]]:
        """As :meth:`readdir`, from ``place`` on, each with the place after it.

        For a directory of which one page is to cost no more when there are many.
        """
        all_of_them = self.readdir(request, nodeid, handle)
        return ((n + 1, *all_of_them[n]) for n in range(place, len(all_of_them)))

    def mknod(self, request: Request, parent: int, name: bytes, mode: int) -> Entry:
        """Make a file that is no directory or link; ``mode`` has its S_IF* type."""
        # A regular file is made by another operation of the VFS (vfs_create).
        raise _refused(errno.EACCES if stat.S_ISREG(mode) else errno.EPERM)

    def mkdir(self, request: Request, parent: int, name: bytes, mode: int) -> Entry:
        raise _refused(errno.EPERM)

    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Entry:
        raise _refused(errno.EPERM)

    def link(self, request: Request, nodeid: int, parent: int, name: bytes) -> Entry:
        raise _refused(errno.EPERM)

    def rmdir(self, request: Request, parent: int, name: bytes) -> None:
        """Must reply."""
        raise _refused(errno.EPERM)

    def unlink(self, request: Request, parent: int, name: bytes) -> None:
        """Must reply."""
        raise _refused(errno.EPERM)

    def rename(
        self, request: Request, parent: int, name: bytes, to: int, to_name: bytes, flags: int
    ) -> None:
        """Must reply."""
        raise _refused(errno.EPERM)

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        """A file handle and FOPEN_* flags."""
        raise _refused(errno.EACCES)

    def release(self, request: Request, handle: int) -> None:
        """The open file's last reference is gone; must reply."""
        request.reply()

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        """``flags`` are the open file's O_* flags as they are now; so in :meth:`write`."""
        raise _refused(errno.EIO)

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        """How many bytes were stored."""
        raise _refused(errno.EIO)

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        """Must reply."""
        request.reply()

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        """Must reply."""
        raise _refused(errno.EOPNOTSUPP)

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        """Must reply with ``request.reply_ioctl``; ``data`` is what the kernel has copied in."""
        raise _refused(errno.ENOTTY)

    def statfs(self) -> Statfs:
        return Statfs()


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
