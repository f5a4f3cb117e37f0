"""Directories: their entries in memory and their blocks (fs/ext4/dir.c, namei.c).

Entries keep their offsets until a leaf of the hash index is split. A removed entry becomes an
unused entry, which is merged with its neighbours when space is needed.
"""

from __future__ import annotations

import errno
import stat
import struct

from loopfs.ext4 import htree, inline
from loopfs.ext4.crc import crc32c
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.ext4.inode import FL_INDEX, Inode
from loopfs.ext4.super import COMPAT_DIR_INDEX, INCOMPAT_FILETYPE
from loopfs.ext4.volume import Volume

NAME_MAX = 255
TAIL = 12  # bytes: struct ext4_dir_entry_tail
_TAIL_TYPE = 0xDE
ENTRY = struct.Struct("<IHBB")
FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
DT_OF_TYPE = (0, 8, 4, 2, 6, 1, 12, 10)  # DT_* of readdir(3)

Name = tuple[int, int, int]  # inode number, file type, offset in the directory


class Directory:
    """The contents of a directory.

    Attributes:
        names: its entries without "." and "..", in the order in which they were found.
        blocks: the numbers on disk of its blocks.
        parent: the inode number of "..".
        last: for each block with entries, by its index in the directory, the offset in the block
            of the last entry.
        holes: indices of blocks that may have unused space before the last entry.
        index, hashes: caches of :mod:`loopfs.ext4.htree` for an indexed directory: blocks of the
            index, by their index in the directory, and the hashes of names.
    """

    __slots__ = ("blocks", "hashes", "holes", "index", "last", "names", "parent")

    def __init__(self, parent: int) -> None:
        self.names: dict[bytes, Name] = {}
        self.blocks: list[int] = []
        self.parent = parent
        self.last: dict[int, int] = {}
        self.holes: set[int] = set()
        self.index: dict[int, htree.Rows] = {}
        self.hashes: dict[bytes, int] = {}


def record_length(raw: int, block_size: int) -> int:
    """Decode the rec_len of an entry, in bytes (ext4_rec_len_from_disk)."""
    if block_size < 65536:
        return raw
    return block_size if raw in (0, 65535) else (raw & 65532) | (raw & 3) << 16


def disk_length(length: int) -> int:
    """Encode a rec_len; the inverse of :func:`record_length`."""
    return length if length < 65536 else 65535


def space(name_length: int) -> int:
    """Return the size in bytes of an entry whose name has ``name_length`` bytes."""
    return 8 + name_length + 3 & ~3


def limit(volume: Volume) -> int:
    """Return the number of bytes of a directory block that entries can use."""
    return volume.super.block_size - (TAIL if volume.super.csum else 0)


def is_indexed(volume: Volume, inode: Inode) -> bool:
    return bool(inode.flags & FL_INDEX and volume.super.compat & COMPAT_DIR_INDEX)


# --- reading ---------------------------------------------------------------------------


def load(volume: Volume, inode: Inode) -> Directory:
    """Return the contents of a directory, read if necessary.

    Raises:
        OSError: ENOTDIR, EUCLEAN, EBADMSG, EOPNOTSUPP.
    """
    if inode.dir is not None:
        return inode.dir
    if not inode.is_dir:
        raise refused(errno.ENOTDIR)
    inode.check_readable()
    if inode.has_inline_data:
        inode.dir = inline.load_directory(volume, inode)
        return inode.dir
    size = volume.super.block_size
    if not inode.size or inode.size % size:
        raise Damaged(f"directory {inode.ino} has {inode.size} bytes", inode.ino)
    found = Directory(0)
    block = 0
    for first, count, place, unwritten in volume.map(inode):
        if first != block or unwritten:
            break
        found.blocks += range(place, place + count)
        block += count
    del found.blocks[inode.size // size :]
    if len(found.blocks) != inode.size // size:
        raise Damaged(f"directory {inode.ino} has a hole", inode.ino)
    if len(set(found.blocks)) != len(found.blocks):
        raise Damaged(f"directory {inode.ino} has a block twice", inode.ino)
    indexed = is_indexed(volume, inode)
    for number in range(len(found.blocks)):
        _load_block(volume, inode, found, number, indexed)
    if b"." not in found.names or b".." not in found.names:
        raise Damaged(f"directory {inode.ino} has no . or no .. entry", inode.ino)
    found.names.pop(b".")
    found.parent = found.names.pop(b"..")[0]
    inode.dir = found
    return found


def _load_block(volume: Volume, inode: Inode, found: Directory, number: int, indexed: bool) -> None:
    block = volume.blocks.get(found.blocks[number])
    size = volume.super.block_size
    if indexed and htree.is_node(block, number, size):
        htree.check_sum(volume, inode, block, number)
        if number:
            return
        parse(volume, inode, found, block, 0, size)
        return
    if volume.super.csum:
        _check_sum(inode, block, size)
    slack, last = parse(volume, inode, found, block, number * size, limit(volume))
    found.last[number] = last
    if slack > size // 8:
        found.holes.add(number)


def _check_sum(inode: Inode, block: bytearray, size: int) -> None:
    zero, length, _, kind, value = struct.unpack_from("<IHBBI", block, size - TAIL)
    if zero or length != TAIL or kind != _TAIL_TYPE:
        raise BadChecksum(f"a block of directory {inode.ino} has no checksum", inode.ino)
    if crc32c(inode.seed, block[:-TAIL]) != value:
        raise BadChecksum(f"the checksum of directory {inode.ino} is wrong", inode.ino)


def parse(
    volume: Volume, inode: Inode, found: Directory, block: bytearray, base: int, end: int
) -> tuple[int, int]:
    """Add the entries of ``block`` to ``found``.

    Args:
        base: offset of the block in the directory, bytes.
        end: where the entries in the block end, bytes.
    Returns:
        The number of unused bytes before the last entry, and that entry's offset in the block.
    """
    unpack, names, at, slack, last = ENTRY.unpack_from, found.names, 0, 0, 0
    unused = 0
    size, most = volume.super.block_size, volume.super.inodes
    typed = volume.super.incompat & INCOMPAT_FILETYPE
    while at < end:
        if at + 8 > end:
            raise Damaged(f"an entry is truncated in directory {inode.ino}", inode.ino)
        ino, raw, length, kind = unpack(block, at)
        record = raw if size < 65536 else record_length(raw, size)
        if record < 12 or record & 3 or at + record > end or length + 8 > record or ino > most:
            raise Damaged(f"an entry is invalid in directory {inode.ino} at {base + at}", inode.ino)
        if ino:
            name = bytes(block[at + 8 : at + 8 + length])
            if not name or b"/" in name or b"\0" in name:
                raise Damaged(f"a name is invalid in directory {inode.ino}", inode.ino)
            if name not in names:
                names[name] = (ino, kind if typed and kind < len(DT_OF_TYPE) else 0, base + at)
            last, slack, unused = at, slack + unused, record - length - 8
        else:
            last, slack, unused = at, slack + unused, record
        at += record
    return slack, last


def find(volume: Volume, inode: Inode, name: bytes) -> Name | None:
    """Return the entry ``name``, or None. Raises OSError ENAMETOOLONG, and as :func:`load`."""
    if len(name) > NAME_MAX:
        raise refused(errno.ENAMETOOLONG)
    return load(volume, inode).names.get(name)


# --- changing ---------------------------------------------------------------------------


def dirty(volume: Volume, inode: Inode, place: int) -> None:
    """Mark the directory block ``place`` (its number on disk) as changed."""
    volume.blocks.dirty.add(place)
    volume.blocks.directories[place] = inode.seed


def new_block(volume: Volume, inode: Inode, found: Directory) -> tuple[int, bytearray]:
    """Append an empty block; return its index and contents. Raises OSError ENOSPC."""
    number, size = len(found.blocks), volume.super.block_size
    run = volume.allocate(volume.goal(inode, number), 1)
    volume.insert(inode, number, run, False)
    block = volume.blocks.new(run[0])
    ENTRY.pack_into(block, 0, 0, disk_length(limit(volume)), 0, 0)
    set_tail(volume, block)
    inode.size += size
    found.blocks.append(run[0])
    found.last[number] = 0
    dirty(volume, inode, run[0])
    volume.touch(inode)
    return number, block


def set_tail(volume: Volume, block: bytearray) -> None:
    """Write the tail of a block that will hold its checksum, if the filesystem has checksums."""
    if volume.super.csum:
        struct.pack_into("<IHBBI", block, volume.super.block_size - TAIL, 0, TAIL, 0, _TAIL_TYPE, 0)


def put(volume: Volume, block: bytearray, at: int, ino: int, name: bytes, kind: int) -> None:
    """Write an entry at an offset that :func:`room` has returned."""
    typed = volume.super.incompat & INCOMPAT_FILETYPE
    (record,) = struct.unpack_from("<H", block, at + 4)
    ENTRY.pack_into(block, at, ino, record, len(name), kind if typed else 0)
    block[at + 8 : at + 8 + len(name)] = name


def room(volume: Volume, found: Directory, number: int, need: int) -> int | None:
    """Make space in block ``number`` for an entry of ``need`` bytes, and return its offset.

    Returns:
        None if there is no space; then the block is valid as before and need not be written.
    """
    block = volume.blocks.get(found.blocks[number])
    at = _fit(block, found.last[number], need, volume.super.block_size)
    if at is not None:
        found.last[number] = at
        return at
    if number not in found.holes:
        return None
    at = _room_before(volume, block, need)
    if at is None:
        found.holes.discard(number)
    else:
        found.last[number] = _last(volume, block)  # it may have been merged with earlier entries
    return at


def _room_before(volume: Volume, block: bytearray, need: int) -> int | None:
    at, end, size = 0, limit(volume), volume.super.block_size
    while at < end:
        ino, raw, _, _ = ENTRY.unpack_from(block, at)
        record = record_length(raw, size)
        if not ino:
            while at + record < end:
                after, more, _, _ = ENTRY.unpack_from(block, at + record)
                if after:
                    break
                record += record_length(more, size)
            if record >= need:
                struct.pack_into("<H", block, at + 4, disk_length(record))
        if (found := _fit(block, at, need, size)) is not None:
            return found
        at += record
    return None


def _fit(block: bytearray, at: int, need: int, size: int) -> int | None:
    """Make space in an unused entry, or split off the unused space after a used entry's name."""
    ino, raw, length, _ = ENTRY.unpack_from(block, at)
    record = record_length(raw, size)
    used = space(length) if ino else 0
    if record - used < need:
        return None
    if used:
        struct.pack_into("<H", block, at + 4, used)
        ENTRY.pack_into(block, at + used, 0, disk_length(record - used), 0, 0)
    return at + used


def add(volume: Volume, inode: Inode, name: bytes, ino: int, kind: int) -> None:
    """Add an entry that does not exist. Raises OSError ENOSPC, and as :func:`load`."""
    found = load(volume, inode)
    if inode.has_inline_data:
        inline.convert_directory(volume, inode)
    if is_indexed(volume, inode):
        htree.add(volume, inode, name, ino, kind)
        return
    need, number = space(len(name)), len(found.blocks) - 1
    at = room(volume, found, number, need)
    if at is None:
        number, at = _room_elsewhere(volume, found, need)
    if at is None:
        if len(found.blocks) == 1 and volume.super.compat & COMPAT_DIR_INDEX:
            htree.make(volume, inode)
            htree.add(volume, inode, name, ino, kind)
            return
        number, _ = new_block(volume, inode, found)
        at = 0
    put(volume, volume.blocks.get(found.blocks[number]), at, ino, name, kind)
    dirty(volume, inode, found.blocks[number])
    found.names[name] = (ino, kind, number * volume.super.block_size + at)


def _room_elsewhere(volume: Volume, found: Directory, need: int) -> tuple[int, int | None]:
    for number in list(found.holes):
        at = room(volume, found, number, need)
        if at is not None:
            return number, at
    return 0, None


def _last(volume: Volume, block: bytearray) -> int:
    at, size = 0, volume.super.block_size
    while True:
        after = at + record_length(ENTRY.unpack_from(block, at)[1], size)
        if after >= limit(volume):
            return at
        at = after


def _block_of(volume: Volume, found: Directory, place: int) -> tuple[int, int]:
    number, at = divmod(place, volume.super.block_size)
    return found.blocks[number], at


def drop(volume: Volume, inode: Inode, name: bytes) -> None:
    """Remove an entry."""
    found = load(volume, inode)
    _, _, place = found.names.pop(name)
    found.hashes.pop(name, None)
    if inode.has_inline_data:
        inline.change_entry(volume, inode, place, 0, 0)
        return
    number, at = _block_of(volume, found, place)
    struct.pack_into("<I", volume.blocks.get(number), at, 0)
    dirty(volume, inode, number)
    found.holes.add(place // volume.super.block_size)


def change(volume: Volume, inode: Inode, name: bytes, ino: int, kind: int) -> None:
    """Make an existing entry, or "..", refer to another inode."""
    found = load(volume, inode)
    place = 12 if name == b".." else found.names[name][2]
    if name == b"..":
        found.parent = ino
    else:
        found.names[name] = (ino, kind, place)
    if inode.has_inline_data:
        if name == b"..":
            inline.change_parent(volume, inode, ino)
        else:
            inline.change_entry(volume, inode, place, ino, kind)
        return
    number, at = _block_of(volume, found, place)
    block = volume.blocks.get(number)
    struct.pack_into("<I", block, at, ino)
    if volume.super.incompat & INCOMPAT_FILETYPE:
        block[at + 7] = kind
    if place == 12 and is_indexed(volume, inode):
        htree.dirty(volume, inode, number)
    else:
        dirty(volume, inode, number)


def make(volume: Volume, inode: Inode, parent: int) -> None:
    """Make the first block of a new directory. Raises OSError ENOSPC."""
    found = Directory(parent)
    inode.dir = found
    _, block = new_block(volume, inode, found)
    put_dots(volume, block, inode.ino, parent)
    found.last[0] = 12


def put_dots(volume: Volume, block: bytearray, own: int, parent: int) -> None:
    """Write the entries "." and ".."."""
    kind = 2 if volume.super.incompat & INCOMPAT_FILETYPE else 0
    struct.pack_into("<IHBB4s", block, 0, own, 12, 1, kind, b".")
    rest = disk_length(limit(volume) - 12)
    struct.pack_into("<IHBB4s", block, 12, parent, rest, 2, kind, b"..")


def seal(volume: Volume) -> None:
    """Write the checksums of the changed blocks, before a commit."""
    blocks = volume.blocks
    if volume.super.csum:
        for number, seed in blocks.directories.items():
            block = blocks.get(number)
            struct.pack_into("<I", block, volume.super.block_size - 4, crc32c(seed, block[:-TAIL]))
    blocks.directories.clear()
