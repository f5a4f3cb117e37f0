"""The hash index of a directory (fs/ext4/namei.c, dx_*): insertion and splitting.

Block 0 is the root, which begins with "." and ".."; nodes look like an unused entry. Lookups use
the names in memory; the index is maintained for the kernel, and determines where a new name goes.
"""

from __future__ import annotations

import errno
import struct
from bisect import bisect_right
from itertools import pairwise

from loopfs.ext4 import dir as directories
from loopfs.ext4.crc import crc32c
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.ext4.hash import TEA, dirhash
from loopfs.ext4.inode import FL_INDEX, Inode
from loopfs.ext4.super import INCOMPAT_LARGEDIR
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.ext4.dir import Directory
    from loopfs.ext4.volume import Volume

_ROOT_ENTRIES, _NODE_ENTRIES = 32, 8  # offset of the index entries, in bytes
_INFO = struct.Struct("<IBBBB")  # struct dx_root_info, at 24
_COUNT = struct.Struct("<HH")  # limit and count, in place of the first entry's hash
_ENTRY = struct.Struct("<II")


Rows = tuple[list[int], list[int]]  # an index block: its hashes, and the blocks they lead to


class Frame(NamedTuple):
    """An index block on the path to a leaf.

    Attributes:
        number: the index of the block in the directory.
        at: the position of the entry that leads to the next block.
    """

    number: int
    at: int


def is_node(block: bytearray, number: int, size: int) -> bool:
    """Return whether block ``number`` of an indexed directory is part of the index."""
    ino, record = struct.unpack_from("<IH", block)
    return number == 0 or (ino == 0 and record in (size, 0, 65535))


def _head(number: int) -> int:
    return _NODE_ENTRIES if number else _ROOT_ENTRIES


def _most(volume: Volume, number: int) -> int:
    room = (volume.super.block_size - _head(number)) // 8
    return room - 1 if volume.super.csum else room


def _sum(seed: int, block: bytearray, head: int) -> tuple[int, int]:
    """Return the checksum of an index block, and its offset."""
    most, count = _COUNT.unpack_from(block, head)
    tail = head + most * 8
    if tail + 8 > len(block) or count > most:
        raise Damaged("a block of a directory's index")
    value = crc32c(seed, block[: head + count * 8])
    return crc32c(value, bytes(block[tail : tail + 4]) + bytes(4)), tail + 4


def check_sum(volume: Volume, inode: Inode, block: bytearray, number: int) -> None:
    """Check the checksum of an index block. Raises OSError EBADMSG, EUCLEAN."""
    if not volume.super.csum:
        return
    value, place = _sum(inode.seed, block, _head(number))
    if struct.unpack_from("<I", block, place)[0] != value:
        raise BadChecksum(f"the checksum of the index of directory {inode.ino} is wrong", inode.ino)


def dirty(volume: Volume, inode: Inode, place: int) -> None:
    """Mark the index block ``place`` (its number on disk) as changed."""
    block = volume.blocks.get(place)
    if volume.super.csum:
        value, at = _sum(inode.seed, block, _head(0 if _is_root(block) else 1))
        struct.pack_into("<I", block, at, value)
    volume.blocks.dirty.add(place)
    volume.blocks.directories.pop(place, None)


def _is_root(block: bytearray) -> bool:
    return block[:4] != bytes(4)


class _Index:
    """The index of a directory, for an insertion."""

    def __init__(self, volume: Volume, inode: Inode) -> None:
        self.volume, self.inode = volume, inode
        self.found: Directory = directories.load(volume, inode)
        info = _INFO.unpack_from(self.block(0), 24)
        _, self.version, length, self.levels, flags = info
        most = 3 if volume.super.incompat & INCOMPAT_LARGEDIR else 2
        if length != 8 or flags & 1 or self.version > TEA or self.levels >= most:
            raise Damaged(f"the index is invalid in directory {inode.ino}", inode.ino)
        self.most_levels = most

    def block(self, number: int) -> bytearray:
        if not 0 <= number < len(self.found.blocks):
            raise Damaged(f"the index is invalid in directory {self.inode.ino}", self.inode.ino)
        return self.volume.blocks.get(self.found.blocks[number])

    def hash(self, name: bytes) -> int:
        hashes = self.found.hashes
        value = hashes.get(name)
        if value is None:
            sb = self.volume.super
            value = hashes[name] = dirhash(name, self.version, sb.hash_seed, sb.hash_unsigned)
        return value

    def entries(self, number: int) -> Rows:
        """Return the entries of an index block; the first hash is taken as 0."""
        rows = self.found.index.get(number)
        if rows is None:
            rows = self.found.index[number] = self._load(number)
        return rows

    def _load(self, number: int) -> Rows:
        block, head = self.block(number), _head(number)
        most, count = _COUNT.unpack_from(block, head)
        if not 1 <= count <= most or most != _most(self.volume, number):
            raise Damaged(f"the index is invalid in directory {self.inode.ino}", self.inode.ino)
        pairs = list(_ENTRY.iter_unpack(block[head : head + count * 8]))
        hashes = [0, *(value for value, _ in pairs[1:])]
        if any(a > b for a, b in pairwise(hashes)):
            raise Damaged(f"the index of directory {self.inode.ino} is not sorted", self.inode.ino)
        return hashes, [child & 0x0FFFFFFF for _, child in pairs]

    def store(self, number: int, rows: Rows) -> None:
        block, head = self.block(number), _head(number)
        body = b"".join(map(_ENTRY.pack, *rows))
        block[head : head + len(body)] = body
        _COUNT.pack_into(block, head, _most(self.volume, number), len(rows[0]))
        self.found.index[number] = rows
        dirty(self.volume, self.inode, self.found.blocks[number])

    def walk(self, value: int) -> tuple[list[Frame], int]:
        """Return the path to the leaf of a hash, and the leaf."""
        frames: list[Frame] = []
        number = 0
        for _ in range(self.levels + 1):
            if any(frame.number == number for frame in frames):
                raise Damaged(
                    f"the index of directory {self.inode.ino} contains a loop", self.inode.ino
                )
            hashes, children = self.entries(number)
            at = bisect_right(hashes, value) - 1
            frames.append(Frame(number, at))
            number = children[at]
        inner = is_node(self.block(number), number, self.volume.super.block_size)
        if number == 0 or (inner and self.volume.super.csum):
            raise Damaged(
                f"the index of directory {self.inode.ino} refers to no leaf", self.inode.ino
            )
        return frames, number

    def new_node(self) -> int:
        """Append a block for the index, and return its number. Raises OSError ENOSPC."""
        number, block = directories.new_block(self.volume, self.inode, self.found)
        size = self.volume.super.block_size
        block[:] = bytes(size)
        struct.pack_into("<IH", block, 0, 0, directories.disk_length(size))
        self.volume.blocks.directories.pop(self.found.blocks[number], None)
        del self.found.last[number]
        return number

    def split_leaf(self, frames: list[Frame], number: int, value: int) -> int:
        """Move half of a leaf to a new one; return the leaf that ``value`` belongs to."""
        names, size = self.found.names, self.volume.super.block_size
        rows = []
        for name, (_, _, place) in _in_block(self.volume, self.found, number):
            rows.append((self.hash(name), place, name))
        rows.sort()
        if len(rows) < 2:
            raise Damaged(f"a leaf is invalid in directory {self.inode.ino}", self.inode.ino)
        cut = _middle([8 + len(name) + 3 & ~3 for _, _, name in rows])
        first = rows[cut][0]
        continued = first == rows[cut - 1][0]
        other, _ = directories.new_block(self.volume, self.inode, self.found)
        halves = ((number, rows[:cut]), (other, rows[cut:]))
        contents = [(n, [(name, *names[name][:2]) for _, _, name in half]) for n, half in halves]
        for leaf, entries in contents:
            _fill(self.volume, self.inode, self.found, leaf, entries, size)
        self.insert(frames, first + continued, other)
        return other if value >= first else number

    def insert(self, frames: list[Frame], value: int, child: int) -> None:
        """Insert an entry after that of the last frame, whose block must have space for it."""
        last = frames[-1]
        hashes, children = self.entries(last.number)
        hashes.insert(last.at + 1, value)
        children.insert(last.at + 1, child)
        self.store(last.number, (hashes, children))

    def make_room(self, frames: list[Frame]) -> bool:
        """Make space for an entry in the last frame.

        Returns:
            Whether the index has changed, so that the path must be looked up again.
        Raises:
            OSError: ENOSPC: the index is full.
        """
        full = [self.is_full(frame.number) for frame in frames]
        if not full[-1]:
            return False
        depth = len(frames) - 1
        while depth > 0 and full[depth - 1]:
            depth -= 1
        if depth == 0:
            self.grow()
            return True
        hashes, children = self.entries(frames[depth].number)
        cut = len(hashes) // 2
        other = self.new_node()
        self.store(other, ([0, *hashes[cut + 1 :]], children[cut:]))
        self.store(frames[depth].number, (hashes[:cut], children[:cut]))
        self.insert(frames[:depth], hashes[cut], other)
        return True

    def is_full(self, number: int) -> bool:
        return len(self.entries(number)[0]) >= _most(self.volume, number)

    def grow(self) -> None:
        """Add a level: move the entries of the root to a new node."""
        if self.levels + 1 >= self.most_levels:
            raise refused(errno.ENOSPC)
        rows = self.entries(0)
        other = self.new_node()
        self.store(other, rows)
        self.levels += 1
        self.block(0)[30] = self.levels
        self.store(0, ([0], [other]))


def _middle(sizes: list[int]) -> int:
    """Return where to cut a list so that both halves have similar sizes and neither is empty."""
    half, total = sum(sizes) // 2, 0
    for at, size in enumerate(sizes):
        total += size
        if total > half:
            return max(1, min(at, len(sizes) - 1)) if at else 1
    return len(sizes) - 1


def _in_block(
    volume: Volume, found: Directory, number: int
) -> list[tuple[bytes, tuple[int, int, int]]]:
    block, size = volume.blocks.get(found.blocks[number]), volume.super.block_size
    at, names = 0, []
    while at < directories.limit(volume):
        ino, raw, length, _ = directories.ENTRY.unpack_from(block, at)
        if ino:
            name = bytes(block[at + 8 : at + 8 + length])
            if name in found.names:
                names.append((name, found.names[name]))
        at += directories.record_length(raw, size)
    return names


def _fill(
    volume: Volume,
    inode: Inode,
    found: Directory,
    number: int,
    entries: list[tuple[bytes, int, int]],
    size: int,
) -> None:
    """Write a leaf with these entries."""
    place = found.blocks[number]
    block = volume.blocks.get(place)
    block[:] = bytes(size)
    directories.set_tail(volume, block)
    at, end, last = 0, directories.limit(volume), 0
    if not entries:
        directories.ENTRY.pack_into(block, 0, 0, directories.disk_length(end), 0, 0)
    for index, (name, ino, kind) in enumerate(entries):
        length = directories.space(len(name)) if index < len(entries) - 1 else end - at
        struct.pack_into("<H", block, at + 4, directories.disk_length(length))
        directories.put(volume, block, at, ino, name, kind)
        found.names[name] = (ino, kind, number * size + at)
        last, at = at, at + length
    found.last[number] = last
    found.holes.discard(number)
    directories.dirty(volume, inode, place)


def make(volume: Volume, inode: Inode) -> None:
    """Add an index to a directory that has one block. Raises OSError ENOSPC."""
    found, size = directories.load(volume, inode), volume.super.block_size
    entries = [(name, ino, kind) for name, (ino, kind, _) in found.names.items()]
    number, _ = directories.new_block(volume, inode, found)
    _fill(volume, inode, found, number, entries, size)
    root = volume.blocks.get(found.blocks[0])
    root[:] = bytes(size)
    directories.put_dots(volume, root, inode.ino, found.parent)
    struct.pack_into("<H", root, 16, directories.disk_length(size - 12))
    _INFO.pack_into(root, 24, 0, volume.super.hash_version, 8, 0, 0)
    inode.flags |= FL_INDEX
    found.holes.discard(0)
    del found.last[0]
    _COUNT.pack_into(root, _ROOT_ENTRIES, _most(volume, 0), 1)
    struct.pack_into("<I", root, _ROOT_ENTRIES + 4, number)
    dirty(volume, inode, found.blocks[0])
    volume.touch(inode)


def add(volume: Volume, inode: Inode, name: bytes, ino: int, kind: int) -> None:
    """Add an entry that does not exist. Raises OSError ENOSPC, EUCLEAN."""
    index = _Index(volume, inode)
    value = index.hash(name)
    need = directories.space(len(name))
    frames, leaf = index.walk(value)
    at = directories.room(volume, index.found, leaf, need)
    while at is None:
        while index.make_room(frames):
            frames, leaf = index.walk(value)
        leaf = index.split_leaf(frames, leaf, value)
        at = directories.room(volume, index.found, leaf, need)
        if at is None:
            frames, leaf = index.walk(value)
    directories.put(volume, index.block(leaf), at, ino, name, kind)
    directories.dirty(volume, inode, index.found.blocks[leaf])
    index.found.names[name] = (ino, kind, leaf * volume.super.block_size + at)
