"""The interface of a whole filesystem: operations on its nodes (linux/fs.h: inode_operations).

:class:`loopfs.fuse.server.Server` turns FUSE requests into these calls, one at a time and in one
thread. It keeps what the protocol requires: node ids with their lookup counts, and the handles of
open files.

A method returns its reply. Work that may take long (fsync) is returned as :class:`Later`: it is
done in a thread of its own and must not use anything that other calls change. A method raises
OSError to refuse.
"""

from __future__ import annotations

import errno
import os

from loopfs.lean import TYPE_CHECKING, Callable, Generic, NamedTuple, Protocol, TypeVar
from loopfs.uapi.fuse import Attr

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loopfs.fuse.server import Server

Buffer = bytes | bytearray | memoryview
FACE = 1 << 62  # bit in a node id by which the kernel knows a node as another type of file
STAND_IN = 1 << 63  # the first of the node ids that are used in one reply only


class Node(Protocol):
    """A file, directory or anything else that has an inode.

    Attributes:
        nodeid: the number by which the kernel refers to it, assigned by the filesystem. It is
            below FACE, is never reused for another node, and is 1 for the root.
    """

    nodeid: int


N = TypeVar("N", bound=Node)


class Handle(Generic[N]):
    """An open file or directory. A filesystem may derive its own class.

    Attributes:
        flags: FOPEN_* for the kernel.
        noatime: whether it was opened with O_NOATIME.
    """

    __slots__ = ("flags", "noatime", "node")

    def __init__(self, node: N, flags: int = 0) -> None:
        self.node = node
        self.flags = flags
        self.noatime = False


class Caller(NamedTuple):
    """The caller: ids in the mount's user namespace; ``pid`` is a thread's id."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Changes(NamedTuple):
    """The attributes that SETATTR changes; None for those that stay.

    ``size`` is in bytes, times are nanoseconds since the epoch. ``handle`` is the open file if the
    caller named one. ``touch``: both times are set to now, and nothing else is changed.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None
    handle: object = None
    touch: bool = False


class Space(NamedTuple):
    """The result of statfs(2): sizes in bytes, counts of blocks in units of ``frsize``."""

    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    bsize: int
    namelen: int
    frsize: int


class Later(NamedTuple):
    """A reply that may take long.

    Attributes:
        work: returns the reply, or raises OSError.
    """

    work: Callable[[], Buffer | None]


class Tree(Generic[N]):
    """A filesystem. Override what it supports; the rest fails with the VFS's errno."""

    server: Server[N]
    init_flags = 0  # FUSE_* flags of INIT that it supports, in addition to those of the server
    negative_valid = 0  # seconds for which the kernel may cache that a name does not exist

    # --- nodes ------------------------------------------------------------------

    def root(self) -> N:
        raise NotImplementedError

    def is_stale(self, node: N, nodeid: int) -> bool:
        """Return whether to fail with ESTALE, after which the kernel looks the name up again."""
        return False

    def known(self, node: N) -> None:
        """Account for one more node id by which the kernel refers to the node."""

    def forgotten(self, node: N) -> None:
        """Account for one node id less by which the kernel refers to the node."""

    def getattr(self, node: N) -> Attr:
        raise NotImplementedError

    def birth(self, node: N) -> int | None:
        """Return the birth time in nanoseconds since the epoch; None if the node has none.

        Raises:
            OSError: ENOSYS: no node has one; the kernel does not ask again.
        """
        raise _refused(errno.ENOSYS)

    def face(self, caller: Caller, node: N) -> int:
        """Return the node id with which to answer a lookup of a name that is not cached.

        It is the node's own, or that with FACE, which is another type of file.
        """
        return node.nodeid

    def attr_of_face(self, node: N, attr: Attr) -> Attr:
        """Return the attributes that a node has under its node id with FACE."""
        raise NotImplementedError

    def setattr(self, caller: Caller, node: N, changes: Changes) -> Later | None:
        raise _refused(errno.EPERM)

    def drop_privileges(self, node: N) -> None:
        """Clear set-user-ID and set-group-ID (FUSE_HANDLE_KILLPRIV_V2) before an operation.

        The kernel asks for it unless the caller has CAP_FSETID in the initial user namespace. The
        server does not pass it on for root of the mount's user namespace, which has CAP_FSETID
        there.
        """

    def statfs(self) -> Space:
        raise NotImplementedError

    # --- names -----------------------------------------------------------------

    def lookup(self, parent: N, name: bytes) -> tuple[N, int]:
        """Return the node that a name refers to, and for how many seconds the kernel may cache it.

        The methods that make names return the same.
        """
        raise NotImplementedError

    def create(
        self, caller: Caller, parent: N, name: bytes, mode: int, flags: int
    ) -> tuple[tuple[N, int], Handle[N]]:
        """Create and open a file whose name did not exist at the lookup (open(2) with O_CREAT)."""
        raise _refused(errno.EACCES)

    def mknod(self, caller: Caller, parent: N, name: bytes, mode: int, rdev: int) -> tuple[N, int]:
        """Make a node. If it is of another type than requested, the kernel looks it up again."""
        raise _refused(errno.EPERM)

    def mkdir(self, caller: Caller, parent: N, name: bytes, mode: int) -> tuple[N, int]:
        raise _refused(errno.EPERM)

    def symlink(self, caller: Caller, parent: N, name: bytes, target: bytes) -> tuple[N, int]:
        raise _refused(errno.EPERM)

    def link(self, caller: Caller, node: N, parent: N, name: bytes) -> tuple[N, int]:
        raise _refused(errno.EPERM)

    def tmpfile(
        self, caller: Caller, parent: N, mode: int, flags: int
    ) -> tuple[tuple[N, int], Handle[N]]:
        raise _refused(errno.EOPNOTSUPP)

    def unlink(self, caller: Caller, parent: N, name: bytes) -> None:
        raise _refused(errno.EPERM)

    def rmdir(self, caller: Caller, parent: N, name: bytes) -> None:
        raise _refused(errno.EPERM)

    def rename(
        self, caller: Caller, parent: N, name: bytes, to: N, to_name: bytes, flags: int
    ) -> None:
        raise _refused(errno.EPERM)

    def readlink(self, node: N) -> bytes:
        raise _refused(errno.EINVAL)

    # --- extended attributes: after ENOSYS the kernel returns EOPNOTSUPP without asking ---

    def getxattr(self, node: N, name: bytes) -> bytes:
        raise _refused(errno.ENOSYS)

    def setxattr(self, caller: Caller, node: N, name: bytes, value: bytes, flags: int) -> None:
        raise _refused(errno.ENOSYS)

    def removexattr(self, caller: Caller, node: N, name: bytes) -> None:
        raise _refused(errno.ENOSYS)

    def listxattr(self, node: N) -> list[bytes]:
        """Return an empty list: there are no attributes, which is not an error."""
        return []

    # --- open files -------------------------------------------------------------

    def open(self, caller: Caller, node: N, flags: int) -> Handle[N]:
        raise _refused(errno.EACCES)

    def opendir(self, caller: Caller, node: N) -> Handle[N]:
        return Handle(node)

    def entries(
        self, handle: Handle[N], place: int
    ) -> Iterable[tuple[int, bytes, int, int, N | None]]:
        """Return the entries of a directory, with the dots, from ``place`` on (0: the start).

        Each has the place after it, its name, inode number and DT_*, and its node, so that the
        kernel need not look it up, or None.
        """
        raise _refused(errno.ENOTDIR)

    def release(self, handle: Handle[N]) -> None:
        """Release a handle: the last reference to the open file or directory was closed."""

    def read(self, handle: Handle[N], offset: int, size: int) -> Buffer:
        """Return at most ``size`` bytes; they are valid until the next call."""
        raise _refused(errno.EIO)

    def write(self, handle: Handle[N], offset: int, data: memoryview) -> int:
        """Return how many bytes were written; ``data`` is valid until the method returns."""
        raise _refused(errno.EIO)

    def fsync(self, handle: Handle[N], datasync: bool) -> Later | None:
        """Write a file or directory to disk (fsync(2))."""
        return None

    def fallocate(self, handle: Handle[N], mode: int, offset: int, length: int) -> Later | None:
        raise _refused(errno.EOPNOTSUPP)

    def lseek(self, handle: Handle[N], offset: int, whence: int) -> int:
        """Implement SEEK_DATA and SEEK_HOLE. After ENOSYS the kernel treats everything as data."""
        raise _refused(errno.ENOSYS)

    def ioctl(
        self, caller: Caller, handle: Handle[N], cmd: int, arg: int, data: bytes, compat: bool
    ) -> tuple[int, bytes]:
        """Return the result of ioctl(2) and the data to copy out; ``data`` was copied in."""
        raise _refused(errno.ENOTTY)

    def settle(self) -> Callable[[], None] | None:
        """Return work that must be done before the call that was just carried out is answered.

        It makes the effect of the call durable, runs in a thread of its own, and may raise OSError.
        None: there is none.
        """
        return None

    def answered(self) -> None:
        """Do work between two calls. The reply to the last one has been sent."""

    def failed(self, problem: OSError) -> None:
        """Do work between two calls. The last one has failed."""

    def destroy(self) -> None:
        """Clean up: the mount is gone and there are no more calls."""


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
