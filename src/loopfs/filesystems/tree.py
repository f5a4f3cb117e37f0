"""A tree of plain files in memory, as in tmpfs: directories, symbolic links, FIFOs, sockets and
small regular files.

It does no I/O and has no clock and no locks: one thread calls it. The kernel checks permissions
before (default_permissions, fs/namei.c).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator

from loopfs.filesystems.dev_layout import FIRST_INO, ROOT_INO
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.shares import ROOT
from loopfs.fuse.operations import SetAttr
from loopfs.lean import NamedTuple
from loopfs.uapi.fuse import FUSE_ROOT_ID, Attr

MAX_FILE = 1 << 20  # maximum size of a regular file in bytes
MAX_BYTES = 16 << 20  # maximum size of all contents, nodes and names
OTHERS_BYTES = MAX_BYTES // 2  # limit of files of other users than root, so that root can work
NODE_COST, NAME_COST = 1024, 512  # what an empty file, and each of its names, is charged in bytes
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
_PAGE = 4096


class Name(NamedTuple):
    """A directory entry; ``place`` is the offset at which a reader of the directory continues."""

    place: int
    inode: Inode


class Inode(Node):
    """A file with one face. ``content`` is the data of a regular file, or the target of a link.

    ``lookups`` is the lookup count of the kernel.
    """

    __slots__ = ("content", "links", "lookups", "names")

    def __init__(self, nodeid: int, ino: int, mode: int, now: int) -> None:
        super().__init__(b"", ino, stat.S_IFMT(mode), 0, now, None)
        self.special = self.data = nodeid
        self.mode = stat.S_IMODE(mode)
        self.content = bytearray()
        self.names: dict[bytes, Name] = {}  # of a directory, ordered by place
        self.links = 2 if self.is_directory else 0
        self.lookups = 0

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR

    def attr(self, nodeid: int) -> Attr:
        size = len(self.content)
        blocks = -(-size // _PAGE) * (_PAGE // 512) if self.kind == stat.S_IFREG else 0
        mode, owner = self.kind | self.mode, (self.uid, self.gid)
        return Attr(self.ino, size, mode, self.links, *owner, 0, self.times, _PAGE, blocks)

    def modified(self, now: int) -> None:
        """Account for a change of the contents; ``now`` is in nanoseconds."""
        self.times = (self.times[0], now, now)


class Tree:
    """The files, beginning with the root. Times are in nanoseconds since the epoch.

    Args:
        new_id: returns ascending unique numbers, used for FUSE node ids and places.
        now: the current time.
    """

    def __init__(self, new_id: Callable[[], int], now: int) -> None:
        self._new_id = new_id
        self.root = Inode(FUSE_ROOT_ID, ROOT_INO, stat.S_IFDIR | 0o755, now)
        self.by_id = {FUSE_ROOT_ID: self.root}
        self.bytes = NODE_COST  # the size charged so far, limited by MAX_BYTES

    def directory(self, nodeid: int) -> Inode:
        """Return a directory. Raises OSError: ENOTDIR, ESTALE."""
        inode = self.by_id.get(nodeid)
        if inode is None:
            raise _error(errno.ESTALE)
        if not inode.is_directory:
            raise _error(errno.ENOTDIR)
        return inode

    def make(
        self,
        parent: Inode,
        name: bytes,
        mode: int,
        now: int,
        owner: tuple[int, int] = (0, 0),
        content: bytes = b"",
        nodeid: int | None = None,
    ) -> Inode:
        """Create a file.

        Args:
            mode: S_IF* type and permissions.
            owner: uid and gid; the gid is the directory's if that is setgid (inode_init_owner).
            content: the target of a symbolic link.
            nodeid: a fixed node id for it.
        Raises:
            OSError: EEXIST; ENOENT (the directory is removed); ENOSPC.
        """
        self._check_free(parent, name)
        self._charge(NAME_COST, owner[0])
        try:
            inode = self.make_nameless(mode, now, content, nodeid, owner)
        except OSError:
            self.bytes -= NAME_COST
            raise
        if parent.mode & stat.S_ISGID:
            inode.gid = parent.gid
            if inode.is_directory:
                inode.mode |= stat.S_ISGID
        self._enter(parent, name, inode, now)
        return inode

    def make_nameless(
        self,
        mode: int,
        now: int,
        content: bytes = b"",
        nodeid: int | None = None,
        owner: tuple[int, int] = (0, 0),
    ) -> Inode:
        """As :meth:`make`, but without a directory entry: it exists until the kernel forgets it."""
        self._charge(NODE_COST + len(content), owner[0])
        if nodeid is None:
            nodeid = self._new_id()
        inode = self.by_id[nodeid] = Inode(nodeid, FIRST_INO + nodeid, mode, now)
        inode.content[:] = content
        inode.uid, inode.gid = owner
        return inode

    def link(self, inode: Inode, parent: Inode, name: bytes, now: int) -> None:
        """Create a directory entry for a file (link(2)).

        Raises:
            OSError: EEXIST; EPERM (a directory); ENOENT (the file or the directory is removed);
                ENOSPC.
        """
        if inode.is_directory:
            raise _error(errno.EPERM)
        if not inode.links:
            raise _error(errno.ENOENT)
        self._check_free(parent, name)
        self._charge(NAME_COST, inode.uid)
        self._enter(parent, name, inode, now)
        inode.times = (*inode.times[:2], now)

    def remove(self, parent: Inode, name: bytes, now: int) -> None:
        """Remove a directory entry (unlink(2), rmdir(2)).

        Raises:
            OSError: ENOENT, ENOTEMPTY.
        """
        inode = self._named(parent, name)
        if inode.names:
            raise _error(errno.ENOTEMPTY)
        self._leave(parent, name, now)
        self._drop(inode, now)

    def rename(
        self, parent: Inode, name: bytes, to: Inode, to_name: bytes, flags: int, now: int
    ) -> None:
        """Rename a file (renameat2(2)). The kernel checks that a directory does not become its own
        descendant.

        Raises:
            OSError: ENOENT; EEXIST (RENAME_NOREPLACE); ENOTEMPTY, EISDIR, ENOTDIR (the file to be
                replaced); EINVAL (another flag).
        """
        inode = self._named(parent, name)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:
            raise _error(errno.EINVAL)
        if flags & RENAME_EXCHANGE:
            other = self._named(to, to_name)
            self._leave(parent, name, now)
            if other is not inode or (parent, name) != (to, to_name):
                self._leave(to, to_name, now)
                self._enter(parent, name, other, now)
            self._enter(to, to_name, inode, now)
            other.times = (*other.times[:2], now)
        else:
            victim = to.names[to_name].inode if to_name in to.names else None
            if victim is not None:
                self._check_replaces(inode, victim, flags)
                if victim is inode:
                    return  # two names of one file: both are kept
                self._leave(to, to_name, now)
                self._drop(victim, now)
            elif not to.links:
                raise _error(errno.ENOENT)
            self._leave(parent, name, now)
            self._enter(to, to_name, inode, now)
        inode.times = (*inode.times[:2], now)

    def _check_replaces(self, inode: Inode, victim: Inode, flags: int) -> None:
        if flags & RENAME_NOREPLACE:
            raise _error(errno.EEXIST)
        if victim.is_directory != inode.is_directory:
            raise _error(errno.EISDIR if victim.is_directory else errno.ENOTDIR)
        if victim.names:
            raise _error(errno.ENOTEMPTY)

    def entries(self, directory: Inode, place: int) -> Iterator[tuple[int, bytes, Inode]]:
        """Iterate over the names after ``place``, each with its own place."""
        for name, (own, inode) in directory.names.items():
            if own > place:
                yield own, name, inode

    def write(self, inode: Inode, offset: int, data: bytes | memoryview, now: int) -> int:
        """Write to a regular file and return the bytes written. Raises OSError ENOSPC."""
        end = offset + len(data)
        if end > len(inode.content):
            self._resize(inode, end)
        inode.content[offset:end] = data
        inode.modified(now)
        return len(data)

    def change(self, inode: Inode, changes: SetAttr, now: int) -> None:
        """Change attributes (chmod(2), chown(2), utimensat(2)), or the size of a regular file.

        Raises:
            OSError: ENOSPC; EINVAL (truncate(2) of another file).
        """
        if changes.size is not None:
            if inode.kind != stat.S_IFREG:
                raise _error(errno.EINVAL)
            self._resize(inode, changes.size)
            inode.modified(now)
        inode.change(changes, now)

    def looked_up(self, inode: Inode) -> None:
        """Count a lookup by the kernel."""
        inode.lookups += 1

    def forgotten(self, nodeid: int, nlookup: int) -> None:
        """Account for FUSE_FORGET of any node."""
        inode = self.by_id.get(nodeid)
        if inode is not None:
            inode.lookups -= nlookup
            self._free_unused(inode)

    def _named(self, parent: Inode, name: bytes) -> Inode:
        if name not in parent.names:
            raise _error(errno.ENOENT)
        return parent.names[name].inode

    def _check_free(self, parent: Inode, name: bytes) -> None:
        if not parent.links:
            raise _error(errno.ENOENT)
        if name in parent.names:
            raise _error(errno.EEXIST)

    def _enter(self, parent: Inode, name: bytes, inode: Inode, now: int) -> None:
        parent.names[name] = Name(self._new_id(), inode)
        if inode.is_directory:
            parent.links += 1
        else:
            inode.links += 1
        parent.modified(now)

    def _leave(self, parent: Inode, name: bytes, now: int) -> None:
        inode = parent.names.pop(name).inode
        if inode.is_directory:
            parent.links -= 1
        else:
            inode.links -= 1
        parent.modified(now)

    def _drop(self, inode: Inode, now: int) -> None:
        """Account for a removed name that is not replaced by another."""
        self.bytes -= NAME_COST
        if inode.is_directory:
            inode.links = 0
        inode.times = (*inode.times[:2], now)
        self._free_unused(inode)

    def _free_unused(self, inode: Inode) -> None:
        """Free a file without a name that the kernel has forgotten. An open file is not
        forgotten."""
        if not inode.links and inode.lookups <= 0:
            del self.by_id[inode.special]
            self.bytes -= NODE_COST + len(inode.content)

    def _resize(self, inode: Inode, size: int) -> None:
        if size > MAX_FILE:
            raise _error(errno.ENOSPC)
        self._charge(size - len(inode.content), inode.uid)
        del inode.content[size:]
        inode.content.extend(bytes(size - len(inode.content)))

    def _charge(self, count: int, owner: int) -> None:
        limit = MAX_BYTES if owner == ROOT else OTHERS_BYTES
        if count > 0 and self.bytes + count > limit:
            raise _error(errno.ENOSPC)
        self.bytes += count


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
