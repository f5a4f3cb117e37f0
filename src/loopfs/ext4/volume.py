"""A mounted filesystem (fs/ext4/super.c): its parts, its inodes, and freed blocks.

It must only be used with the server's lock held.
"""

from __future__ import annotations

import errno
import os
import time
from functools import cached_property

from loopfs.ext4 import damage, extents, extents_status, indirect
from loopfs.ext4.blocks import Blocks
from loopfs.ext4.device import Device
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.ext4.groups import Groups
from loopfs.ext4.inode import (
    FL_CASEFOLD,
    FL_DIRSYNC,
    FL_EA_INODE,
    FL_SYNC,
    JOURNAL_INO,
    Extent,
    Inode,
)
from loopfs.ext4.options import Options
from loopfs.ext4.super import (
    COMPAT_HAS_JOURNAL,
    INCOMPAT_CASEFOLD,
    RO_COMPAT_HUGE_FILE,
    Super,
)
from loopfs.lean import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from loopfs.ext4.mmp import MultipleMountProtection

LINK_MAX = 65000
_METADATA = 32  # blocks: more than one call needs besides the data
_SECOND = 1_000_000_000
_MOST_SAID = 10
_BEHAVIOURS = {2: "remount-ro", 3: "panic"}  # s_errors


class Volume:
    """A mounted filesystem.

    Attributes:
        inodes: the inodes in memory, by number.
        changed: the inodes that the next commit stores.
        orphans: inodes without a name that the kernel still refers to.
        protection: the multiple mount protection; None if it has none.
        freed: runs of blocks that cannot be reused before the transaction that frees them is on
            disk.
        error: the errno of a failed write; 0: none. Afterwards nothing can be changed.
        ends: an error was found after which the filesystem becomes read-only (errors=), once the
            current call is answered.
        super_changed: the superblock was changed by something other than a call: a tool or an
            error.
        synchronous, dirsync: the mount options sync and dirsync.
        sync_due: the changes must be on disk before the current call is answered.

    Args:
        now: returns the time, in nanoseconds since the epoch.
    """

    def __init__(
        self,
        device: Device,
        sb: Super,
        options: Options,
        *,
        read_only: bool,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self.device = device
        self.super = sb
        self.options = options
        self.read_only = read_only
        self.now = now
        self.error = 0
        self.ends = False
        self._said = 0  # the number of errors logged
        self.blocks = Blocks(device, sb)
        self.blocks.read_only = read_only
        self.inodes: dict[int, Inode] = {}
        self.changed: set[Inode] = set()
        self.orphans: set[Inode] = set()
        self.orphans_changed = False
        self.super_changed = False
        self.synchronous = self.dirsync = self.sync_due = False
        self.freed: list[tuple[int, int]] = []
        self.protection: MultipleMountProtection | None = None
        self.wait_for_blocks: Callable[[], None] = lambda: None
        self.privileged = True  # whether the current caller can use the reserved blocks

    @cached_property
    def groups(self) -> Groups:
        """The block groups. They are read on first use, which is after the replay of a journal."""
        return Groups(self.super, self.blocks)

    def read_again(self, sb: Super) -> list[Inode]:
        """Read what the device has now. Nothing may be changed in memory.

        Args:
            sb: the superblock that it has now.
        Returns:
            the inodes in use that have changed.
        Raises:
            OSError: EBUSY: it is another filesystem, or an inode that the kernel uses is that of
                another file or free; EUCLEAN, EBADMSG.
        """
        if sb.geometry != self.super.geometry:
            raise OSError(errno.EBUSY, "another filesystem is on the device now; unmount it")
        fresh = Volume(self.device, sb, self.options, read_only=True, now=self.now)
        used = [inode for inode in self.inodes.values() if inode.known]
        for inode in used:
            found = fresh.get(inode.ino, special=True)
            if not found.nlink or not found.is_same_file(inode):
                raise OSError(errno.EBUSY, f"inode {inode.ino} has another file now; unmount it")
        changed = [inode for inode in used if inode.replace(fresh.inodes[inode.ino])]
        self.super, self.blocks = sb, fresh.blocks
        self.inodes = {inode.ino: inode for inode in used}
        for name in ("groups", "overhead"):
            self.__dict__.pop(name, None)
        return changed

    # --- changing -------------------------------------------------------------------

    def change(self) -> None:
        """Check that the filesystem can be changed. Raises OSError EROFS."""
        if self.read_only or self.error:
            raise refused(errno.EROFS)

    def note(self, problem: OSError) -> None:
        """Log an error, and record one found in the image in the superblock (ext4_error)."""
        if self._said < _MOST_SAID:  # the same error may be found again and again
            log_to_stderr(problem.strerror or "")
            self._said += 1
        if not isinstance(problem, (Damaged, BadChecksum)):
            return
        damage.record(self.super.raw, problem, self.now() // _SECOND)
        self.super_changed = True
        if (self.options.errors or _BEHAVIOURS.get(self.super.u16(60))) in ("remount-ro", "panic"):
            self.ends = True

    def touch(self, inode: Inode) -> None:
        """Mark an inode as changed by the current call."""
        self.changed.add(inode)
        if (
            inode.flags & (FL_SYNC | FL_DIRSYNC)
            or self.synchronous
            or (self.dirsync and inode.is_dir)
        ):
            self.sync_due = True

    def may_use_reserve(self, uid: int, gid: int) -> bool:
        """Return whether a user can use the reserved blocks (ext4_has_free_clusters())."""
        options = self.options
        resuid = self.super.u16(80) if options.resuid is None else options.resuid
        resgid = self.super.u16(82) if options.resgid is None else options.resgid
        return uid in (0, resuid) or (resgid != 0 and gid == resgid)

    # --- blocks -----------------------------------------------------------------------

    def reserve(self, count: int = 0) -> None:
        """Commit freed blocks if fewer than ``count``, plus some for metadata, are available.

        To be called before anything is changed: freed blocks only become available by a commit, and
        a commit must not store half of a call. Raises OSError as the commit does.
        """
        groups = self.groups
        if self.freed or groups.held:
            free = groups.free_blocks - groups.held - self._keep(metadata=False)
            if free < count + _METADATA:
                self.wait_for_blocks()

    def _keep(self, *, metadata: bool) -> int:
        """Return the number of blocks that must stay free."""
        if metadata:
            return 0
        return self.groups.keep + (0 if self.privileged else self.super.reserved_blocks)

    def allocate(self, goal: int, want: int, *, metadata: bool = False) -> tuple[int, int]:
        """Allocate a run of at most ``want`` blocks: (first, count). Raises OSError ENOSPC."""
        return self.groups.allocate(goal, want, self._keep(metadata=metadata))

    def release(self, place: int, count: int) -> None:
        """Free a run of blocks.

        They are not reused before the transaction that frees them is on disk: after a crash before
        that, the file that owned them exists again.
        """
        self.freed.append((place, count))
        self.blocks.drop(place, count)

    def free_blocks(self) -> int:
        """Return how many blocks are free, including those that the next commit frees."""
        freed = sum(count for _, count in self.freed)
        return int(self.groups.free_blocks + freed)

    @cached_property
    def overhead(self) -> int:
        """The number of blocks that no file can have (ext4_calculate_overhead)."""
        sb = self.super
        if sb.u32(584):
            return sb.u32(584)
        own = sb.groups * (2 + sb.itable_blocks) + sb.first_data_block
        own += sum(sb.copies(group) for group in range(sb.groups))
        if sb.compat & COMPAT_HAS_JOURNAL:
            own += self.get(JOURNAL_INO, special=True).size // sb.block_size
        return own

    def goal(self, inode: Inode, block: int) -> int:
        """Return the preferred location of block ``block`` of a file."""
        mapped = self.map(inode)
        at, _ = extents_status.find(mapped, block)
        if at and mapped:
            before = mapped[at - 1]
            return before[2] + block - before[0]
        group = self.groups.all[(inode.ino - 1) // self.super.inodes_per_group]
        return group.first + group.block_hint

    # --- maps --------------------------------------------------------------------------

    def map(self, inode: Inode) -> list[Extent]:
        """Return the extents of an inode, read if necessary. Raises OSError EUCLEAN, EBADMSG."""
        if inode.map is None:
            if inode.has_extents:
                extents.load(self, inode)
            elif (inode.is_regular or inode.is_dir or inode.is_link) and not (
                inode.is_fast_link or inode.has_inline_data
            ):
                indirect.load(self, inode)
            else:
                inode.map = []
            assert inode.map is not None
        return inode.map

    def insert(self, inode: Inode, block: int, run: tuple[int, int], unwritten: bool) -> None:
        """Map ``run`` (first, count) at ``block``. Raises OSError ENOSPC after releasing it."""
        place, count = run
        mapped = self.map(inode)
        extents_status.insert(mapped, block, count, place, unwritten)
        inode.count(count * (self.super.block_size // 512))
        self.map_changed(inode)
        try:
            if inode.has_extents:
                extents.fit_nodes(self, inode)
            else:
                indirect.add_nodes(self, inode, block, block + count)
        except OSError:
            for gone in extents_status.remove(mapped, block, block + count):
                self.release(*gone)
            inode.count(-(count * (self.super.block_size // 512)))
            raise

    def map_changed(self, inode: Inode) -> None:
        """Have the map written by the next commit."""
        inode.map_changed = True
        self.changed.add(inode)

    def remove(self, inode: Inode, start: int, end: int) -> None:
        """Unmap and release the blocks from ``start`` up to ``end``.

        Raises:
            OSError: ENOSPC: an extent must be split, and there is no space for another node.
        """
        mapped = self.map(inode)
        _, extent = extents_status.find(mapped, start)
        splits = extent is not None and extent[0] < start and extent[0] + extent[1] > end
        if splits and inode.has_extents:
            extents.fit_nodes(self, inode, 1)
        gone = extents_status.remove(mapped, start, end)
        if not gone:
            return
        unit = self.super.block_size // 512
        for place, count in gone:
            inode.count(-count * unit)
            self.release(place, count)
        self.map_changed(inode)
        if inode.has_extents:
            extents.fit_nodes(self, inode)
        else:
            indirect.drop_nodes(self, inode)

    def written(self, inode: Inode, block: int, count: int) -> None:
        """Mark unwritten blocks as written. Raises OSError ENOSPC."""
        mapped = self.map(inode)
        before = list(mapped)
        for place, length in extents_status.remove(mapped, block, block + count):
            extents_status.insert(mapped, block, length, place, False)
            block += length
        self.map_changed(inode)
        try:
            extents.fit_nodes(self, inode)  # a block map has no unwritten blocks
        except OSError:
            inode.map = before
            raise

    def most_blocks(self, inode: Inode) -> int:
        """Return the largest possible size of a file, in blocks."""
        size, huge = self.super.block_size, bool(self.super.ro_compat & RO_COMPAT_HUGE_FILE)
        most = extents.MAX_BLOCK if huge else min(extents.MAX_BLOCK, 0xFFFFFFFF // (size // 512))
        if inode.has_extents or inode.has_inline_data:
            return most
        return min(indirect.most_blocks(size, huge=huge), most)

    # --- inodes ------------------------------------------------------------------------

    def _place(self, ino: int) -> tuple[int, int]:
        group, index = divmod(ino - 1, self.super.inodes_per_group)
        block, offset = divmod(index * self.super.inode_size, self.super.block_size)
        return self.groups.all[group].inode_table + block, offset

    def get(self, ino: int, *, special: bool = False, value: bool = False) -> Inode:
        """Return an inode that a directory entry refers to, read if necessary.

        Args:
            special: it may be a reserved inode, or one without a name.
            value: it holds an extended attribute value, and has no directory entry.
        Raises:
            OSError: EUCLEAN, also if the inode is free; EBADMSG.
        """
        found = self.inodes.get(ino)
        if found is not None:
            if not special and bool(found.flags & FL_EA_INODE) != value:
                raise Damaged(f"inode {ino} is of the wrong kind", ino)
            return found
        sb = self.super
        if not 1 <= ino <= sb.inodes or (not special and ino != 2 and ino < sb.first_inode):
            raise Damaged(f"there is no inode {ino}", ino)
        number, offset = self._place(ino)
        raw = bytes(self.blocks.get(number)[offset : offset + sb.inode_size])
        inode = Inode(ino)
        inode.take(raw, sb.block_size)
        if sb.csum:
            inode.compute_seed(sb.seed)
            inode.check_sum(raw)
        if not inode.nlink and not special:
            raise Damaged(f"inode {ino} is free, but has a directory entry", ino)
        self._check(inode)
        if not special and bool(inode.flags & FL_EA_INODE) != value:
            raise Damaged(f"inode {ino} is of the wrong kind", ino)
        if inode.flags & FL_EA_INODE and (inode.file_acl or not inode.is_regular):
            raise Damaged(f"inode {ino} cannot be an attribute value", ino)
        self.inodes[ino] = inode
        return inode

    def _check(self, inode: Inode) -> None:
        kind = inode.mode >> 12
        if kind not in (1, 2, 4, 6, 8, 10, 12) and inode.ino >= self.super.first_inode:
            raise Damaged(f"inode {inode.ino} has the invalid mode {inode.mode:o}", inode.ino)
        if inode.file_acl:
            self.blocks.check(inode.file_acl)
        if inode.has_extents and not self.super.incompat & 0x40:
            raise Damaged(f"inode {inode.ino} has extents without the feature", inode.ino)
        if inode.has_inline_data and not self.super.incompat & 0x8000:
            raise Damaged(f"inode {inode.ino} has inline data without the feature", inode.ino)
        if inode.is_dir and inode.size >> 40:
            raise Damaged(f"directory {inode.ino} has {inode.size} bytes", inode.ino)
        if inode.flags & FL_CASEFOLD and not self.super.incompat & INCOMPAT_CASEFOLD:
            raise Damaged(f"inode {inode.ino} is casefolded without the feature", inode.ino)

    def make(self, parent: Inode, mode: int, uid: int, gid: int) -> Inode:
        """Make an inode without a directory entry. Raises OSError ENOSPC."""
        sb, now = self.super, self.now()
        directory = mode & 0xF000 == 0x4000
        ino = self.groups.new_inode(parent.ino, directory)
        inode = Inode(ino)
        inode.mode, inode.uid, inode.gid, inode.nlink = mode, uid, gid, 1
        inode.atime = inode.mtime = inode.ctime = now
        inode.generation = int.from_bytes(os.urandom(4))
        inode.extra = bytearray(sb.inode_size - 128)
        inode.set_crtime(now, sb.u16(350) or 32)
        if not inode.extra:
            inode.atime = inode.mtime = inode.ctime = now - now % _SECOND
        inode.map, inode.xattrs = [], {}
        if sb.csum:
            inode.compute_seed(sb.seed)
        self.inodes[ino] = inode
        self.touch(inode)
        return inode

    def store(self, inode: Inode) -> None:
        """Encode an inode, its map and its extended attributes, as far as they have changed."""
        if inode.map_changed:
            inode.map_changed = False
            if inode.has_extents:
                extents.store(self, inode)
            elif not inode.has_inline_data:
                indirect.store(self, inode)
        if inode.xattrs_changed:
            from loopfs.ext4 import xattr

            xattr.store(self, inode)
        sb = self.super
        number, offset = self._place(inode.ino)
        raw = self.blocks.get(number)
        inode.pack_into(raw, offset, sb.inode_size, sb.csum, sb.block_size)
        self.blocks.dirty.add(number)

    def free(self, inode: Inode) -> None:
        """Free an inode that has no name and is not in use.

        Raises:
            OSError: EUCLEAN, EBADMSG: the image is damaged; a part of it may have been freed.
        """
        from loopfs.ext4 import xattr

        xattr.release(self, inode)
        if not inode.is_fast_link and not inode.has_inline_data:
            self.remove(inode, 0, extents.MAX_BLOCK + 1)
        for number in (*inode.nodes, *(inode.indirect or {}).values()):
            self.release(number, 1)
        inode.nodes, inode.indirect, inode.map = (), None, None
        inode.map_changed = inode.xattrs_changed = False
        inode.size = inode.sectors = 0
        inode.block = bytes(60)
        if inode.has_extents:
            inode.block = extents.EMPTY
        if inode in self.orphans:
            self.orphans.discard(inode)
            self.orphans_changed = True
        inode.nlink = 0
        inode.dtime = self.now() // _SECOND & 0xFFFFFFFF
        self.groups.free_inode(inode.ino, inode.is_dir)
        self.store(inode)
        self.changed.discard(inode)
        self.inodes.pop(inode.ino, None)

    def end(self, inode: Inode) -> None:
        """Free an inode; if that fails, leave it to the next mount as an orphan.

        The failure is not reported to the caller, whose operation itself has succeeded.
        """
        inode.nlink = 0
        try:
            self.free(inode)
        except OSError as problem:
            self.note(problem)
            self.orphans.add(inode)
            self.orphans_changed = True
            self.touch(inode)

    def forget(self, inode: Inode) -> None:
        """Account for the kernel's last reference to an inode being dropped (FUSE_FORGET)."""
        if inode.nlink == 0 and not self.read_only:
            if not self.error:
                self.end(inode)
        elif inode not in self.changed:
            self.inodes.pop(inode.ino, None)


def now_of(volume: Volume, inode: Inode) -> int:
    """Return the time, rounded to what ``inode`` can store."""
    now = volume.now()
    return now if inode.extra else now - now % _SECOND


def log_to_stderr(sentence: str) -> None:
    """Write a sentence to the engine's log."""
    os.write(2, f"ext4: {sentence}\n".encode())
