"""Extended attributes (fs/ext4/xattr.c): in the inode, in one additional block, and large values in
inodes of their own (:mod:`~loopfs.ext4.ea_inode`)."""

from __future__ import annotations

import errno
import os
import struct

from loopfs.ext4 import acl, ea_inode
from loopfs.ext4.crc import crc32c
from loopfs.ext4.ea_inode import Large
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.ext4.inode import FL_EA_INODE, Inode
from loopfs.ext4.volume import Volume, now_of
from loopfs.lean import Iterable, Mapping

DATA = b"system.data"  # inline data of a file; not visible as an attribute
CAPABILITY = b"security.capability"
_MAGIC = 0xEA020000
_PREFIXES = {
    1: b"user.",
    2: acl.ACCESS,
    3: acl.DEFAULT,
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}
_KNOWN = (b"user.", b"trusted.", b"security.")
_ENTRY = struct.Struct("<BBHIII")
_HEADER = struct.Struct("<IIIII")  # magic, users, blocks, hash, checksum
_HEADER_SIZE = 32
Value = bytes | Large
Row = tuple[int, int, bytes, Value]  # prefix index, length of suffix, suffix, value as on disk


def load(volume: Volume, inode: Inode) -> dict[bytes, Value]:
    """Return all attributes, also the invisible ones. Raises OSError EUCLEAN, EBADMSG."""
    if inode.xattrs is None:
        found: dict[bytes, Value] = {}
        if has_body(inode):
            base = inode.extra_size + 4
            _parse(volume, inode, found, bytes(inode.extra), base, base)
        if inode.file_acl:
            block = bytes(volume.blocks.get(inode.file_acl))
            _check_block(volume, inode, block)
            _parse(volume, inode, found, block, _HEADER_SIZE, 0)
        inode.xattrs = found
    return inode.xattrs


def has_body(inode: Inode) -> bool:
    """Return whether the inode itself holds attributes."""
    at = inode.extra_size
    return inode.extra[at : at + 4] == _MAGIC.to_bytes(4, "little")


def _check_block(volume: Volume, inode: Inode, block: bytes) -> None:
    magic, users, count, _, value = _HEADER.unpack_from(block)
    if magic != _MAGIC or count != 1 or not users:
        raise Damaged(f"the attribute block is invalid in inode {inode.ino}", inode.ino)
    if volume.super.csum and _sum(volume, inode.file_acl, block) != value:
        raise BadChecksum(
            f"the checksum of the attributes of inode {inode.ino} is wrong", inode.ino
        )


def _sum(volume: Volume, place: int, block: bytes) -> int:
    seed = crc32c(volume.super.seed, struct.pack("<Q", place))
    return crc32c(seed, block[:16] + bytes(4) + block[20:])


def _parse(
    volume: Volume, inode: Inode, found: dict[bytes, Value], raw: bytes, at: int, base: int
) -> None:
    while at + 4 <= len(raw) and raw[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(raw):
            raise Damaged(f"an attribute is invalid in inode {inode.ino}", inode.ino)
        length, index, offset, holder, size, total = _ENTRY.unpack_from(raw, at)
        rest = raw[at + 16 : at + 16 + length]
        begin = base + offset
        if len(rest) != length or (not holder and size and begin + size > len(raw)):
            raise Damaged(f"an attribute is invalid in inode {inode.ino}", inode.ino)
        if holder and not ea_inode.is_possible(volume):
            raise Damaged(f"inode {inode.ino} has an ea_inode without the feature", inode.ino)
        inner = raw[begin : begin + size]
        value: Value = acl.from_disk(inner) if index in (2, 3) and not holder else inner
        if holder:
            value = Large(holder, size, total, in_block=not base)
        if index in (2, 3):
            name = _PREFIXES[index]
        elif index in _PREFIXES:
            name = _PREFIXES[index] + rest
        else:
            name = bytes((0, index)) + rest
        found[name] = value
        at += 16 + length + 3 & ~3


def find(volume: Volume, inode: Inode, name: bytes) -> bytes | None:
    """Return the value of an attribute, or None. Raises OSError EUCLEAN, EBADMSG."""
    value = load(volume, inode).get(name)
    if not isinstance(value, Large):
        return value
    read = ea_inode.read(volume, value)
    return acl.from_disk(read) if name in (acl.ACCESS, acl.DEFAULT) else read


def data(volume: Volume, inode: Inode) -> bytes:
    """Return the inline data that is not in i_block. Raises OSError EUCLEAN, EBADMSG."""
    value = load(volume, inode).get(DATA, b"")
    if isinstance(value, Large):
        raise Damaged(f"the inline data of inode {inode.ino} is in an ea_inode", inode.ino)
    return value


# --- calls -----------------------------------------------------------------------


def get(volume: Volume, inode: Inode, name: bytes) -> bytes:
    """Return the value of an attribute. Raises OSError EINVAL, ENODATA, EOPNOTSUPP, EUCLEAN."""
    _check_name(name)
    if inode.xattrs is not None and not inode.xattrs:
        raise refused(errno.ENODATA)
    value = find(volume, inode, name)
    if value is None:
        raise refused(errno.ENODATA)
    return value


def _check_name(name: bytes) -> None:
    if name not in (acl.ACCESS, acl.DEFAULT) and not name.startswith(_KNOWN):
        raise refused(errno.EOPNOTSUPP)
    if name in _KNOWN:  # a prefix only
        raise refused(errno.EINVAL)


def names(volume: Volume, inode: Inode) -> list[bytes]:
    """Return the names of the visible attributes."""
    return [name for name in load(volume, inode) if name != DATA and name[0]]


def set_value(volume: Volume, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
    """Set an attribute. Raises OSError EEXIST, EINVAL, ENODATA, ENOSPC, EOPNOTSUPP, ERANGE."""
    attributes = dict(load(volume, inode))
    mode = inode.mode
    _check_name(name)
    if flags & os.XATTR_CREATE and name in attributes:
        raise refused(errno.EEXIST)
    if flags & os.XATTR_REPLACE and name not in attributes:
        raise refused(errno.ENODATA)
    attributes[name] = value
    if name == acl.ACCESS:
        stored, bits = acl.with_mode(value, 0o777, masked=True)
        mode = mode & ~0o777 | bits
        if stored is None:  # the mode expresses all of it
            del attributes[name]
    elif name == acl.DEFAULT and not inode.is_dir:
        raise refused(errno.EACCES)
    _change(volume, inode, attributes)
    inode.mode = mode


def remove(volume: Volume, inode: Inode, name: bytes) -> None:
    """Remove an attribute. Raises OSError EINVAL, ENODATA, EOPNOTSUPP."""
    _check_name(name)
    attributes = dict(load(volume, inode))
    if attributes.pop(name, None) is None:
        if name in (acl.ACCESS, acl.DEFAULT):
            return
        raise refused(errno.ENODATA)
    _change(volume, inode, attributes)


def _change(volume: Volume, inode: Inode, attributes: Mapping[bytes, Value]) -> None:
    volume.reserve(1 + blocks_of(volume, attributes))
    replace(volume, inode, attributes)
    inode.ctime = now_of(volume, inode)


def blocks_of(volume: Volume, attributes: Mapping[bytes, Value]) -> int:
    """Return how many blocks the attributes may need besides the attribute block."""
    if not ea_inode.is_possible(volume):
        return 0
    sizes = [len(value) for value in attributes.values() if isinstance(value, bytes)]
    return sum(ea_inode.blocks_of(volume, size) for size in sizes)


def replace(volume: Volume, inode: Inode, attributes: Mapping[bytes, Value]) -> None:
    """Replace all attributes of an inode.

    Raises:
        OSError: ENOSPC, EUCLEAN, EBADMSG, or an error of the device; nothing is changed then.
    """
    planned, outside = _planned(volume, inode, attributes)
    uses = _uses(volume, inode, planned.values())
    made: list[Inode] = []
    place = 0
    try:
        for name, value in planned.items():
            if isinstance(value, Large) and not value.ino:
                made.append(ea_inode.make(volume, inode, _encoded(name, attributes[name])))
                planned[name] = value._replace(ino=made[-1].ino)
        if outside and not (inode.file_acl and _users(volume, inode) == 1):
            goal = volume.groups.all[(inode.ino - 1) // volume.super.inodes_per_group].first
            place, _ = volume.allocate(goal, 1)
    except OSError:
        for one in made:
            volume.end(one)
        raise
    if place or not outside:
        release_block(volume, inode)
    if place:
        inode.file_acl = place
        volume.blocks.new(place)
        inode.count(volume.super.block_size // 512)
    inode.count(
        _counted(volume, planned.values()) - _counted(volume, (inode.xattrs or {}).values())
    )
    inode.xattrs = {
        name: value._replace(in_block=False) if isinstance(value, Large) else value
        for name, value in planned.items()
    }
    inode.xattrs_changed = True
    volume.touch(inode)
    for holder, by in uses:
        ea_inode.use(volume, holder, by)


def _planned(
    volume: Volume, inode: Inode, attributes: Mapping[bytes, Value]
) -> tuple[dict[bytes, Value], list[Row]]:
    """Return the attributes, with Large for large values, and the rows that go into a block.

    Raises:
        OSError: ENOSPC.
    """
    planned = dict(attributes)
    sizes = {}
    for name, value in attributes.items():
        if isinstance(value, bytes) and value and name != DATA and ea_inode.is_possible(volume):
            sizes[name] = len(_encoded(name, value))
    for name in [name for name, size in sizes.items() if ea_inode.is_wanted(volume, size)]:
        planned[name] = _large(volume, name, attributes[name], sizes.pop(name))
    while True:
        try:
            return planned, _layout(volume, inode, planned)[1]
        except OSError:
            if not sizes:
                raise
        name = max(sizes, key=sizes.__getitem__)
        planned[name] = _large(volume, name, attributes[name], sizes.pop(name))


def _large(volume: Volume, name: bytes, value: Value, size: int) -> Large:
    """Return a reference to a large value that is not stored yet."""
    one = _hash(_split_name(name)[1], ea_inode.checksum(volume, _encoded(name, value)))
    return Large(0, size, one)


def _own(volume: Volume, inode: Inode) -> list[Large]:
    """Return the large values that only this inode's entries refer to (not by a shared block)."""
    shared = bool(inode.file_acl) and _users(volume, inode) > 1
    values = (inode.xattrs or {}).values()
    return [one for one in values if isinstance(one, Large) and not (one.in_block and shared)]


def _counted(volume: Volume, values: Iterable[Value]) -> int:
    """Return the sectors of large values, which i_blocks of their owner includes."""
    unit = volume.super.block_size
    return sum(-(-one.size // unit) * (unit // 512) for one in values if isinstance(one, Large))


def _uses(volume: Volume, inode: Inode, after: Iterable[Value]) -> list[tuple[Inode, int]]:
    """Return the changes of the reference counts of values. Raises OSError EUCLEAN, EBADMSG."""
    uses: dict[int, int] = {}
    for one in after:
        if isinstance(one, Large) and one.ino:
            uses[one.ino] = uses.get(one.ino, 0) + 1
    for one in _own(volume, inode):
        uses[one.ino] = uses.get(one.ino, 0) - 1
    return [(ea_inode.get(volume, ino), by) for ino, by in uses.items() if by]


def release(volume: Volume, inode: Inode) -> None:
    """Release the attributes of an inode that is being freed. Raises OSError EUCLEAN, EBADMSG."""
    uses: list[tuple[Inode, int]] = []
    if ea_inode.is_possible(volume) and not inode.flags & FL_EA_INODE:
        attributes = load(volume, inode)
        uses = _uses(volume, inode, ())
        inode.count(-_counted(volume, attributes.values()))
        inode.xattrs, inode.xattrs_changed = {}, True
    release_block(volume, inode)
    for holder, by in uses:
        ea_inode.use(volume, holder, by)


def _users(volume: Volume, inode: Inode) -> int:
    users: int = _HEADER.unpack_from(volume.blocks.get(inode.file_acl))[1]
    return users or 1  # a new block, not written yet, has 0


def release_block(volume: Volume, inode: Inode) -> None:
    """Remove an inode's reference to its attribute block, and free the block if unused."""
    if not inode.file_acl:
        return
    block = volume.blocks.get(inode.file_acl)
    users = _users(volume, inode)
    if users > 1:
        struct.pack_into("<I", block, 4, users - 1)
        _seal(volume, inode.file_acl, block)
        volume.blocks.dirty.add(inode.file_acl)
    else:
        volume.release(inode.file_acl, 1)
    inode.file_acl = 0
    inode.count(-(volume.super.block_size // 512))


def _seal(volume: Volume, place: int, block: bytearray) -> None:
    if volume.super.csum:
        struct.pack_into("<I", block, 16, _sum(volume, place, bytes(block)))


# --- on disk ---------------------------------------------------------------------


def _split_name(name: bytes) -> tuple[int, bytes]:
    """Split a name as an entry stores it: the index of the prefix, and the suffix."""
    if name in (acl.ACCESS, acl.DEFAULT):
        return (2 if name == acl.ACCESS else 3), b""
    if not name[0]:
        return name[1], name[2:]
    index = next(k for k in (1, 4, 6, 7) if name.startswith(_PREFIXES[k]))
    return index, name[len(_PREFIXES[index]) :]


def _encoded(name: bytes, value: Value) -> bytes:
    """Return a value in the disk format."""
    assert isinstance(value, bytes)
    return acl.to_disk(value) if name in (acl.ACCESS, acl.DEFAULT) else value


def _rows(attributes: Mapping[bytes, Value]) -> list[Row]:
    rows: list[Row] = []
    for name, value in attributes.items():
        index, rest = _split_name(name)
        stored = value if isinstance(value, Large) else _encoded(name, value)
        rows.append((index, len(rest), rest, stored))
    return rows


def _inner_size(value: Value) -> int:
    """Return the number of bytes that a value needs, besides its entry."""
    return 0 if isinstance(value, Large) else len(value) + 3 & ~3


def _layout(
    volume: Volume, inode: Inode, attributes: Mapping[bytes, Value]
) -> tuple[list[Row], list[Row]]:
    """Divide the attributes between the inode and a block.

    Those in the inode come first, so that they stay there: what fitted before still fits.

    Raises:
        OSError: ENOSPC.
    """
    rows = sorted(_rows(attributes), key=lambda row: row[:3] != (7, 4, b"data"))
    for order in (rows, sorted(rows, key=lambda row: (row[0] != 7, _inner_size(row[3])))):
        found = _split(volume, inode, order)
        if found is not None:
            return found
    raise refused(errno.ENOSPC)


def _split(volume: Volume, inode: Inode, rows: list[Row]) -> tuple[list[Row], list[Row]] | None:
    room = len(inode.extra) - inode.extra_size - 8 if inode.extra else 0
    block = volume.super.block_size - _HEADER_SIZE - 4
    inside: list[Row] = []
    outside: list[Row] = []
    for row in rows:
        cost = (16 + row[1] + 3 & ~3) + _inner_size(row[3])
        if cost <= room:
            room -= cost
            inside.append(row)
        else:
            block -= cost
            outside.append(row)
    if block < 0 or any(row[0] == 7 for row in outside):
        return None
    return inside, sorted(outside, key=lambda row: row[:3])


def store(volume: Volume, inode: Inode) -> None:
    """Encode the attributes; :func:`replace` has allocated space for them."""
    inode.xattrs_changed = False
    inside, outside = _layout(volume, inode, load(volume, inode))
    if inode.extra:
        at = inode.extra_size
        inode.extra[at:] = bytes(len(inode.extra) - at)
        if inside:
            struct.pack_into("<I", inode.extra, at, _MAGIC)
            _write(inode.extra, at + 4, at + 4, inside)
    if outside:
        block = volume.blocks.new(inode.file_acl)
        value = _write(block, _HEADER_SIZE, 0, outside)
        _HEADER.pack_into(block, 0, _MAGIC, 1, 1, value, 0)
        _seal(volume, inode.file_acl, block)


def change_data(inode: Inode, at: int, part: bytes) -> None:
    """Change some bytes of the inline data in place."""
    assert inode.xattrs is not None
    stored = inode.xattrs[DATA]
    assert isinstance(stored, bytes)
    data = bytearray(stored)
    data[at : at + len(part)] = part
    inode.xattrs[DATA] = bytes(data)
    base = inode.extra_size + 4
    entry = base
    while True:
        length, index, offset, _, _, _ = _ENTRY.unpack_from(inode.extra, entry)
        if index == 7 and inode.extra[entry + 16 : entry + 16 + length] == b"data":
            break
        entry += 16 + length + 3 & ~3
    inode.extra[base + offset : base + offset + len(data)] = data
    one = _hash(b"data", bytes(data) + bytes(-len(data) % 4))
    struct.pack_into("<I", inode.extra, entry + 12, one)


def _write(raw: bytearray, at: int, base: int, rows: list[Row]) -> int:
    """Write entries from ``at`` on and values from the end; return the hash of all entries."""
    total, end = 0, len(raw)
    for index, length, rest, value in rows:
        if isinstance(value, Large):
            one, offset, ino, size = value.hash, 0, value.ino, value.size
        else:
            padded = value + bytes(-len(value) % 4)
            end -= len(padded)
            raw[end : end + len(padded)] = padded
            one, size, ino = _hash(rest, padded), len(value), 0
            offset = end - base if value else 0
        _ENTRY.pack_into(raw, at, length, index, offset, ino, size, one)
        raw[at + 16 : at + 16 + length] = rest
        at += 16 + length + 3 & ~3
        total = (total << 16 ^ total >> 16 ^ one) & 0xFFFFFFFF
    return total


def _hash(name: bytes, value: bytes) -> int:
    one = 0
    for char in name:
        one = (one << 5 ^ one >> 27 ^ char) & 0xFFFFFFFF
    for (word,) in struct.iter_unpack("<I", value):
        one = (one << 16 ^ one >> 16 ^ word) & 0xFFFFFFFF
    return one
