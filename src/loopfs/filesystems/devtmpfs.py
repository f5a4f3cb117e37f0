"""The sandbox's /dev: its first instance, with a tree of other files as in devtmpfs.

The nodes of the devices appear in / and in /loopfs, with the same node ids. If a file of the tree
already has the name of a new device, the file stays, as on devtmpfs; the device is then only in
/loopfs.

The host's nodes are mounted on symbolic links. The name of a node with two faces is looked up each
time, and what is mounted on it is unmounted when the lookup returns the other face; a link has only
one face. A path walk crosses to the mount before it would follow the link. A process that has /dev
without those mounts, by a bind mount that is not recursive, follows the link to a
:class:`~loopfs.filesystems.characters.Character`.

On a read-only mount a special file can be opened for writing, but a regular file, which the data
face is, cannot. So once a mount may be read-only, an open for writing that follows links is
redirected from / to /loopfs, which is a separate mount.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator, Sequence
from heapq import merge
from operator import itemgetter

from loopfs.filesystems import dev_layout, faces
from loopfs.filesystems.characters import Character
from loopfs.filesystems.dev_layout import FIRST_INO, HIDDEN, LOOPFS, NAME_VALID, ROOT_INO
from loopfs.filesystems.directory import NAME_MAX
from loopfs.filesystems.loopfs import LoopFilesystem, OpenFile
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.tree import RENAME_EXCHANGE, Inode, Tree
from loopfs.fuse.operations import Buffer, Entry, SetAttr
from loopfs.fuse.session import Request
from loopfs.lean import Any
from loopfs.process import Process
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH, FUSE_ROOT_ID, Attr
from loopfs.uapi.magic import TMPFS_MAGIC

_LINK = stat.S_IFLNK | 0o777


class DevFilesystem(LoopFilesystem):
    """The filesystem of /dev.

    Args:
        mounted_on: the names of the mount points: devices, and directories.
        arguments: see LoopFilesystem.
    """

    magic = TMPFS_MAGIC  # the same as devtmpfs (mm/shmem.c)
    makes_files = True

    def __init__(self, mounted_on: Sequence[str], *arguments: Any) -> None:
        super().__init__(*arguments)
        now = time.time_ns()
        self.tree = Tree(self.nodes.new_id, now)
        del self.nodes.by_ino[ROOT_INO]  # fstat(2) of the root needs no correction
        self._leading: dict[bytes, Inode] = {}  # links to devices, by their names
        self._characters: dict[bytes, Character] = {}
        self._covered: set[Inode] = set()
        for file in dev_layout.files(mounted_on):
            self._add(file, now)
        self._loops, self._hidden = (self.tree.root.names[n].inode for n in (LOOPFS, HIDDEN))
        self._ours = self._loops, self._hidden

    def _add(self, file: dev_layout.File, now: int) -> None:
        parent = self.tree.directory(file.parent)
        inode = self.tree.make(
            parent, file.name, file.mode, now, content=file.target, nodeid=file.nodeid
        )
        self.tree.looked_up(inode)  # process 1 has looked it up before this server starts
        if file.device is not None:
            self._covered.add(inode)
            special, data = self.nodes.new_id(), self.nodes.new_id()
            node = Character(file.device, FIRST_INO + special, special, data, now)
            self.nodes.by_id[special] = self.nodes.by_id[data] = node
            self.nodes.by_ino[node.ino] = self._characters[node.name] = node

    # --- names -----------------------------------------------------------------

    def _special(self, directory: Inode, name: bytes) -> Node | None:
        """Return the node with a name in a directory that is not in the tree."""
        if directory is self._hidden:
            return self._characters.get(name)
        if directory in (self.tree.root, self._loops):
            return self.nodes.by_name.get(name)
        return None

    def places(self, node: Node) -> tuple[tuple[int, bytes], ...]:
        if isinstance(node, Character):
            return ((self._hidden.special, b"/%s/" % HIDDEN),)
        return (FUSE_ROOT_ID, b"/"), (self._loops.special, b"/%s/" % LOOPFS)

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        directory = self.tree.directory(parent)
        if name in directory.names:
            return self._known(directory.names[name].inode)
        node = self._special(directory, name)
        if node is None:
            raise _error(errno.ENOENT)
        if directory is self.tree.root and self._leads_on(request, node):
            return self._known(self._link_to(name))._replace(valid=0)
        return self.lookup_node(request, node)

    def _leads_on(self, request: Request, node: Node) -> bool:
        return (
            self._instances.some_read_only
            and node.cover is None
            and faces.writes_and_follows(Process(request.pid))
        )

    def _link_to(self, name: bytes) -> Inode:
        inode = self._leading.get(name)
        if inode is None or inode.special not in self.tree.by_id:
            target = LOOPFS + b"/" + name
            known = self._leading.items()
            self._leading = {n: link for n, link in known if link.special in self.tree.by_id}
            inode = self._leading[name] = self.tree.make_nameless(_LINK, time.time_ns(), target)
        return inode

    def _known(self, inode: Inode) -> Entry:
        self.tree.looked_up(inode)
        return Entry(inode.special, inode.attr(inode.special), NAME_VALID)

    def forget(self, nodeid: int, nlookup: int) -> None:
        super().forget(nodeid, nlookup)
        self.tree.forgotten(nodeid, nlookup)

    def entries(
        self, request: Request, nodeid: int, handle: int, place: int
    ) -> Iterator[tuple[int, bytes, int, int]]:
        directory = self.tree.directory(nodeid)
        plain = (
            # The node mounted on the file has another type.
            (own, name, inode.ino, 0 if inode in self._covered else inode.kind)
            for own, name, inode in self.tree.entries(directory, place)
            if inode is not self._hidden
        )
        if directory not in (self.tree.root, self._loops):
            return plain
        devices = (
            (own, node.name, node.ino, node.kind)
            for own, node in self.nodes.after(place)
            if node.name not in directory.names
        )
        return merge(plain, devices, key=itemgetter(0))

    def _make(
        self, request: Request, parent: int, name: bytes, mode: int, content: bytes = b""
    ) -> Entry:
        directory = self._changeable(parent, name, errno.EACCES if stat.S_ISREG(mode) else 0)
        owner = request.uid, request.gid
        return self._known(self.tree.make(directory, name, mode, time.time_ns(), owner, content))

    def _changeable(self, parent: int, name: bytes, refusal: int = 0) -> Inode:
        """Return a directory in which a name is to be created that is not the name of a device."""
        directory = self.tree.directory(parent)
        if directory in self._ours:
            raise _error(refusal or errno.EPERM)
        if self._special(directory, name) is not None and name not in directory.names:
            raise _error(errno.EEXIST)
        return directory

    def mknod(self, request: Request, parent: int, name: bytes, mode: int) -> Entry:
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise _error(errno.EPERM)
        return self._make(request, parent, name, mode)

    def mkdir(self, request: Request, parent: int, name: bytes, mode: int) -> Entry:
        return self._make(request, parent, name, stat.S_IFDIR | stat.S_IMODE(mode))

    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Entry:
        return self._make(request, parent, name, _LINK, target)

    def link(self, request: Request, nodeid: int, parent: int, name: bytes) -> Entry:
        inode = self._node(nodeid)
        if not isinstance(inode, Inode):
            raise _error(errno.EPERM)
        self.tree.link(inode, self._changeable(parent, name), name, time.time_ns())
        return self._known(inode)

    def rmdir(self, request: Request, parent: int, name: bytes) -> None:
        self._remove_plain(self.tree.directory(parent), name)
        request.reply()

    def unlink(self, request: Request, parent: int, name: bytes) -> None:
        directory = self.tree.directory(parent)
        if name in directory.names:
            self._remove_plain(directory, name)
            request.reply()
        elif directory is self._hidden:
            raise _error(errno.EPERM)
        else:
            super().unlink(request, parent, name)

    def _remove_plain(self, directory: Inode, name: bytes) -> None:
        self._check_not_ours(directory, name)
        self.tree.remove(directory, name, time.time_ns())

    def _check_not_ours(self, directory: Inode, name: bytes) -> None:
        if name in directory.names and directory.names[name].inode in self._ours:
            raise _error(errno.EBUSY)  # as if it were a mount point

    def rename(
        self, request: Request, parent: int, name: bytes, to: int, to_name: bytes, flags: int
    ) -> None:
        source, target = self.tree.directory(parent), self.tree.directory(to)
        self._check_not_ours(source, name)
        self._check_not_ours(target, to_name)
        if name in source.names:
            # If it replaces a device, the name refers to the file, as on devtmpfs.
            exchanged = flags & RENAME_EXCHANGE and to_name not in target.names
            if target in self._ours or exchanged:
                raise _error(errno.EPERM)
            self.tree.rename(source, name, target, to_name, flags, time.time_ns())
            request.reply()
        elif source is not target:
            raise _error(errno.EXDEV)
        elif source is self._hidden or to_name in target.names:
            raise _error(errno.EPERM)
        else:
            super().rename(request, parent, name, to, to_name, flags)

    # --- attributes, files -------------------------------------------------------

    def _node(self, nodeid: int) -> Node:
        return self.tree.by_id.get(nodeid) or super()._node(nodeid)

    def readlink(self, nodeid: int) -> bytes:
        inode = self.tree.by_id.get(nodeid)
        if inode is None or inode.kind != stat.S_IFLNK:
            raise _error(errno.EINVAL)
        return bytes(inode.content)

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        inode = self.tree.by_id.get(nodeid)
        if inode is None:
            return super().setattr(nodeid, changes)
        self.tree.change(inode, changes, time.time_ns())
        return inode.attr(nodeid)

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        node = self._node(nodeid)
        if isinstance(node, Inode):
            kept = FOPEN_KEEP_CACHE
        elif isinstance(node, Character):
            node.check_opens()
            kept = FOPEN_DIRECT_IO
        else:
            return super().open(request, nodeid, flags)
        handle = self.new_handle()
        self.open_files[handle] = OpenFile(node, None, None, request.connection)
        return handle, FOPEN_NOFLUSH | kept

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        node = self.open_files[handle].node
        if isinstance(node, Inode):
            return bytes(node.content[offset : offset + size])
        if isinstance(node, Character):
            return node.read(size)
        return super().read(request, handle, offset, size, flags)

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        node = self.open_files[handle].node
        if isinstance(node, Inode):
            return self.tree.write(node, offset, data, time.time_ns())
        if isinstance(node, Character):
            return node.write(len(data))
        return super().write(request, handle, offset, data, flags)

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        if isinstance(self.open_files[handle].node, Inode):
            request.reply()
        else:
            super().fsync(request, handle, datasync)

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        if isinstance(self.open_files[handle].node, Inode):
            raise _error(errno.EOPNOTSUPP)
        super().fallocate(request, handle, mode, offset, length)

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        if isinstance(self.open_files[handle].node, Inode | Character):
            raise _error(errno.ENOTTY)
        super().ioctl(request, handle, cmd, arg, data, compat)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
