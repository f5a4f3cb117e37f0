"""A mounted filesystem (fs/ext4/super.c): its parts, its inodes, and what is freed.

One thread at a time uses it: the server's lock is held.
"""

from __future__ import annotations

import errno
import os
import random
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
_METADATA = 32  # blocks: more than one call needs beside the data
_SECOND = 1_000_000_000
_MOST_SAID = 10
_BEHAVIOURS = {2: "remount-ro", 3: "panic"}  # s_errors


class Volume:
    """A filesystem in use.

    Attributes:
        inodes: those in memory, by number.
        changed: those that the next commit stores.
        orphans: inodes without a name that the kernel still knows.
        protection: what others see that it is in use by; None: it has none.
        freed: runs of blocks that nobody may have before the commit that frees them.
        error: an errno, once something could not be written: nothing is changed any more.
        ends: an error was found, after which nothing is to be changed: once the call is answered.
        super_changed: by what is not a call: a tool, an error.
        synchronous, dirsync: the mount's options sync and dirsync.
        sync_due: what was changed is to be on the disk before the call is answered.

    Args:
        now: the time, in nanoseconds since the epoch.
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
        self._said = 0  # sentences of errors
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
        self.privileged = True  # whoever calls may use the last blocks

    @cached_property
    def groups(self) -> Groups:
        """The block groups, read when they are first needed: a journal is replayed before."""
        return Groups(self.super, self.blocks)

    # --- changing -------------------------------------------------------------------

    def change(self) -> None:
        """Something is going to be changed. Raises OSError EROFS."""
        if self.read_only or self.error:
            raise refused(errno.EROFS)

    def note(self, problem: OSError) -> None:
        """Of an error in the image the superblock is to tell (ext4_error)."""
        if self._said < _MOST_SAID:  # a program may come upon it again and again
            log_to_stderr(problem.strerror or "")
            self._said += 1
        if not isinstance(problem, (Damaged, BadChecksum)):
            return
        damage.record(self.super.raw, problem, self.now() // _SECOND)
        self.super_changed = True
        if (self.options.errors or _BEHAVIOURS.get(self.super.u16(60))) in ("remount-ro", "panic"):
            self.ends = True

    def touch(self, inode: Inode) -> None:
        """A call has changed ``inode``."""
        self.changed.add(inode)
        if (
            inode.flags & (FL_SYNC | FL_DIRSYNC)
            or self.synchronous
            or (self.dirsync and inode.is_dir)
        ):
            self.sync_due = True

    def may_use_reserve(self, uid: int, gid: int) -> bool:
        """ext4_has_free_clusters(): root, and whom the superblock names."""
        options = self.options
        resuid = self.super.u16(80) if options.resuid is None else options.resuid
        resgid = self.super.u16(82) if options.resgid is None else options.resgid
        return uid in (0, resuid) or (resgid != 0 and gid == resgid)

    # --- blocks -----------------------------------------------------------------------

    def reserve(self, count: int = 0) -> None:
        """Have so many blocks that can be given away, and what metadata may need, if there are.

        To be called before anything is changed: what was freed can only be given away after a
        commit, which must find no call half done. Raises OSError of the commit.
        """
        groups = self.groups
        if self.freed or groups.held:
            free = groups.free_blocks - groups.held - self._keep(metadata=False)
            if free < count + _METADATA:
                self.wait_for_blocks()

    def _keep(self, *, metadata: bool) -> int:
        """Blocks that must stay free."""
        if metadata:
            return 0
        return self.groups.keep + (0 if self.privileged else self.super.reserved_blocks)

    def allocate(self, goal: int, want: int, *, metadata: bool = False) -> tuple[int, int]:
        """Blocks in a row, at most ``want``. Raises OSError ENOSPC."""
        return self.groups.allocate(goal, want, self._keep(metadata=metadata))

    def release(self, place: int, count: int) -> None:
        """Blocks are used no more.

        They are given to nobody before the commit that frees them is on the disk: a crash would
        bring back their file.
        """
        self.freed.append((place, count))
        self.blocks.drop(place, count)

    def free_blocks(self) -> int:
        """Free, or freed."""
        freed = sum(count for _, count in self.freed)
        return int(self.groups.free_blocks + freed)

    @cached_property
    def overhead(self) -> int:
        """Blocks that no file can have (ext4_calculate_overhead)."""
        sb = self.super
        if sb.u32(584):
            return sb.u32(584)
        own = sb.groups * (2 + sb.itable_blocks) + sb.first_data_block
        own += sum(sb.copies(group) for group in range(sb.groups))
        if sb.compat & COMPAT_HAS_JOURNAL:
            own += self.get(JOURNAL_INO, special=True).size // sb.block_size
        return own

    def goal(self, inode: Inode, block: int) -> int:
        """Where block ``block`` of a file should be."""
        mapped = self.map(inode)
        at, _ = extents_status.find(mapped, block)
        if at and mapped:
            before = mapped[at - 1]
            return before[2] + block - before[0]
        group = self.groups.all[(inode.ino - 1) // self.super.inodes_per_group]
        return group.first + group.block_hint

    # --- maps --------------------------------------------------------------------------

    def map(self, inode: Inode) -> list[Extent]:
        """Where its blocks are. Raises OSError EUCLEAN, EBADMSG."""
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
        """Map ``run`` (place, count) at ``block``. Raises OSError ENOSPC; then it is released."""
        place, count = run
        mapped = self.map(inode)
        extents_status.insert(mapped, block, count, place, unwritten)
        inode.count(count * (self.super.block_size // 512))
        self._map_changed(inode)
        try:
            self._fit(inode)
        except OSError:
            for gone in extents_status.remove(mapped, block, block + count):
                self.release(*gone)
            inode.count(-(count * (self.super.block_size // 512)))
            raise

    def _fit(self, inode: Inode, spare: int = 0) -> None:
        if inode.has_extents:
            extents.fit_nodes(self, inode, spare)
        elif not spare:  # where less is mapped, no more indirect blocks are needed
            indirect.fit_nodes(self, inode)

    def _map_changed(self, inode: Inode) -> None:
        inode.map_changed = True
        self.changed.add(inode)

    def remove(self, inode: Inode, start: int, end: int) -> None:
        """Unmap and release the blocks from ``start`` up to ``end``.

        Raises:
            OSError: ENOSPC: an extent is to become two, and there is no room for that.
        """
        mapped = self.map(inode)
        _, extent = extents_status.find(mapped, start)
        if extent is not None and extent[0] < start and extent[0] + extent[1] > end:
            self._fit(inode, 1)
        gone = extents_status.remove(mapped, start, end)
        if not gone:
            return
        unit = self.super.block_size // 512
        for place, count in gone:
            inode.count(-count * unit)
            self.release(place, count)
        self._map_changed(inode)
        self._fit(inode)

    def written(self, inode: Inode, block: int, count: int) -> None:
        """Unwritten blocks have data now. Raises OSError ENOSPC."""
        mapped = self.map(inode)
        before = list(mapped)
        for place, length in extents_status.remove(mapped, block, block + count):
            extents_status.insert(mapped, block, length, place, False)
            block += length
        self._map_changed(inode)
        try:
            self._fit(inode)
        except OSError:
            inode.map = before
            raise

    def most_blocks(self, inode: Inode) -> int:
        """Of a file."""
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
        """An inode that a name is of.

        Args:
            special: one of the filesystem's own, or any.
            value: one that holds the value of an attribute, which has no name.
        Raises:
            OSError: EUCLEAN, also when it is free; EBADMSG.
        """
        found = self.inodes.get(ino)
        if found is not None:
            if not special and bool(found.flags & FL_EA_INODE) != value:
                raise Damaged(f"inode {ino} is of another kind", ino)
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
            raise Damaged(f"inode {ino} is free, and has a name", ino)
        self._check(inode)
        if not special and bool(inode.flags & FL_EA_INODE) != value:
            raise Damaged(f"inode {ino} is of another kind", ino)
        if inode.flags & FL_EA_INODE and (inode.file_acl or not inode.is_regular):
            raise Damaged(f"inode {ino} is no value of an attribute", ino)
        self.inodes[ino] = inode
        return inode

    def _check(self, inode: Inode) -> None:
        kind = inode.mode >> 12
        if kind not in (1, 2, 4, 6, 8, 10, 12) and inode.ino >= self.super.first_inode:
            raise Damaged(f"inode {inode.ino} has the mode {inode.mode:o}", inode.ino)
        if inode.file_acl:
            self.blocks.check(inode.file_acl)
        if inode.has_extents and not self.super.incompat & 0x40:
            raise Damaged(f"inode {inode.ino} has extents, the filesystem has not", inode.ino)
        if inode.has_inline_data and not self.super.incompat & 0x8000:
            raise Damaged(
                f"inode {inode.ino} has its data inline, the filesystem has not", inode.ino
            )
        if inode.is_dir and inode.size >> 40:
            raise Damaged(f"directory {inode.ino} has {inode.size} bytes", inode.ino)
        if inode.flags & FL_CASEFOLD and not self.super.incompat & INCOMPAT_CASEFOLD:
            raise Damaged(f"inode {inode.ino} ignores case, the filesystem does not", inode.ino)

    def make(self, parent: Inode, mode: int, uid: int, gid: int) -> Inode:
        """A new inode without a name. Raises OSError ENOSPC."""
        sb, now = self.super, self.now()
        directory = mode & 0xF000 == 0x4000
        ino = self.groups.new_inode(parent.ino, directory)
        inode = Inode(ino)
        inode.mode, inode.uid, inode.gid, inode.nlink = mode, uid, gid, 1
        inode.atime = inode.mtime = inode.ctime = now
        inode.generation = random.getrandbits(32)
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
        """Encode an inode, and what of it has changed."""
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
        """Its last name and its last user are gone.

        Raises:
            OSError: EUCLEAN, EBADMSG: the image is damaged there; some of it may be freed.
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
        """Free an inode, or, where that fails, leave it as one without a name to the next mount.

        What the call is about has been done by then.
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
        """The kernel does not know it any more."""
        if inode.nlink == 0 and not self.read_only:
            if not self.error:
                self.end(inode)
        elif inode not in self.changed:
            self.inodes.pop(inode.ino, None)


def now_of(volume: Volume, inode: Inode) -> int:
    """The time, as ``inode`` can hold it."""
    now = volume.now()
    return now if inode.extra else now - now % _SECOND


def log_to_stderr(sentence: str) -> None:
    """A sentence for the log of the engine."""
    os.write(2, f"ext4: {sentence}\n".encode())
