"""Replay of a journal (fs/jbd2/recovery.c): reading the transactions that were committed."""

from __future__ import annotations

import struct
import zlib

from loopfs.ext4 import journal
from loopfs.ext4.crc import crc32c
from loopfs.ext4.device import Device
from loopfs.ext4.errors import invalid
from loopfs.ext4.inode import JOURNAL_INO, Inode
from loopfs.ext4.journal import HEADER, MAGIC, JournalSuper
from loopfs.ext4.super import COMPAT_HAS_JOURNAL, Super
from loopfs.ext4.volume import Volume
from loopfs.lean import NamedTuple

_REVERSED = bytes(int(f"{n:08b}"[::-1], 2) for n in range(256))
_TAIL = 4  # bytes: the checksum of a descriptor or revoke block


class _Logged(NamedTuple):
    """A block in the journal: its final number, its place in the journal, whether it is escaped."""

    number: int
    at: int
    escaped: bool
    checksum: int


class Replay(NamedTuple):
    """The result of reading a journal.

    Args:
        blocks: the contents of blocks by their numbers.
        sequence: the sequence number of the next transaction.
    """

    blocks: dict[int, bytes]
    sequence: int


def journal_super(volume: Volume) -> JournalSuper | None:
    """Return the journal's superblock, or None. Raises OSError EUCLEAN, EINVAL, EBADMSG."""
    sb = volume.super
    if not sb.compat & COMPAT_HAS_JOURNAL:
        return None
    if sb.u32(228) or sb.u32(224) != JOURNAL_INO:
        raise invalid("its journal is on another device, which is not supported")
    inode = _journal_inode(volume)
    places = [place + n for _, count, place, _ in volume.map(inode) for n in range(count)]
    return JournalSuper(volume.device, sb, places[: inode.size // sb.block_size])


def _journal_inode(volume: Volume) -> Inode:
    """Read the inode without checking the groups, whose descriptors may be torn after a crash."""
    sb, blocks = volume.super, volume.blocks
    descriptor = blocks.get(sb.descriptor_block(0))
    low, high = struct.unpack_from("<I", descriptor, 8)[0], 0
    if sb.desc_size >= 64:
        (high,) = struct.unpack_from("<I", descriptor, 40)
    table = blocks.check(low | high << 32, sb.itable_blocks)
    place = table * sb.block_size + (JOURNAL_INO - 1) * sb.inode_size
    number, offset = divmod(place, sb.block_size)
    inode = Inode(JOURNAL_INO)
    raw = bytes(blocks.get(number)[offset : offset + sb.inode_size])
    inode.take(raw, sb.block_size)
    if sb.csum:
        inode.compute_seed(sb.seed)
        inode.check_sum(raw)
    return inode


def scan(device: Device, sb: Super, header: JournalSuper) -> Replay:
    """Read the committed transactions of a journal. Raises OSError EINVAL, EIO."""
    if header.incompat & journal.INCOMPAT_FAST_COMMIT:
        raise invalid("its journal has fast commits, which are not supported; run e2fsck first")
    reader = _Reader(device, sb, header)
    transactions, revoked = reader.transactions()
    blocks: dict[int, bytes] = {}
    for tid, logged in transactions:
        for one in logged:
            last = revoked.get(one.number)
            if (last is not None and (tid - last) & 0xFFFFFFFF > 0x7FFFFFFF) or last == tid:
                continue
            if not sb.first_data_block <= one.number < sb.blocks:
                raise invalid("its journal has a block that is not in the filesystem")
            data = reader.block(one.at)
            if one.escaped:
                data = MAGIC.to_bytes(4, "big") + data[4:]
            blocks[one.number] = data
    return Replay(blocks, header.sequence + len(transactions) + 1 & 0xFFFFFFFF)


class _Reader:
    def __init__(self, device: Device, sb: Super, header: JournalSuper) -> None:
        self._device = device
        self._size = sb.block_size
        self._header = header
        self._v3 = bool(header.incompat & journal.INCOMPAT_CSUM_V3)
        self._v2 = bool(header.incompat & journal.INCOMPAT_CSUM_V2)
        self._wide = bool(header.incompat & journal.INCOMPAT_64BIT)
        self._v1 = bool(header.compat & journal.COMPAT_CHECKSUM)

    def block(self, at: int) -> bytes:
        return self._device.read(self._header.places[at] * self._size, self._size)

    def _next(self, at: int) -> int:
        return at + 1 if at + 1 < self._header.end else self._header.first

    def transactions(self) -> tuple[list[tuple[int, list[_Logged]]], dict[int, int]]:
        """Return the complete transactions, and for each revoked block the last that revokes it."""
        whole: list[tuple[int, list[_Logged]]] = []
        revoked: dict[int, int] = {}
        at, tid = self._header.start, self._header.sequence
        logged: list[_Logged] = []
        new: set[int] = set()
        state = 0xFFFFFFFF
        for _ in range(self._header.end):
            block = self.block(at)
            magic, kind, sequence = HEADER.unpack_from(block)
            if magic != MAGIC or sequence != tid:
                break
            if kind == journal.DESCRIPTOR:
                tags = self._tags(block, tid) if self._is_whole(block) else None
                if tags is None:
                    break
                state = _crc32_be(state, block) if self._v1 else state
                for number, flags, value in tags:
                    at = self._next(at)
                    logged.append(_Logged(number, at, bool(flags & journal.TAG_ESCAPE), value))
                    state = _crc32_be(state, self.block(at)) if self._v1 else state
                if len(logged) > self._header.end:
                    break
            elif kind == journal.REVOKE:
                if not self._is_whole(block):
                    break
                new |= self._revoked(block)
            elif kind == journal.COMMIT:
                if not self._is_committed(block, state) or not self._are_whole(logged, tid):
                    break
                whole.append((tid, logged))
                revoked.update(dict.fromkeys(new, tid))
                logged, new, state = [], set(), 0xFFFFFFFF
                tid = tid + 1 & 0xFFFFFFFF
            else:
                break
            at = self._next(at)
        return whole, revoked

    def _is_whole(self, block: bytes) -> bool:
        if not self._header.is_checksummed:
            return True
        (value,) = struct.unpack_from(">I", block, self._size - _TAIL)
        return crc32c(self._header.seed, block[:-_TAIL] + bytes(_TAIL)) == int(value)

    def _is_committed(self, block: bytes, state: int) -> bool:
        if self._header.is_checksummed:
            (value,) = struct.unpack_from(">I", block, 16)
            return crc32c(self._header.seed, block[:16] + bytes(4) + block[20:]) == int(value)
        if self._v1 and block[12:14] == b"\1\4":
            (value,) = struct.unpack_from(">I", block, 16)
            return bool(value == int(f"{state:032b}"[::-1], 2))
        return True

    def _are_whole(self, logged: list[_Logged], tid: int) -> bool:
        if not self._header.is_checksummed:
            return True
        seed = crc32c(self._header.seed, struct.pack(">I", tid))
        mask = 0xFFFFFFFF if self._v3 else 0xFFFF
        return all(crc32c(seed, self.block(one.at)) & mask == one.checksum for one in logged)

    def _tags(self, block: bytes, tid: int) -> list[tuple[int, int, int]] | None:
        """Return (number, flags, checksum) of each tag of a descriptor block."""
        size = 16 if self._v3 else 8 + 4 * self._wide + 2 * self._v2
        end = self._size - (_TAIL if self._header.is_checksummed else 0)
        at, tags = HEADER.size, []
        while at + size <= end:
            if self._v3:
                low, flags, high, value = struct.unpack_from(">IIII", block, at)
            else:
                low, value, flags = struct.unpack_from(">IHH", block, at)
                high = struct.unpack_from(">I", block, at + 8)[0] if self._wide else 0
            tags.append((low | (high << 32 if self._wide else 0), flags, value))
            at += size if flags & journal.TAG_SAME_UUID else size + 16
            if flags & journal.TAG_LAST:
                return tags
        return tags

    def _revoked(self, block: bytes) -> set[int]:
        (used,) = struct.unpack_from(">I", block, HEADER.size)
        word = 8 if self._wide else 4
        end = min(used, self._size)
        end -= (end - 16) % word
        if end <= 16:
            return set()
        return {
            number for (number,) in struct.iter_unpack(">Q" if self._wide else ">I", block[16:end])
        }


def _crc32_be(state: int, data: bytes) -> int:
    """Continue a CRC-32, most significant bit first; the state is bit-reversed, as zlib needs."""
    return zlib.crc32(data.translate(_REVERSED), state ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
