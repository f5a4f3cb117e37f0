"""Extent trees on disk (fs/ext4/extents.c): reading, checking, and storing what has changed."""

from __future__ import annotations

import struct

from loopfs.ext4.crc import crc32c
from loopfs.ext4.errors import BadChecksum, Damaged
from loopfs.ext4.extents_status import MAX_WRITTEN
from loopfs.ext4.inode import Extent, Inode
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.ext4.volume import Volume

MAGIC = 0xF30A
MAX_DEPTH = 5
MAX_BLOCK = 0xFFFFFFFF  # the last block of a file
_HEADER, _EXTENT, _INDEX = struct.Struct("<HHHHI"), struct.Struct("<IHHI"), struct.Struct("<IIHH")
_ROOT_ROOM = 4  # the number of entries in the root, which is in the inode
EMPTY = _HEADER.pack(MAGIC, 0, _ROOT_ROOM, 0, 0).ljust(60, b"\0")


def load(volume: Volume, inode: Inode) -> None:
    """Read the tree into ``inode.map`` and ``inode.nodes``. Raises OSError EUCLEAN, EBADMSG."""
    extents: list[Extent] = []
    nodes: dict[int, None] = {}  # an ordered set
    _load(volume, inode, inode.block, _ROOT_ROOM, None, extents, nodes)
    inode.map, inode.nodes = extents, tuple(nodes)


def _load(
    volume: Volume,
    inode: Inode,
    node: bytes,
    room: int,
    depth: int | None,
    extents: list[Extent],
    nodes: dict[int, None],
) -> None:
    magic, count, most, found, _ = _HEADER.unpack_from(node)
    if magic != MAGIC or count > most or most > room:
        raise Damaged(f"a node of the extent tree is invalid in inode {inode.ino}", inode.ino)
    if found > MAX_DEPTH or (depth is not None and found != depth):
        raise Damaged(f"the extent tree has a wrong depth in inode {inode.ino}", inode.ino)
    end = extents[-1][0] + extents[-1][1] if extents else 0
    for at in range(12, 12 + 12 * count, 12):
        if not found:
            block, length, high, low = _EXTENT.unpack_from(node, at)
            unwritten = length > MAX_WRITTEN
            length -= MAX_WRITTEN if unwritten else 0
            place = volume.blocks.check(low | high << 32, max(length, 1))
            if not length or block < end or block + length > MAX_BLOCK + 1:
                raise Damaged(f"the extents of inode {inode.ino} are invalid", inode.ino)
            end = block + length
            extents.append((block, length, place, unwritten))
            continue
        _, low, high, _ = _INDEX.unpack_from(node, at)
        place = volume.blocks.check(low | high << 32)
        if place in nodes:
            raise Damaged(f"the extent tree of inode {inode.ino} has a node twice", inode.ino)
        nodes[place] = None
        child = bytes(volume.blocks.get(place))
        inner = (volume.super.block_size - 12) // 12
        _check_sum(volume, inode, child)
        _load(volume, inode, child, inner, found - 1, extents, nodes)


def _check_sum(volume: Volume, inode: Inode, node: bytes) -> None:
    if not volume.super.csum:
        return
    (most,) = struct.unpack_from("<H", node, 4)
    at = 12 + 12 * most
    if at + 4 > len(node):
        raise Damaged(f"a node of the extent tree is invalid in inode {inode.ino}", inode.ino)
    if crc32c(inode.seed, node[:at]) != struct.unpack_from("<I", node, at)[0]:
        raise BadChecksum(f"the checksum of the extents of inode {inode.ino} is wrong", inode.ino)


def nodes_needed(count: int, block_size: int) -> int:
    """Return how many blocks a tree with ``count`` extents needs, besides its root."""
    room, needed = (block_size - 12) // 12, 0
    while count > _ROOT_ROOM:
        count = -(-count // room)
        needed += count
    return needed


def fit_nodes(volume: Volume, inode: Inode, spare: int = 0) -> None:
    """Allocate or release blocks, so that the tree has as many as it needs.

    Args:
        spare: the number of extents that will be added.
    Raises:
        OSError: ENOSPC; then the tree has the same blocks as before.
    """
    extents = inode.map
    assert extents is not None
    needed = nodes_needed(len(extents) + spare, volume.super.block_size)
    unit, before = volume.super.block_size // 512, len(inode.nodes)
    try:
        while len(inode.nodes) < needed:
            inode.nodes += (volume.allocate(extents[-1][2], 1, metadata=True)[0],)
            inode.count(unit)
    except OSError:
        needed = before
        raise
    finally:
        _drop_nodes(volume, inode, needed)


def _drop_nodes(volume: Volume, inode: Inode, needed: int) -> None:
    unit = volume.super.block_size // 512
    while len(inode.nodes) > needed:
        volume.release(inode.nodes[-1], 1)
        inode.nodes = inode.nodes[:-1]
        inode.count(-unit)


def store(volume: Volume, inode: Inode) -> None:
    """Encode the tree; a block whose contents stay the same is not written."""
    extents = inode.map
    assert extents is not None
    rows = [
        _EXTENT.pack(block, count + MAX_WRITTEN * unwritten, place >> 32, place & 0xFFFFFFFF)
        for block, count, place, unwritten in extents
    ]
    firsts = [extent[0] for extent in extents]
    room, depth, spare = (volume.super.block_size - 12) // 12, 0, iter(inode.nodes)
    while len(rows) > _ROOT_ROOM:
        upper, upper_firsts = [], []
        for begin in range(0, len(rows), room):
            place = next(spare)
            _store_node(volume, inode, place, rows[begin : begin + room], room, depth)
            upper.append(_INDEX.pack(firsts[begin], place & 0xFFFFFFFF, place >> 32, 0))
            upper_firsts.append(firsts[begin])
        rows, firsts, depth = upper, upper_firsts, depth + 1
    head = _HEADER.pack(MAGIC, len(rows), _ROOT_ROOM, depth, 0)
    inode.block = (head + b"".join(rows)).ljust(60, b"\0")


def _store_node(
    volume: Volume, inode: Inode, place: int, rows: list[bytes], room: int, depth: int
) -> None:
    size = volume.super.block_size
    body = _HEADER.pack(MAGIC, len(rows), room, depth, 0) + b"".join(rows)
    node = bytearray(body.ljust(size, b"\0"))
    at = 12 + 12 * room
    if volume.super.csum and at + 4 <= size:
        struct.pack_into("<I", node, at, crc32c(inode.seed, node[:at]))
    if volume.blocks.get(place) != node:
        volume.blocks.put(place, node)
