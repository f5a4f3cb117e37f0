"""vfat as a tree that a FUSE server serves: the operations of the kernel's VFS layer and vfat.

A file can be named by several spellings (case, 8.3, trailing dots), and the kernel caches names. It
is allowed to cache the true spelling only. When a file is removed or moved by another spelling, the
cached name is invalidated: by ESTALE, after which the kernel looks the name up again, or, while the
file is open, by a notification. The kernel processes the latter after the reply, so that for a
short time a removed name can still be found.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from mmap import mmap

from loopfs.fat import file, ioctl, namei
from loopfs.fat.dir import load, read_again
from loopfs.fat.errors import refused
from loopfs.fat.inode import Inode
from loopfs.fat.names import MOST_UNITS, MSDOS_NAME_MAX
from loopfs.fat.volume import Volume
from loopfs.filesystems.lending import REMOUNT
from loopfs.fuse.tree import Buffer, Caller, Changes, Handle, Later, Space, Tree
from loopfs.lean import TYPE_CHECKING, Sequence
from loopfs.uapi.fuse import FOPEN_KEEP_CACHE, Attr

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_VALID = 3600  # seconds
_BYTES = 6  # the longest character: NLS_MAX_CHARSET_SIZE
_DT_DIR, _DT_REG = 4, 8


class DirHandle(Handle[Inode]):
    """An open directory.

    Attributes:
        place: the position for the ioctls that read it, like the kernel's f_pos.
    """

    __slots__ = ("place",)

    def __init__(self, node: Inode) -> None:
        super().__init__(node)
        self.place = 0


class Vfat(Tree[Inode]):
    """A mounted volume.

    Args:
        atime: whether reading updates atime.
    """

    def __init__(self, volume: Volume, *, atime: bool = True) -> None:
        self.volume = volume
        self._atime = atime and not volume.options.msdos
        self._buffer = memoryview(mmap(-1, 1 << 20))  # memory only as far as it is used
        load(volume, volume.root)

    # --- nodes ------------------------------------------------------------------

    def root(self) -> Inode:
        return self.volume.root

    def is_stale(self, node: Inode, nodeid: int) -> bool:
        if node.opens or node.is_dir:  # the kernel has only one name of a directory at a time
            return False
        return node.gone or node.nodeid != nodeid

    def known(self, node: Inode) -> None:
        node.known += 1

    def forgotten(self, node: Inode) -> None:
        node.known -= 1
        self._drop(node)

    def _drop(self, node: Inode | None) -> None:
        """Drop from memory what the kernel does not refer to: a node, and its parents."""
        while node is not None and not node.known and not node.opens:
            content = node.dir
            if content is not None:
                if not node.gone and not content.is_idle():
                    return
                self.volume.let_go(node)
            if not node.gone:
                self.volume.drop_chain(node)
            node = node.parent

    def getattr(self, node: Inode) -> Attr:
        return file.getattr(self.volume, node)

    def setattr(self, caller: Caller, node: Inode, changes: Changes) -> None:
        wanted = changes.mode, changes.uid, changes.gid, changes.size, changes.atime, changes.mtime
        file.setattr(self.volume, node, file.Changes(*wanted))

    def statfs(self) -> Space:
        volume = self.volume
        free, unit = volume.table.count_free(), volume.cluster
        most = (MSDOS_NAME_MAX if volume.options.msdos else MOST_UNITS) * _BYTES
        return Space(volume.shape.clusters, free, free, 0, 0, unit, most, unit)

    # --- names -----------------------------------------------------------------

    def _found(self, node: Inode, name: bytes) -> tuple[Inode, int]:
        return node, NAME_VALID if node.name == name else 0

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, int]:
        return self._found(namei.lookup(self.volume, parent, name), name)

    def create(
        self, caller: Caller, parent: Inode, name: bytes, mode: int, flags: int
    ) -> tuple[tuple[Inode, int], Handle[Inode]]:
        try:
            node = namei.create(self.volume, parent, name)
        except FileExistsError:
            found = namei.find(self.volume, parent, name)
            if found is None or flags & os.O_EXCL:  # None: only its short name exists
                raise
            if found.is_dir:
                raise refused(errno.EISDIR) from None
            node = found  # made since the lookup
        else:
            flags &= ~os.O_TRUNC
        return self._found(node, name), self.open(caller, node, flags)

    def mknod(
        self, caller: Caller, parent: Inode, name: bytes, mode: int, rdev: int
    ) -> tuple[Inode, int]:
        if not stat.S_ISREG(mode):
            raise refused(errno.EPERM)
        return self._found(namei.create(self.volume, parent, name), name)

    def mkdir(self, caller: Caller, parent: Inode, name: bytes, mode: int) -> tuple[Inode, int]:
        return self._found(namei.mkdir(self.volume, parent, name), name)

    def unlink(self, caller: Caller, parent: Inode, name: bytes) -> None:
        node = namei.unlink(self.volume, parent, name)
        if node.opens and name != node.name:
            self.server.forget_name(parent.nodeid, node.name)

    def rmdir(self, caller: Caller, parent: Inode, name: bytes) -> None:
        namei.rmdir(self.volume, parent, name)

    def rename(
        self, caller: Caller, parent: Inode, name: bytes, to: Inode, to_name: bytes, flags: int
    ) -> None:
        volume = self.volume
        before = namei.lookup(volume, parent, name).name
        other = namei.find(volume, to, to_name)
        victim_name = other.name if other is not None else b""
        node, victim = namei.rename(volume, parent, name, to, to_name, flags)
        if node is other:
            return
        places = (parent, name, before), (to, to_name, node.name)
        self._respelled(node, places)
        if victim is not None and not victim.gone:  # exchanged
            self._respelled(victim, ((parent, name, victim.name), (to, to_name, victim_name)))
        elif victim is not None and victim.opens and to_name != victim_name:
            self.server.forget_name(to.nodeid, victim_name)

    def _respelled(self, node: Inode, places: tuple[tuple[Inode, bytes, bytes], ...]) -> None:
        """Invalidate names that the kernel may have cached of a node that was moved.

        Args:
            places: directories, each with the spelling of the caller and the true one.
        """
        if node.is_dir or all(said == true for _, said, true in places):
            return
        if not node.opens:
            node.nodeid = self.volume.new_ino()
            return
        for directory, said, true in places:
            for name in {said, true}:
                self.server.forget_name(directory.nodeid, name)

    # --- open files -------------------------------------------------------------

    def open(self, caller: Caller, node: Inode, flags: int) -> Handle[Inode]:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            namei.changing(self.volume, node)
            if flags & os.O_TRUNC and node.size:
                file.setattr(self.volume, node, file.Changes(size=0))
        node.opens += 1
        return Handle(node, FOPEN_KEEP_CACHE)

    def opendir(self, caller: Caller, node: Inode) -> Handle[Inode]:
        load(self.volume, node)
        node.opens += 1
        return DirHandle(node)

    def release(self, handle: Handle[Inode]) -> None:
        node = handle.node
        node.opens -= 1
        if not node.opens:
            file.close(self.volume, node)
            self._drop(node)

    def entries(
        self, handle: Handle[Inode], place: int
    ) -> Iterator[tuple[int, bytes, int, int, Inode | None]]:
        """Yield entries; the place after one is 1 or 2 (the dots), or its slot number + 3."""
        node, content = handle.node, load(self.volume, handle.node)
        if isinstance(handle, DirHandle) and place == 0:
            handle.place = 0
        up = node.parent or node
        if place < 1:
            yield 1, b".", node.ino, _DT_DIR, None
        if place < 2:
            yield 2, b"..", up.ino, _DT_DIR, None
        inodes = content.inodes
        for slot in range(max(place - 2, 0), len(content.used)):
            if (child := inodes.get(slot)) is not None:
                kind = _DT_DIR if child.is_dir else _DT_REG
                yield slot + 3, child.name, child.ino, kind, child

    def read(self, handle: Handle[Inode], offset: int, size: int) -> Buffer:
        volume, node = self.volume, handle.node
        if size > len(self._buffer):
            self._buffer = memoryview(mmap(-1, size))
        done = file.read(volume, node, offset, self._buffer[:size])
        if self._atime and not handle.noatime and not volume.read_only and done:
            # The kernel does not report this failure either. The change is in memory; a sync that
            # cannot write it fails.
            with suppress(OSError):
                file.accessed(volume, node)
        return self._buffer[:done]

    def write(self, handle: Handle[Inode], offset: int, data: memoryview) -> int:
        return file.write(self.volume, handle.node, offset, data)

    def fsync(self, handle: Handle[Inode], datasync: bool) -> Later:
        self.volume.write_back()
        return Later(self.volume.device.sync)

    def fallocate(self, handle: Handle[Inode], mode: int, offset: int, length: int) -> None:
        file.fallocate(self.volume, handle.node, mode, offset, length)

    def ioctl(
        self, caller: Caller, handle: Handle[Inode], cmd: int, arg: int, data: bytes, compat: bool
    ) -> tuple[int, bytes]:
        volume, node = self.volume, handle.node
        if cmd == ioctl.FAT_IOCTL_GET_ATTRIBUTES:
            return 0, ioctl.get_attributes(node)
        if cmd == ioctl.FAT_IOCTL_GET_VOLUME_ID:
            return 0, ioctl.get_volume_id(volume)
        if cmd == ioctl.FAT_IOCTL_SET_ATTRIBUTES:
            ioctl.set_attributes(volume, node, data, caller.uid)
            self.server.attributes_changed(node.nodeid)
            return 0, b""
        if cmd == ioctl.FITRIM:
            return 0, ioctl.trim(volume, data)
        if cmd in ioctl.READDIRS and isinstance(handle, DirHandle):
            handle.place, result, out = ioctl.read_directory(volume, node, handle.place, cmd)
            return result, out
        raise refused(errno.ENOTTY)

    def control(self, ino: int, command: int, words: Sequence[int]) -> Sequence[int]:
        """Remount, read-only if the word is 1. Can be called by any thread.

        Returns:
            Whether the state has changed.
        Raises:
            OSError: ENOTTY: another command; EBUSY as of read_again(); an error of the device.
        """
        if command != REMOUNT:
            raise refused(errno.ENOTTY)
        volume, read_only = self.volume, bool(words[0])
        with self.server.lock:
            if volume.outdated and not read_only:
                for node in read_again(volume):
                    self.server.drop_pages(node.nodeid)
                volume.outdated = False
            return (int(volume.remount(read_only=read_only)),)

    def destroy(self) -> None:
        self.volume.close()
