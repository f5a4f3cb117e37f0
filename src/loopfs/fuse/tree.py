"""What a whole filesystem answers: typed operations on its nodes (linux/fs.h: inode_operations).

:class:`loopfs.fuse.server.Server` turns the requests of the FUSE protocol into these calls, one
after the other and in one thread, and keeps what the protocol needs: node ids with their lookup
counts and the handles of open files.

A method returns its answer. What may take long (an fsync) is returned as :class:`Later`: it is
done in a thread of its own, and must touch nothing that other calls change. A method raises
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
FACE = 1 << 62  # in a node id by which the kernel knows a node as another kind of file
STAND_IN = 1 << 63  # from here on are node ids of which the kernel hears once


class Node(Protocol):
    """A file, directory or anything else that has an inode.

    Attributes:
        nodeid: what the kernel is to know it by from now on. The filesystem gives the numbers; no
            two nodes ever have had the same. 1 is the root's. They are below FACE.
    """

    nodeid: int


N = TypeVar("N", bound=Node)


class Handle(Generic[N]):
    """An open file or directory. A filesystem may use a class of its own derived from it.

    Attributes:
        flags: FOPEN_* for the kernel.
        noatime: reading changes no time (O_NOATIME).
    """

    __slots__ = ("flags", "noatime", "node")

    def __init__(self, node: N, flags: int = 0) -> None:
        self.node = node
        self.flags = flags
        self.noatime = False


class Caller(NamedTuple):
    """Who asks; ids are those of the mount's user namespace, ``pid`` a thread's."""

    uid: int
    gid: int
    pid: int
    umask: int = 0


class Changes(NamedTuple):
    """What SETATTR changes: None for what stays.

    ``size`` is bytes, times are nanoseconds since the epoch; ``handle`` is the open file, when
    the caller named one; ``touch`` says that both times become now, and nothing else changes.
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
    """statfs(2): sizes in bytes, counts in blocks of ``frsize``."""

    blocks: int
    free: int
    available: int
    files: int
    files_free: int
    bsize: int
    namelen: int
    frsize: int


class Later(NamedTuple):
    """An answer that may take long.

    Attributes:
        work: returns the answer, or raises OSError.
    """

    work: Callable[[], Buffer | None]


class Tree(Generic[N]):
    """A filesystem. Override what it can do; the rest is refused as the VFS would."""

    server: Server[N]
    init_flags = 0  # FUSE_* of INIT that it can do with, beside those of the server
    negative_valid = 0  # seconds for which it may be remembered that a name is not there

    # --- nodes ------------------------------------------------------------------

    def root(self) -> N:
        raise NotImplementedError

    def is_stale(self, node: N, nodeid: int) -> bool:
        """The kernel is to look its name up again, which it does after ESTALE."""
        return False

    def known(self, node: N) -> None:
        """The kernel knows it by one more node id."""

    def forgotten(self, node: N) -> None:
        """The kernel knows it by one node id less."""

    def getattr(self, node: N) -> Attr:
        raise NotImplementedError

    def birth(self, node: N) -> int | None:
        """When it was made, in nanoseconds since the epoch; None where that is not kept.

        Raises:
            OSError: ENOSYS: of no file; it is not asked again.
        """
        raise _refused(errno.ENOSYS)

    def face(self, caller: Caller, node: N) -> int:
        """By which node id a lookup of a name that may not be remembered is answered: the node's
        own; or that with FACE, and it is another kind of file."""
        return node.nodeid

    def attr_of_face(self, node: N, attr: Attr) -> Attr:
        """A node's attributes as that other kind of file has them."""
        raise NotImplementedError

    def setattr(self, caller: Caller, node: N, changes: Changes) -> Later | None:
        raise _refused(errno.EPERM)

    def drop_privileges(self, node: N) -> None:
        """Set-user-id and set-group-id go (with FUSE_HANDLE_KILLPRIV_V2); the call itself comes.

        The kernel asks for it unless the caller has CAP_FSETID on the machine. The root of the
        mount's user namespace has it there, so it is not asked of the tree then.
        """

    def statfs(self) -> Space:
        raise NotImplementedError

    # --- names -----------------------------------------------------------------

    def lookup(self, parent: N, name: bytes) -> tuple[N, int]:
        """What a name is of, and the seconds for which the kernel may remember that.

        So it is in the answer of all that make names.
        """
        raise NotImplementedError

    def create(
        self, caller: Caller, parent: N, name: bytes, mode: int, flags: int
    ) -> tuple[tuple[N, int], Handle[N]]:
        """open(2) with O_CREAT of a name that was not there when it was looked up."""
        raise _refused(errno.EACCES)

    def mknod(self, caller: Caller, parent: N, name: bytes, mode: int, rdev: int) -> tuple[N, int]:
        """What is made may be of another kind: then the kernel looks its name up again."""
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

    # --- extended attributes: after ENOSYS the kernel says EOPNOTSUPP and asks no more ---

    def getxattr(self, node: N, name: bytes) -> bytes:
        raise _refused(errno.ENOSYS)

    def setxattr(self, caller: Caller, node: N, name: bytes, value: bytes, flags: int) -> None:
        raise _refused(errno.ENOSYS)

    def removexattr(self, caller: Caller, node: N, name: bytes) -> None:
        raise _refused(errno.ENOSYS)

    def listxattr(self, node: N) -> list[bytes]:
        """There are none, which is no error."""
        return []

    # --- open files -------------------------------------------------------------

    def open(self, caller: Caller, node: N, flags: int) -> Handle[N]:
        raise _refused(errno.EACCES)

    def opendir(self, caller: Caller, node: N) -> Handle[N]:
        return Handle(node)

    def entries(
        self, handle: Handle[N], place: int
    ) -> Iterable[tuple[int, bytes, int, int, N | None]]:
        """A directory's entries, with the dots, from a place on (0, then what came before).

        Of each the place of the next one, its name, inode number and DT_*; and the node, so that
        the kernel need not look it up, or None.
        """
        raise _refused(errno.ENOTDIR)

    def release(self, handle: Handle[N]) -> None:
        """An open file's, or directory's, last reference is gone."""

    def read(self, handle: Handle[N], offset: int, size: int) -> Buffer:
        """What is there, up to ``size`` bytes; valid until the next call."""
        raise _refused(errno.EIO)

    def write(self, handle: Handle[N], offset: int, data: memoryview) -> int:
        """How many bytes were stored; ``data`` is valid until the method returns."""
        raise _refused(errno.EIO)

    def fsync(self, handle: Handle[N], datasync: bool) -> Later | None:
        """Of a file or a directory."""
        return None

    def fallocate(self, handle: Handle[N], mode: int, offset: int, length: int) -> Later | None:
        raise _refused(errno.EOPNOTSUPP)

    def lseek(self, handle: Handle[N], offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE; after ENOSYS the kernel takes all to be data."""
        raise _refused(errno.ENOSYS)

    def ioctl(
        self, caller: Caller, handle: Handle[N], cmd: int, arg: int, data: bytes, compat: bool
    ) -> tuple[int, bytes]:
        """What ioctl(2) returns, and what is copied out; ``data`` is what was copied in."""
        raise _refused(errno.ENOTTY)

    def settle(self) -> Callable[[], None] | None:
        """What must be done before the call that was just carried out is answered, as it may not
        be forgotten in a crash any more. It is done in a thread of its own, and may raise OSError.
        """
        return None

    def answered(self) -> None:
        """The kernel has the answer of a call, and knows what it tells of: the time for work that
        must find no call half done."""

    def failed(self, problem: OSError) -> None:
        """The same of a call that was refused."""

    def destroy(self) -> None:
        """The mount is gone; nothing else is asked."""


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
