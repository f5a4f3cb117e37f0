"""Block groups: descriptors, bitmaps, and the search for free blocks and inodes.

Corresponds to fs/ext4/balloc.c, ialloc.c and mballoc.c. In memory a bitmap has one byte per bit, so
that bytes.find() can search for a run of free blocks.
"""

from __future__ import annotations

import errno
import struct

from loopfs.ext4.blocks import Blocks
from loopfs.ext4.crc import crc16, crc32c
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.ext4.super import INCOMPAT_EXTENTS, RO_COMPAT_GDT_CSUM, Super
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

INODE_UNINIT, BLOCK_UNINIT, INODE_ZEROED = 1, 2, 4
MAX_RUN = 32768  # blocks of an extent
_MOST_BITMAPS = 512  # groups with bitmaps in memory; each takes 40 KiB with blocks of 4 KiB
_LOW, _HIGH = struct.Struct("<IIIHHHHIHHHH"), struct.Struct("<IIIHHHHIHHI")
_TO_BYTES = bytes(i - 48 if i in (48, 49) else 0 for i in range(256))
_TO_TEXT = bytes(48 + (i & 1) for i in range(256))


def expand(bits: bytes | bytearray, count: int) -> bytearray:
    """Return the first ``count`` bits of a bitmap as bytes of 0 and 1."""
    for byte, flag in ((b"\0", b"\0"), (b"\xff", b"\1")):
        if bits == byte * len(bits):
            return bytearray(flag * count)
    text = format(int.from_bytes(bits, "little"), f"0{len(bits) * 8}b")[::-1][:count]
    return bytearray(text.encode().translate(_TO_BYTES))


def pack(flags: bytearray, size: int) -> bytearray:
    """Return the bitmap of ``size`` bytes for ``flags``; the bits beyond them are 1."""
    if flags.find(0) < 0:
        return bytearray(b"\xff" * size)
    if len(flags) == size * 8 and flags.find(1) < 0:
        return bytearray(size)
    text = bytes(flags).translate(_TO_TEXT)[::-1] or b"0"
    beyond = ((1 << size * 8) - 1) ^ ((1 << len(flags)) - 1)
    return bytearray((int(text, 2) | beyond).to_bytes(size, "little"))


class Group:
    """A block group, with its descriptor decoded.

    Attributes:
        block_map, inode_map: the bitmaps; None until they are needed.
        block_hint, inode_hint: no block or inode below this index is free.
        held: runs that are free on disk but not in ``block_map``: see :meth:`Groups.hold`.
        blocks_changed, inodes_changed: whether the bitmap, and therefore the descriptor, has
            changed since the last commit.
    """

    __slots__ = (
        *("block_bitmap", "block_hint", "block_map", "blocks_changed", "count", "dirs", "exclude"),
        *("first", "flags", "free_blocks", "free_inodes", "held", "high_rest", "inode_bitmap"),
        *("inode_hint", "inode_map", "inode_table", "inodes_changed", "number", "sums", "unused"),
    )

    def __init__(self, number: int, first: int, count: int) -> None:
        self.number = number
        self.first = first
        self.count = count
        self.block_map: bytearray | None = None
        self.inode_map: bytearray | None = None
        self.block_hint = self.inode_hint = 0
        self.blocks_changed = self.inodes_changed = False
        self.sums = [0, 0]
        self.held: list[tuple[int, int]] = []

    def take(self, raw: bytes) -> None:
        """Decode a descriptor of 32 or more bytes."""
        low = _LOW.unpack_from(raw)
        high = _HIGH.unpack_from(raw, 32) if len(raw) >= 64 else (0,) * 11
        self.block_bitmap, self.inode_bitmap, self.inode_table = (
            low[k] | high[k] << 32 for k in range(3)
        )
        self.free_blocks, self.free_inodes, self.dirs = (low[k] | high[k] << 16 for k in (3, 4, 5))
        self.flags = low[6]
        self.exclude = low[7]
        self.sums = [low[8] | high[8] << 16, low[9] | high[9] << 16]
        self.unused = low[10] | high[6] << 16
        self.high_rest = high[7]

    def pack_into(self, raw: bytearray, offset: int, size: int) -> None:
        """Encode the descriptor, without its checksum."""
        places = self.block_bitmap, self.inode_bitmap, self.inode_table
        counts = self.free_blocks, self.free_inodes, self.dirs
        low = (n & 0xFFFF for n in counts)
        sums = (n & 0xFFFF for n in self.sums)
        bare = (n & 0xFFFFFFFF for n in places)
        rest = self.exclude, *sums, self.unused & 0xFFFF, 0
        _LOW.pack_into(raw, offset, *bare, *low, self.flags, *rest)
        if size >= 64:
            upper = [n >> 32 for n in places] + [n >> 16 for n in (*counts, self.unused)]
            upper += [self.high_rest, *(n >> 16 for n in self.sums), 0]
            _HIGH.pack_into(raw, offset + 32, *upper)


class Groups:
    """All block groups.

    Attributes:
        free_blocks, free_inodes: totals of the filesystem.
        keep: the number of blocks that only metadata can use (ext4_calculate_resv_clusters).
        held: the number of blocks that are not available before the transactions that free them
            are on disk.
    """

    def __init__(self, sb: Super, blocks: Blocks) -> None:
        self._sb = sb
        self._blocks = blocks
        self.checksummed = sb.csum or bool(sb.ro_compat & RO_COMPAT_GDT_CSUM)
        # With block maps, metadata only grows when data blocks are allocated.
        self.keep = min(sb.blocks // 50, 4096) if sb.incompat & INCOMPAT_EXTENTS else 0
        self.held = 0
        self._changed: set[Group] = set()  # groups changed since the last commit
        self._loaded: set[Group] = set()  # groups with a bitmap in memory
        self.all = [self._read(number) for number in range(sb.groups)]
        self.free_blocks = sum(group.free_blocks for group in self.all)
        self.free_inodes = sum(group.free_inodes for group in self.all)

    # --- descriptors -------------------------------------------------------------

    def _place(self, number: int) -> tuple[int, int]:
        block, index = divmod(number, self._sb.block_size // self._sb.desc_size)
        return self._sb.descriptor_block(block), index * self._sb.desc_size

    def _sum(self, number: int, raw: bytes | bytearray) -> int:
        head = struct.pack("<I", number)
        bare = bytes(raw[:30])
        if self._sb.csum:
            return crc32c(crc32c(self._sb.seed, head), bare + b"\0\0" + bytes(raw[32:])) & 0xFFFF
        return crc16(crc16(crc16(0xFFFF, self._sb.uuid), head), bare + bytes(raw[32:]))

    def _read(self, number: int) -> Group:
        sb, blocks = self._sb, self._blocks
        block, offset = self._place(number)
        raw = bytes(blocks.get(block)[offset : offset + sb.desc_size])
        if self.checksummed and self._sum(number, raw) != raw[30] | raw[31] << 8:
            raise BadChecksum(f"the checksum of group {number} is wrong")
        first = sb.first_data_block + number * sb.blocks_per_group
        group = Group(number, first, min(sb.blocks_per_group, sb.blocks - first))
        group.take(raw)
        blocks.check(group.block_bitmap)
        blocks.check(group.inode_bitmap)
        blocks.check(group.inode_table, sb.itable_blocks)
        if max(group.free_inodes, group.unused, group.dirs) > sb.inodes_per_group:
            raise Damaged(f"the inode counts are wrong in group {number}")
        if group.free_blocks > group.count:
            raise Damaged(f"the count of free blocks is wrong in group {number}")
        return group

    def _bitmap(self, number: int, size: int, wanted: int) -> bytes:
        block = bytes(self._blocks.get(number))
        if self._sb.csum:
            mask = 0xFFFFFFFF if self._sb.desc_size >= 64 else 0xFFFF
            if crc32c(self._sb.seed, block[:size]) & mask != wanted & mask:
                raise BadChecksum(f"the checksum of the bitmap {number} is wrong", block=number)
        return block[:size]

    def block_map(self, group: Group) -> bytearray:
        """Return the block bitmap, read if necessary. Raises OSError EBADMSG, EUCLEAN."""
        if group.block_map is None:
            self._load(group)
            sb = self._sb
            if group.flags & BLOCK_UNINIT and self.checksummed:
                used = bytearray(group.count)
            else:
                raw = self._bitmap(group.block_bitmap, sb.blocks_per_group // 8, group.sums[0])
                used = expand(raw, group.count)
            if group.flags & BLOCK_UNINIT:
                copies = sb.copies(group.number)
                used[:copies] = b"\1" * copies
            for number, count in self._own(group):
                at = number - group.first
                if at >= 0 and at + count <= group.count:
                    if not group.flags & BLOCK_UNINIT and used.find(0, at, at + count) >= 0:
                        raise Damaged(f"the block bitmap of group {group.number} is wrong")
                    used[at : at + count] = b"\1" * count
            if used.count(0) != group.free_blocks:
                raise Damaged(f"the count of free blocks of group {group.number} is wrong")
            for at, count in group.held:
                used[at : at + count] = b"\1" * count
            group.block_map = used
        return group.block_map

    def _load(self, group: Group) -> None:
        """Register a group whose bitmap is being read; drop other bitmaps if there are too many."""
        if len(self._loaded) >= _MOST_BITMAPS:
            self.store()
            for other in self._loaded - {group}:
                other.block_map = other.inode_map = None
            self._loaded.clear()
        self._loaded.add(group)

    def _own(self, group: Group) -> tuple[tuple[int, int], ...]:
        table = group.inode_table, self._sb.itable_blocks
        return (group.block_bitmap, 1), (group.inode_bitmap, 1), table

    def inode_map(self, group: Group) -> bytearray:
        """Return the inode bitmap, read if necessary. Raises OSError EBADMSG, EUCLEAN."""
        if group.inode_map is None:
            self._load(group)
            count = self._sb.inodes_per_group
            if group.flags & INODE_UNINIT and self.checksummed:
                used = bytearray(count)
            else:
                used = expand(self._bitmap(group.inode_bitmap, count // 8, group.sums[1]), count)
            if group.number == 0:
                reserved = self._sb.first_inode - 1
                used[:reserved] = b"\1" * reserved
            if used.count(0) != group.free_inodes:
                raise Damaged(f"the count of free inodes of group {group.number} is wrong")
            group.inode_map = used
        return group.inode_map

    def is_used(self, ino: int) -> bool:
        """Return whether an inode is marked as used in its bitmap."""
        group, index = divmod(ino - 1, self._sb.inodes_per_group)
        return bool(self.inode_map(self.all[group])[index])

    # --- blocks ------------------------------------------------------------------

    def allocate(self, goal: int, want: int, keep: int) -> tuple[int, int]:
        """Allocate a run of at most ``want`` blocks, at ``goal`` if that block is free.

        Args:
            keep: the number of blocks that must stay free.
        Raises:
            OSError: ENOSPC; EUCLEAN, EBADMSG.
        """
        want = min(want, MAX_RUN, self.free_blocks - keep)
        if want <= 0:
            raise refused(errno.ENOSPC)
        groups = self.all
        home = min(
            max(goal - self._sb.first_data_block, 0) // self._sb.blocks_per_group, len(groups) - 1
        )
        at = goal - groups[home].first
        for whole in (True, False):  # first a group with a run of that length, then any block
            for step in range(len(groups)):
                group = groups[(home + step) % len(groups)]
                if group.free_blocks < (want if whole else 1):
                    continue
                used = self.block_map(group)
                if step == 0 and whole and 0 <= at < len(used) and not used[at]:
                    return self._take(group, at, want)
                start = self._search(group, used, want if whole else 1, home == group.number and at)
                if start >= 0:
                    return self._take(group, start, want)
        raise refused(errno.ENOSPC)

    @staticmethod
    def _search(group: Group, used: bytearray, want: int, after: int) -> int:
        zeros = bytes(want)
        if after > 0 and (start := used.find(zeros, after)) >= 0:
            return start
        if want == 1:
            start = used.find(0, group.block_hint)
            group.block_hint = max(start, 0)
            return start
        return used.find(zeros, group.block_hint)

    def _take(self, group: Group, start: int, want: int) -> tuple[int, int]:
        used = self.block_map(group)
        end = used.find(1, start, start + want)
        count = (end if end >= 0 else min(start + want, len(used))) - start
        used[start : start + count] = b"\1" * count
        group.free_blocks -= count
        self.free_blocks -= count
        group.flags &= ~BLOCK_UNINIT
        group.blocks_changed = True
        self._changed.add(group)
        return group.first + start, count

    def hold(self, number: int, count: int) -> None:
        """Free blocks on disk with the next commit, without making them available yet.

        Raises:
            OSError: EUCLEAN: some of the blocks are free already.
        """
        for group, at, part in self._parts(number, count):
            used = self.block_map(group)
            if used.find(0, at, at + part) >= 0:
                raise Damaged(f"block {number} is free already", block=number)
            group.held.append((at, part))
            group.free_blocks += part
            group.blocks_changed = True
            self._changed.add(group)
        self.free_blocks += count
        self.held += count

    def let_go(self, number: int, count: int) -> None:
        """Make blocks available that :meth:`hold` has freed."""
        for group, at, part in self._parts(number, count):
            group.held.remove((at, part))
            if group.block_map is not None:
                group.block_map[at : at + part] = bytes(part)
            group.block_hint = min(group.block_hint, at)
        self.held -= count

    def _parts(self, number: int, count: int) -> Iterator[tuple[Group, int, int]]:
        sb = self._sb
        while count:
            group = self.all[(number - sb.first_data_block) // sb.blocks_per_group]
            at = number - group.first
            part = min(count, group.count - at)
            yield group, at, part
            number, count = number + part, count - part

    # --- inodes ------------------------------------------------------------------

    def new_inode(self, parent: int, directory: bool) -> int:
        """Allocate an inode near its directory; return its number. Raises OSError ENOSPC."""
        per_group = self._sb.inodes_per_group
        home = (parent - 1) // per_group
        # A directory goes where there is space for the files that will be in it, if possible.
        for part in (4, None) if directory else (None,):
            for group in self._from(home):
                if not group.free_inodes:
                    continue
                if part is not None and group.free_blocks <= group.count >> part:
                    continue
                index = self.inode_map(group).find(0, group.inode_hint)
                if index >= 0:
                    self._use_inode(group, index, directory)
                    return group.number * per_group + index + 1
        raise refused(errno.ENOSPC)

    def _from(self, number: int) -> Iterator[Group]:
        """Yield all groups, beginning with ``number`` and wrapping around."""
        groups = self.all
        return (groups[n] for part in (range(number, len(groups)), range(number)) for n in part)

    def _use_inode(self, group: Group, index: int, directory: bool) -> None:
        if group.flags & BLOCK_UNINIT:  # once a group is in use, both bitmaps are on disk
            self.block_map(group)
            group.blocks_changed = True
        group.flags &= ~(INODE_UNINIT | BLOCK_UNINIT)
        self.inode_map(group)[index] = 1
        group.inode_hint = index + 1
        group.free_inodes -= 1
        self.free_inodes -= 1
        group.dirs += directory
        if self.checksummed:
            group.unused = min(group.unused, self._sb.inodes_per_group - index - 1)
        group.inodes_changed = True
        self._changed.add(group)

    def free_inode(self, ino: int, directory: bool) -> None:
        """Free an inode. Raises OSError EUCLEAN: it is free already."""
        number, index = divmod(ino - 1, self._sb.inodes_per_group)
        group = self.all[number]
        used = self.inode_map(group)
        if not used[index]:
            raise Damaged(f"inode {ino} is free already", ino)
        used[index] = 0
        group.inode_hint = min(group.inode_hint, index)
        group.free_inodes += 1
        self.free_inodes += 1
        group.dirs -= directory and group.dirs > 0
        group.inodes_changed = True
        self._changed.add(group)

    # --- the commit ----------------------------------------------------------------

    def store(self) -> None:
        """Encode the changed bitmaps and descriptors."""
        sb, blocks = self._sb, self._blocks
        for group in sorted(self._changed, key=lambda group: group.number):
            if group.blocks_changed and group.block_map is not None:
                free = group.block_map
                if group.held:
                    free = bytearray(free)
                    for at, count in group.held:
                        free[at : at + count] = bytes(count)
                block = pack(free, sb.block_size)
                group.sums[0] = crc32c(sb.seed, block[: sb.blocks_per_group // 8]) if sb.csum else 0
                blocks.put(group.block_bitmap, block)
            if group.inodes_changed and group.inode_map is not None:
                block = pack(group.inode_map, sb.block_size)
                size = sb.inodes_per_group // 8
                group.sums[1] = crc32c(sb.seed, block[:size]) if sb.csum else 0
                blocks.put(group.inode_bitmap, block)
            group.blocks_changed = group.inodes_changed = False
            number, offset = self._place(group.number)
            raw = blocks.get(number)
            group.pack_into(raw, offset, sb.desc_size)
            if self.checksummed:
                value = self._sum(group.number, raw[offset : offset + sb.desc_size])
                struct.pack_into("<H", raw, offset + 30, value)
            blocks.dirty.add(number)
        self._changed.clear()
