"""Operations on open files (fs/ext4/file.c, dir.c, ioctl.c)."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from mmap import mmap

from loopfs import memory_devices
from loopfs.ext4 import devices, file, ioctl, xattr
from loopfs.ext4 import dir as directories
from loopfs.ext4.commit import Commits
from loopfs.ext4.errors import refused
from loopfs.ext4.inode import FL_APPEND, FL_IMMUTABLE, FL_NOATIME, Inode
from loopfs.ext4.volume import Volume, now_of
from loopfs.fuse.tree import Buffer, Caller, Handle, Later, Tree
from loopfs.lean import TYPE_CHECKING, Callable
from loopfs.uapi.fuse import FOPEN_KEEP_CACHE
from loopfs.uapi.mount import MS_NOATIME, MS_NODIRATIME, MS_STRICTATIME

if TYPE_CHECKING:
    from collections.abc import Iterator

_DAY = 24 * 3600 * 1_000_000_000


class FileHandle(Handle[Inode]):
    """An open file.

    Attributes:
        privileged: whether the process that opened it can use the reserved blocks.
    """

    __slots__ = ("privileged",)

    def __init__(self, node: Inode, privileged: bool) -> None:
        super().__init__(node, FOPEN_KEEP_CACHE)
        self.privileged = privileged


class DirHandle(Handle[Inode]):
    """An open directory.

    Attributes:
        listing: the names when reading began; a place in the directory is an index of it.
    """

    __slots__ = ("listing",)

    def __init__(self, node: Inode) -> None:
        super().__init__(node)
        self.listing: list[bytes] = []


class OpenFiles(Tree[Inode]):
    """The operations of a mounted filesystem on open files.

    Args:
        commits: None if the mount is read-only.
        atime: when atime is updated: MS_NOATIME, MS_NODIRATIME, MS_STRICTATIME; 0: relatime.
    """

    def __init__(self, volume: Volume, commits: Commits | None, *, atime: int) -> None:
        self.volume = volume
        self._commits = commits
        self._atime = atime
        self._buffer = memoryview(mmap(-1, 1 << 20))  # memory only as far as it is used

    def by(self, caller: Caller) -> None:
        """Note whether the caller can use the reserved blocks."""
        self.volume.privileged = self.volume.may_use_reserve(caller.uid, caller.gid)

    def open(self, caller: Caller, node: Inode, flags: int) -> Handle[Inode]:
        if (device := devices.name_of(node)) is not None:
            return devices.DeviceHandle(node, device)
        writing = flags & os.O_ACCMODE != os.O_RDONLY
        if writing:
            self.volume.change()
            node.check_changes()
            appends = flags & os.O_APPEND and not flags & os.O_TRUNC
            if node.flags & FL_IMMUTABLE or (node.flags & FL_APPEND and not appends):
                raise refused(errno.EPERM)
        node.check_readable()
        self.by(caller)
        if flags & os.O_TRUNC and node.is_regular:
            file.truncate(self.volume, node, 0)
            self.drop_capability(node)
        return FileHandle(node, self.volume.privileged)

    def opendir(self, caller: Caller, node: Inode) -> Handle[Inode]:
        directories.load(self.volume, node)
        return DirHandle(node)

    def entries(
        self, handle: Handle[Inode], place: int
    ) -> Iterator[tuple[int, bytes, int, int, Inode | None]]:
        """Yield entries; the place after one is 1 or 2 (the dots), or its index in listing + 3."""
        volume, node = self.volume, handle.node
        found = directories.load(volume, node)
        assert isinstance(handle, DirHandle)
        if place == 0:
            handle.listing = list(found.names)
            self._accessed(handle)
        if place < 1:
            yield 1, b".", node.ino, 4, None
        if place < 2:
            yield 2, b"..", found.parent, 4, None
        listing = handle.listing
        for index in range(max(place - 2, 0), len(listing)):
            entry = found.names.get(listing[index])
            if entry is None:
                continue
            ino, kind, _ = entry
            child = None
            with suppress(OSError):  # a damaged inode is listed; accessing it fails
                child = volume.get(ino)
            # Without attributes the kernel looks a name up; so it must for a memory device.
            told = child if child is None or devices.name_of(child) is None else None
            yield index + 3, listing[index], ino, directories.DT_OF_TYPE[kind], told
            if child is not None and not child.known:
                volume.forget(child)

    def _accessed(self, handle: Handle[Inode]) -> None:
        """Update atime as relatime does: once a day, or if the file has changed since."""
        volume, node = self.volume, handle.node
        never = MS_NOATIME | MS_NODIRATIME if node.is_dir else MS_NOATIME
        if (
            self._atime & never
            or handle.noatime
            or node.flags & FL_NOATIME
            or volume.error
            or volume.read_only
        ):
            return
        now = now_of(volume, node)
        changed = self._atime & MS_STRICTATIME or node.atime <= max(node.mtime, node.ctime)
        if changed or now - node.atime >= _DAY:
            node.atime = now
            volume.changed.add(node)  # not touch(): atime is never written synchronously

    def read(self, handle: Handle[Inode], offset: int, size: int) -> Buffer:
        if isinstance(handle, devices.DeviceHandle):
            return memory_devices.read(handle.name, size)
        if size > len(self._buffer):
            self._buffer = memoryview(mmap(-1, size))
        done = file.read(self.volume, handle.node, offset, self._buffer[:size])
        if done:
            self._accessed(handle)
        return self._buffer[:done]

    def write(self, handle: Handle[Inode], offset: int, data: memoryview) -> int:
        if isinstance(handle, devices.DeviceHandle):
            return memory_devices.write(handle.name, len(data))
        node = handle.node
        self.volume.privileged = getattr(handle, "privileged", True)
        if node.xattrs != {}:
            self.drop_capability(node)
        return file.write(self.volume, node, offset, data)

    def fsync(self, handle: Handle[Inode], datasync: bool) -> Later | None:
        commits, volume = self._commits, self.volume
        if isinstance(handle, devices.DeviceHandle):
            raise refused(errno.EINVAL)
        if commits is None:
            return None
        if volume.error:
            raise refused(volume.error)
        return Later(self._commit(commits))

    def settle(self) -> Callable[[], None] | None:
        """Commit the changes of the call if they must be synchronous (IS_SYNC(), IS_DIRSYNC())."""
        commits, volume = self._commits, self.volume
        if not volume.sync_due or commits is None or volume.error:
            return None
        return self._commit(commits)

    def _commit(self, commits: Commits) -> Callable[[], None]:
        """Commit; return a function that writes the transaction, to be called without the lock."""
        commits.commit()

        def write() -> None:
            commits.write_out()
            with self.server.lock:
                commits.collect()

        return write

    def fallocate(self, handle: Handle[Inode], mode: int, offset: int, length: int) -> None:
        node = handle.node
        if isinstance(handle, devices.DeviceHandle):
            raise refused(errno.ENODEV)
        if node.flags & FL_IMMUTABLE or (node.flags & FL_APPEND and mode & ~1):
            raise refused(errno.EPERM)
        self.volume.privileged = getattr(handle, "privileged", True)
        file.fallocate(self.volume, node, mode, offset, length)
        self.drop_capability(node)

    def lseek(self, handle: Handle[Inode], offset: int, whence: int) -> int:
        if isinstance(handle, devices.DeviceHandle):
            return 0
        return file.seek(self.volume, handle.node, offset, whence)

    def ioctl(
        self, caller: Caller, handle: Handle[Inode], cmd: int, arg: int, data: bytes, compat: bool
    ) -> tuple[int, bytes]:
        volume, node = self.volume, handle.node
        if isinstance(handle, devices.DeviceHandle):
            raise refused(errno.ENOTTY)
        if cmd in (ioctl.FS_IOC_GETFLAGS, ioctl.FS_IOC32_GETFLAGS):
            return 0, ioctl.get_flags(node).to_bytes(4, "little")
        if cmd in (ioctl.FS_IOC_SETFLAGS, ioctl.FS_IOC32_SETFLAGS):
            ioctl.set_flags(volume, node, int.from_bytes(data[:4], "little"))
            self.server.attributes_changed(node.nodeid)
            return 0, b""
        if cmd == ioctl.FS_IOC_FSGETXATTR:
            return 0, ioctl.get_fsxattr(node)
        if cmd == ioctl.FS_IOC_FSSETXATTR:
            ioctl.set_fsxattr(volume, node, data)
            return 0, b""
        if cmd == ioctl.FS_IOC_GETVERSION:
            return 0, node.generation.to_bytes(4, "little")
        if cmd == ioctl.FS_IOC_GETFSLABEL:
            return 0, ioctl.get_label(volume)
        if cmd == ioctl.FS_IOC_GETFSUUID:
            return 0, ioctl.get_uuid(volume)
        if caller.uid == 0 and cmd == ioctl.FS_IOC_SETFSLABEL:
            ioctl.set_label(volume, data)
            volume.touch(volume.get(2))
            return 0, b""
        if caller.uid == 0 and cmd == ioctl.FITRIM:
            return 0, ioctl.trim(volume, data)
        if cmd in (ioctl.FS_IOC_SETFSLABEL, ioctl.FITRIM):
            raise refused(errno.EPERM)
        raise refused(errno.EOPNOTSUPP if cmd == ioctl.EXT4_IOC_RESIZE_FS else errno.ENOTTY)

    def drop_capability(self, node: Inode) -> None:
        if node.xattrs != {} and xattr.CAPABILITY in xattr.load(self.volume, node):
            xattr.remove(self.volume, node, xattr.CAPABILITY)

    def drop_privileges(self, node: Inode) -> None:
        """Clear set-user-ID and set-group-ID after a change by a process without privileges."""
        if not node.is_dir:
            drop = stat.S_ISUID | (stat.S_ISGID if node.mode & stat.S_IXGRP else 0)
            if node.mode & drop:
                node.mode &= ~drop
                self.volume.touch(node)
                # After a write the kernel only asks for the size and the times.
                self.server.attributes_changed(node.nodeid)
