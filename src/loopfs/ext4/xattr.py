"""Extended attributes (fs/ext4/xattr.c): in the inode, and in one block more."""

from __future__ import annotations

import errno
import os
import struct

from loopfs.ext4 import acl
from loopfs.ext4.crc import crc32c
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.ext4.inode import FL_EA_INODE, Inode
from loopfs.ext4.volume import Volume, now_of

DATA = b"system.data"  # of inline files: not to be seen
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
Row = tuple[int, int, bytes, bytes]  # name index, length of the rest, rest, value


def load(volume: Volume, inode: Inode) -> dict[bytes, bytes]:
    """All attributes, those not to be seen too. Raises OSError EUCLEAN, EBADMSG."""
    if inode.xattrs is None:
        found: dict[bytes, bytes] = {}
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
    """There are attributes in the inode."""
    at = inode.extra_size
    return inode.extra[at : at + 4] == _MAGIC.to_bytes(4, "little")


def _check_block(volume: Volume, inode: Inode, block: bytes) -> None:
    magic, users, count, _, value = _HEADER.unpack_from(block)
    if magic != _MAGIC or count != 1 or not users:
        raise Damaged(f"the attributes of inode {inode.ino}")
    if volume.super.csum and _sum(volume, inode.file_acl, block) != value:
        raise BadChecksum(f"the checksum of the attributes of inode {inode.ino} is wrong")


def _sum(volume: Volume, place: int, block: bytes) -> int:
    seed = crc32c(volume.super.seed, struct.pack("<Q", place))
    return crc32c(seed, block[:16] + bytes(4) + block[20:])


def _parse(
    volume: Volume, inode: Inode, found: dict[bytes, bytes], raw: bytes, at: int, base: int
) -> None:
    while at + 4 <= len(raw) and raw[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(raw):
            raise Damaged(f"the attributes of inode {inode.ino}")
        length, index, offset, holder, size, _ = _ENTRY.unpack_from(raw, at)
        rest = raw[at + 16 : at + 16 + length]
        begin = base + offset
        if len(rest) != length or (not holder and size and begin + size > len(raw)):
            raise Damaged(f"the attributes of inode {inode.ino}")
        value = _of_inode(volume, holder, size) if holder else raw[begin : begin + size]
        if index in (2, 3):
            name, value = _PREFIXES[index], acl.from_disk(value)
        elif index in _PREFIXES:
            name = _PREFIXES[index] + rest
        else:
            name = bytes((0, index)) + rest
        found[name] = value
        at += 16 + length + 3 & ~3


def _of_inode(volume: Volume, ino: int, size: int) -> bytes:
    """A value that has an inode of its own."""
    from loopfs.ext4 import file

    holder = volume.get(ino)
    if not holder.flags & FL_EA_INODE or size != holder.size or size > 65536:
        raise Damaged(f"inode {ino} is no attribute")
    buffer = memoryview(bytearray(size))
    file.read(volume, holder, 0, buffer)
    return bytes(buffer)


# --- calls -----------------------------------------------------------------------


def get(volume: Volume, inode: Inode, name: bytes) -> bytes:
    """Raises OSError ENODATA, EOPNOTSUPP, EUCLEAN."""
    _check_name(name)
    if inode.xattrs is not None and not inode.xattrs:
        raise refused(errno.ENODATA)
    value = load(volume, inode).get(name)
    if value is None:
        raise refused(errno.ENODATA)
    return value


def _check_name(name: bytes) -> None:
    if name not in (acl.ACCESS, acl.DEFAULT) and not name.startswith(_KNOWN):
        raise refused(errno.EOPNOTSUPP)


def names(volume: Volume, inode: Inode) -> list[bytes]:
    """Those to be seen."""
    return [name for name in load(volume, inode) if name != DATA and name[0]]


def set_value(volume: Volume, inode: Inode, name: bytes, value: bytes, flags: int) -> None:
    """setxattr(2). Raises OSError EEXIST, ENODATA, ENOSPC, EOPNOTSUPP, ERANGE."""
    volume.reserve()
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
        if stored is None:  # it says no more than the mode
            del attributes[name]
    elif name == acl.DEFAULT and not inode.is_dir:
        raise refused(errno.EACCES)
    _replace(volume, inode, attributes)
    inode.mode = mode


def remove(volume: Volume, inode: Inode, name: bytes) -> None:
    """removexattr(2). Raises OSError ENODATA, EOPNOTSUPP."""
    _check_name(name)
    volume.reserve()
    attributes = dict(load(volume, inode))
    if attributes.pop(name, None) is None:
        if name in (acl.ACCESS, acl.DEFAULT):
            return
        raise refused(errno.ENODATA)
    _replace(volume, inode, attributes)


def _replace(volume: Volume, inode: Inode, attributes: dict[bytes, bytes]) -> None:
    prepare(volume, inode, attributes)
    inode.xattrs = attributes
    inode.ctime = now_of(volume, inode)


def prepare(volume: Volume, inode: Inode, attributes: dict[bytes, bytes]) -> None:
    """Have room for these attributes. Raises OSError ENOSPC."""
    _, outside = _layout(volume, inode, attributes)
    if outside:
        own = inode.file_acl and _users(volume, inode) == 1
        if not own:
            goal = volume.groups.all[(inode.ino - 1) // volume.super.inodes_per_group].first
            place, _ = volume.allocate(goal, 1)
            release_block(volume, inode)
            inode.file_acl = place
            volume.blocks.new(place)
            inode.count(volume.super.block_size // 512)
    else:
        release_block(volume, inode)
    inode.xattrs_changed = True
    volume.touch(inode)


def _users(volume: Volume, inode: Inode) -> int:
    users: int = _HEADER.unpack_from(volume.blocks.get(inode.file_acl))[1]
    return users or 1  # one that is new has none yet


def release_block(volume: Volume, inode: Inode) -> None:
    """The block belongs to it no more."""
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


def _rows(attributes: dict[bytes, bytes]) -> list[Row]:
    rows = []
    for name, value in attributes.items():
        if name in (acl.ACCESS, acl.DEFAULT):
            rows.append((2 if name == acl.ACCESS else 3, 0, b"", acl.to_disk(value)))
            continue
        if not name[0]:
            index, rest = name[1], name[2:]
        else:
            index = next(k for k in (1, 4, 6, 7) if name.startswith(_PREFIXES[k]))
            rest = name[len(_PREFIXES[index]) :]
        rows.append((index, len(rest), rest, value))
    return rows


def _layout(
    volume: Volume, inode: Inode, attributes: dict[bytes, bytes]
) -> tuple[list[Row], list[Row]]:
    """What goes into the inode, and what into a block.

    What was in the inode comes first, so that it stays there: what did fit fits again.

    Raises:
        OSError: ENOSPC.
    """
    rows = sorted(_rows(attributes), key=lambda row: row[:3] != (7, 4, b"data"))
    for order in (rows, sorted(rows, key=lambda row: (row[0] != 7, len(row[3])))):
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
        cost = (16 + row[1] + 3 & ~3) + (len(row[3]) + 3 & ~3)
        if cost <= room:
            room -= cost
            inside.append(row)
        else:
            block -= cost
            outside.append(row)
    if block < 0 or any(row[0] == 7 for row in outside):
        return None
    return inside, sorted(outside)


def store(volume: Volume, inode: Inode) -> None:
    """Encode the attributes; :func:`prepare` has made room for them."""
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
    """Change some bytes of what is inline, in their place."""
    assert inode.xattrs is not None
    data = bytearray(inode.xattrs[DATA])
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
    """Entries from ``at`` on, values from the end; returns the hash of all."""
    total, end = 0, len(raw)
    for index, length, rest, value in rows:
        padded = value + bytes(-len(value) % 4)
        one = _hash(rest, padded)
        end -= len(padded)
        raw[end : end + len(padded)] = padded
        offset = end - base if value else 0
        _ENTRY.pack_into(raw, at, length, index, offset, 0, len(value), one)
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
