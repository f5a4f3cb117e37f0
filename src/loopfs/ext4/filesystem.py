"""ext4 as a tree that a FUSE server serves: the operations of the kernel's VFS layer and ext4."""

from __future__ import annotations

import errno
import stat
import sys
import threading

from loopfs.ext4 import acl, damage, devices, fiemap, file, ioctl, namei, tune, xattr
from loopfs.ext4.commit import Commits, Flusher
from loopfs.ext4.errors import refused
from loopfs.ext4.inode import FL_APPEND, FL_IMMUTABLE, Inode, clamped
from loopfs.ext4.opened import FileHandle, OpenFiles
from loopfs.ext4.super import OFFSET, SIZE
from loopfs.ext4.volume import Volume, now_of
from loopfs.filesystems.faces import LOOK
from loopfs.filesystems.lending import FREEZE, REMOUNT, STAT
from loopfs.fuse.tree import FACE, Caller, Changes, Handle, Space
from loopfs.lean import TYPE_CHECKING, Callable
from loopfs.uapi import fuse as uapi
from loopfs.uapi.fuse import Attr

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME_VALID = 1 << 20  # seconds: only the kernel's own requests change names


class Ext4(OpenFiles):
    """A mounted filesystem.

    Args:
        commits: None if the mount is read-only.
        atime: when atime is updated: MS_NOATIME, MS_NODIRATIME, MS_STRICTATIME; 0: relatime.

    Attributes:
        purpose: returns, for a thread id and the inode number of a device, the purpose of a lookup
            that has found it: LOOK, OPEN or HOLD. LOOK if that is not known.
        making: for ids of processes that create a FIFO which is to become a device, the S_IF* type
            and the device number as FUSE encodes it.
    """

    negative_valid = NAME_VALID

    def __init__(self, volume: Volume, commits: Commits | None, *, atime: int = 0) -> None:
        super().__init__(volume, commits, atime=atime)
        self._flusher: Flusher | None = None
        self._remounting = threading.Lock()
        self._stopped = False  # whether it is remounted read-only, or frozen
        self._stopped_by_freeze = False
        self.purpose: Callable[[int, int], int] = lambda thread, ino: LOOK
        self.making: dict[int, tuple[int, int]] = {}
        self.init_flags = uapi.FUSE_HANDLE_KILLPRIV_V2
        if not volume.options.noacl:
            self.init_flags |= uapi.FUSE_POSIX_ACL | uapi.FUSE_DONT_MASK

    def start(self) -> None:
        """Start the commit thread. To be called once the server exists."""
        if self._commits is not None:
            interval = self.volume.options.commit
            self._flusher = Flusher(self._commits, self.server.lock, interval)
            if self.volume.protection is not None:
                self.volume.protection.start(self._commits.fail)

    def answered(self) -> None:
        """Commit if the transaction has reached its size limit, or if an error requires it."""
        commits, volume = self._commits, self.volume
        if commits is None or not (commits.is_due or (volume.ends and not volume.read_only)):
            return
        if volume.ends and not volume.read_only:
            volume.read_only = True
            sys.stderr.write("ext4: the filesystem is read-only now\n")
        try:
            if self._flusher is None:
                commits.commit_and_wait()
            else:
                commits.commit()
                self._flusher.wake()
        except OSError as problem:  # kept in the volume and reported by the next sync
            sys.stderr.write(f"ext4: {problem}\n")

    def failed(self, problem: OSError) -> None:
        """Record an error in the image in the superblock."""
        volume = self.volume
        if damage.is_damage(problem) and not (volume.read_only or volume.error):
            volume.note(problem)
        self.answered()

    # --- nodes ------------------------------------------------------------------

    def root(self) -> Inode:
        return self.volume.get(2)

    def known(self, node: Inode) -> None:
        node.known += 1

    def forgotten(self, node: Inode) -> None:
        node.known -= 1
        if not node.known:
            self.volume.forget(node)

    def getattr(self, node: Inode) -> Attr:
        return Attr(
            *(node.ino, node.size, node.mode, node.nlink, node.uid, node.gid, node.rdev),
            (node.atime, node.mtime, node.ctime),
            self.volume.super.block_size,
            node.sectors,
        )

    def birth(self, node: Inode) -> int | None:
        return node.crtime

    def face(self, caller: Caller, node: Inode) -> int:
        if devices.name_of(node) is None or self.purpose(caller.pid, node.ino) == LOOK:
            return node.nodeid
        return node.nodeid | FACE

    def attr_of_face(self, node: Inode, attr: Attr) -> Attr:
        return devices.data_face(node, attr)

    def setattr(self, caller: Caller, node: Inode, changes: Changes) -> None:
        volume = self.volume
        volume.change()
        if node.flags & FL_IMMUTABLE or (
            node.flags & FL_APPEND
            and changes.handle is None
            and not changes.touch
            and changes != Changes()
        ):
            raise refused(errno.EPERM)
        self.by(caller)
        volume.reserve()
        if changes.size is not None:
            if not node.is_regular:
                raise refused(errno.EISDIR if node.is_dir else errno.EINVAL)
            node.check_changes()
            if changes.size != node.size or changes.mtime is None:
                file.truncate(volume, node, changes.size)
        if changes.size is not None or changes.uid is not None or changes.gid is not None:
            self.drop_capability(node)
        if changes.mode is not None:
            self._chmod(node, changes.mode)
        if changes.uid is not None:
            node.uid = changes.uid
        if changes.gid is not None:
            node.gid = changes.gid
        extra = bool(node.extra)
        if changes.atime is not None:
            node.atime = clamped(changes.atime, extra)
        if changes.mtime is not None:
            node.mtime = clamped(changes.mtime, extra)
        node.ctime = now_of(volume, node)
        volume.touch(node)

    def _chmod(self, node: Inode, mode: int) -> None:
        value = None
        if node.xattrs != {} and not self.volume.options.noacl:
            value = xattr.find(self.volume, node, acl.ACCESS)
        if value is not None:
            attributes = dict(xattr.load(self.volume, node))
            changed, _ = acl.with_mode(value, mode, masked=False)
            del attributes[acl.ACCESS]
            if changed is not None:
                attributes[acl.ACCESS] = changed
            self.volume.reserve(xattr.blocks_of(self.volume, attributes))
            xattr.replace(self.volume, node, attributes)
        node.mode = node.mode & 0xF000 | mode & 0o7777

    def statfs(self) -> Space:
        volume, sb = self.volume, self.volume.super
        blocks = sb.blocks
        if not volume.options.minixdf:
            blocks -= volume.overhead
        free = volume.free_blocks()
        available = max(free - sb.reserved_blocks - volume.groups.keep, 0)
        files = sb.inodes, volume.groups.free_inodes
        return Space(blocks, free, available, *files, sb.block_size, 255, sb.block_size)

    # --- names -----------------------------------------------------------------

    def lookup(self, parent: Inode, name: bytes) -> tuple[Inode, int]:
        return _found(namei.lookup(self.volume, parent, name))

    def _make(
        self,
        caller: Caller,
        parent: Inode,
        name: bytes | None,
        mode: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> tuple[Inode, int]:
        self.by(caller)
        inode = namei.make(self.volume, parent, name, mode, caller, rdev=rdev, target=target)
        return _found(inode)

    def create(
        self, caller: Caller, parent: Inode, name: bytes, mode: int, flags: int
    ) -> tuple[tuple[Inode, int], Handle[Inode]]:
        found = self._make(caller, parent, name, stat.S_IFREG | mode & 0o7777)
        return found, FileHandle(found[0], self.volume.privileged)

    def tmpfile(
        self, caller: Caller, parent: Inode, mode: int, flags: int
    ) -> tuple[tuple[Inode, int], Handle[Inode]]:
        found = self._make(caller, parent, None, stat.S_IFREG | mode & 0o7777)
        return found, FileHandle(found[0], self.volume.privileged)

    def mknod(
        self, caller: Caller, parent: Inode, name: bytes, mode: int, rdev: int
    ) -> tuple[Inode, int]:
        if stat.S_ISFIFO(mode) and caller.pid in self.making:
            kind, rdev = self.making.pop(caller.pid)
            mode = kind | mode & 0o7777
        return self._make(caller, parent, name, mode, rdev=rdev)

    def mkdir(self, caller: Caller, parent: Inode, name: bytes, mode: int) -> tuple[Inode, int]:
        return self._make(caller, parent, name, stat.S_IFDIR | mode & 0o7777)

    def symlink(
        self, caller: Caller, parent: Inode, name: bytes, target: bytes
    ) -> tuple[Inode, int]:
        return self._make(caller, parent, name, stat.S_IFLNK | 0o777, target=target)

    def link(self, caller: Caller, node: Inode, parent: Inode, name: bytes) -> tuple[Inode, int]:
        self.by(caller)
        namei.link(self.volume, node, parent, name)
        return _found(node)

    def unlink(self, caller: Caller, parent: Inode, name: bytes) -> None:
        namei.unlink(self.volume, parent, name)

    def rmdir(self, caller: Caller, parent: Inode, name: bytes) -> None:
        namei.rmdir(self.volume, parent, name)

    def rename(
        self, caller: Caller, parent: Inode, name: bytes, to: Inode, to_name: bytes, flags: int
    ) -> None:
        self.by(caller)
        namei.rename(self.volume, parent, name, to, to_name, flags, caller)

    def readlink(self, node: Inode) -> bytes:
        return namei.read_link(self.volume, node)

    # --- extended attributes -------------------------------------------------------

    def _attribute(self, name: bytes) -> None:
        if self.volume.options.noacl and name in (acl.ACCESS, acl.DEFAULT):
            raise refused(errno.EOPNOTSUPP)

    def getxattr(self, node: Inode, name: bytes) -> bytes:
        self._attribute(name)
        return xattr.get(self.volume, node, name)

    def listxattr(self, node: Inode) -> list[bytes]:
        return xattr.names(self.volume, node)

    def setxattr(self, caller: Caller, node: Inode, name: bytes, value: bytes, flags: int) -> None:
        self._attribute(name)
        self._may_change(node)
        self.by(caller)
        xattr.set_value(self.volume, node, name, value, flags)

    def removexattr(self, caller: Caller, node: Inode, name: bytes) -> None:
        self._attribute(name)
        self._may_change(node)
        xattr.remove(self.volume, node, name)

    def _may_change(self, node: Inode) -> None:
        self.volume.change()
        if node.flags & (FL_IMMUTABLE | FL_APPEND):
            raise refused(errno.EPERM)

    # --- by other threads ---------------------------------------------------------

    def control(self, ino: int, command: int, words: Sequence[int]) -> Sequence[int]:
        """Carry out STAT, or an ioctl that the kernel's VFS does not pass on to FUSE.

        Can be called by any thread.

        Args:
            ino: the inode number.
            words: FS_IOC_SETFLAGS: the flags; FS_IOC_FIEMAP: start and length in bytes, and the
                largest number of extents to return.
        Returns:
            FS_IOC_FIEMAP: the number of extents, then four numbers for each, as in
            :mod:`loopfs.ext4.fiemap`; STAT: mode, link count, user, group, device number, times.
        Raises:
            OSError: EUCLEAN: there is no such inode in use; the errors of the ioctl.
        """
        if command == REMOUNT:
            return (int(self.remount(read_only=bool(words[0]))),)
        if command == FREEZE:
            self.freeze(frozen=bool(words[0]))
            return ()
        with self.server.lock:
            try:
                found = self._control(self.volume.get(ino), command, words)
            except OSError as problem:
                self.failed(problem)
                raise
            self.answered()
            return found

    def _control(self, node: Inode, command: int, words: Sequence[int]) -> Sequence[int]:
        if command == STAT:
            attr = self.getattr(node)
            return attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, *attr.times
        if devices.name_of(node) is not None:
            raise refused(errno.ENOTTY)
        if command == ioctl.FS_IOC_SETFLAGS:
            ioctl.set_flags(self.volume, node, words[0])
            self.server.attributes_changed(node.nodeid)
            return ()
        if command == ioctl.FS_IOC_FIEMAP:
            start, length, most = words
            found = fiemap.rows(self.volume, node, start, length)
            return [len(found), *(number for row in found[:most] for number in row)]
        raise refused(errno.ENOTTY)

    def remount(self, *, read_only: bool) -> bool:
        """Remount read-only, after everything is written to its final location, or read-write.

        Can be called by any thread.

        Returns:
            Whether the state has changed.
        Raises:
            OSError: EROFS: it can only be read, or has had an error; EBUSY: another machine has it
                mounted; EINVAL, EUCLEAN as for a mount; or an error of the device.
        """
        volume = self.volume
        with self._remounting:
            if self.server.frozen and not read_only:
                raise refused(errno.EBUSY)
            if self._stopped_by_freeze:  # the kernel passes on no changes after the thaw, either
                self._stopped_by_freeze = False
                return True
            if volume.read_only == read_only:
                return False
            if volume.error or volume.ends:
                raise refused(errno.EROFS)
            if self._commits is None:
                self._begin_writing()
            elif read_only:
                self._stop(self._commits)
            else:
                self._go_on(self._commits)
            return True

    def freeze(self, *, frozen: bool) -> None:
        """Hold back changes, after everything is written to its final location; or go on.

        Can be called by any thread.

        Raises:
            OSError: EBUSY: it is frozen already; EINVAL: it is not; EROFS: it has had an error; or
                an error of the device.
        """
        with self._remounting:
            if self.server.frozen == frozen:
                raise refused(errno.EBUSY if frozen else errno.EINVAL)
            if frozen and self.volume.error:
                raise refused(errno.EROFS)
            if frozen:
                self._freeze()
                return
            if self._stopped_by_freeze and self._commits is not None:
                self._go_on(self._commits)
            self._stopped_by_freeze = False
            self.server.thaw()

    def _freeze(self) -> None:
        with self.server.lock:
            self.server.frozen = True
        if self._commits is None or self.volume.read_only:
            return
        try:
            self._stop(self._commits)
        except BaseException:
            self.server.thaw()
            raise
        self._stopped_by_freeze = True

    def _begin_writing(self) -> None:
        from loopfs.ext4.mount import remount

        with self.server.lock:
            self._commits, changed = remount(self.volume)
        for inode in changed:
            self.server.drop_pages(inode.nodeid)
        self.start()

    def _stop(self, commits: Commits) -> None:
        if self._flusher is not None:
            self._flusher.stop()
            self._flusher = None
        with self.server.lock:
            commits.end()
            self.volume.read_only = self._stopped = True
        if self.volume.protection is not None:
            self.volume.protection.end()

    def _go_on(self, commits: Commits) -> None:
        if self.volume.protection is not None:
            self.volume.protection.begin()
        try:
            with self.server.lock:
                commits.begin()
                self.volume.read_only = self._stopped = False
                for inode in [one for one in self.volume.orphans if not one.known]:
                    self.volume.end(inode)
        except OSError:
            if self.volume.protection is not None:
                self.volume.protection.end()
            raise
        self.start()

    def tune(self, superblock: bytes) -> bool:
        """Apply what a tool writes to the superblock of the device.

        Can be called by any thread.

        Returns:
            Whether the write is in the image; if not, it must be refused.
        Raises:
            OSError: an error of the device.
        """
        volume, device = self.volume, self.volume.device
        if volume.error or not tune.may_become(device.read(OFFSET, SIZE), superblock):
            return False
        with volume.super.lock:
            volume.super.take(superblock)
            volume.super_changed = not self._stopped
            device.write(OFFSET, volume.super.with_settable(device.read(OFFSET, SIZE)))
        if self._flusher is not None:
            self._flusher.wake()
        return True

    def destroy(self) -> None:
        if self._flusher is not None:
            self._flusher.stop()
        try:
            self._end()
        finally:
            if self.volume.protection is not None and not self._stopped:
                self.volume.protection.end()

    def _end(self) -> None:
        if self._commits is None or self.volume.error or self._stopped:
            return
        for inode in [] if self.volume.read_only else list(self.volume.orphans):
            self.volume.end(inode)  # if that fails it stays an orphan; all else is written
        self._commits.end()


def _found(node: Inode) -> tuple[Inode, int]:
    """Return a node and how long its name can be cached: not at all for a memory device."""
    return node, NAME_VALID if devices.name_of(node) is None else 0
