"""Writing the journal (fs/jbd2; Documentation/filesystems/ext4/journal.rst).

A commit appends a transaction; afterwards its blocks are written to their final locations. When the
journal is full, or when a block that it holds may be reused for data, everything is flushed and the
journal starts empty, so that no revoke records are needed. :mod:`~loopfs.ext4.recovery` replays a
journal that another driver or a crash has left.
"""

from __future__ import annotations

import struct
import time
from itertools import pairwise

from loopfs.ext4.crc import crc32c
from loopfs.ext4.device import Device, write_blocks
from loopfs.ext4.errors import Damaged, invalid
from loopfs.ext4.super import Super
from loopfs.lean import NamedTuple

MAGIC = 0xC03B3998
DESCRIPTOR, COMMIT, SUPER_V1, SUPER_V2, REVOKE = 1, 2, 3, 4, 5
TAG_ESCAPE, TAG_SAME_UUID, TAG_LAST = 1, 2, 8
COMPAT_CHECKSUM = 1
INCOMPAT_REVOKE, INCOMPAT_64BIT, INCOMPAT_ASYNC_COMMIT = 1, 2, 4
INCOMPAT_CSUM_V2, INCOMPAT_CSUM_V3, INCOMPAT_FAST_COMMIT = 8, 16, 32
INCOMPAT_KNOWN = 63
SUPER_SIZE = 1024
HEADER = struct.Struct(">III")  # magic, type, sequence
_CRC32C = 4  # JBD2_CRC32C_CHKSUM
_COMMIT_SIZE = 60  # bytes: struct commit_header; the rest of its block is zeros


class Transaction(NamedTuple):
    """What one commit writes.

    Args:
        numbers: the numbers of its blocks, ascending.
        blocks: their contents.
        freed: runs of blocks that it frees.
        names: numbers of the directory blocks; without a journal these are written last.
    """

    numbers: list[int]
    blocks: list[bytes]
    freed: list[tuple[int, int]]
    names: frozenset[int]


class JournalSuper:
    """The journal's superblock.

    Args:
        places: the numbers on disk of the journal's blocks.
    Raises:
        OSError: EUCLEAN; EINVAL with a sentence.
    """

    def __init__(self, device: Device, sb: Super, places: list[int]) -> None:
        self.places = places
        self.block_size = sb.block_size
        if not places:
            raise Damaged("the journal has no blocks")
        self._device = device
        self.raw = bytearray(device.read(places[0] * sb.block_size, SUPER_SIZE))
        magic, self.kind, _, size, length, self.first, self.sequence, self.start = (
            struct.unpack_from(">8I", self.raw)
        )
        if magic != MAGIC or self.kind not in (SUPER_V1, SUPER_V2) or size != sb.block_size:
            raise Damaged("the journal's superblock is invalid")
        if not 0 < self.first < length or length > len(places) or length - self.first < 16:
            raise Damaged("the size of the journal is wrong")
        self.end = length
        self.compat, self.incompat, self.ro_compat = (
            struct.unpack_from(">III", self.raw, 36) if self.kind == SUPER_V2 else (0, 0, 0)
        )
        if self.incompat & ~INCOMPAT_KNOWN or self.ro_compat:
            raise invalid("the journal has features that are not supported")
        if self.start and not self.first <= self.start < self.end:
            raise Damaged("the start of the journal is wrong")
        if self.is_checksummed and self.checksum() != struct.unpack_from(">I", self.raw, 0xFC)[0]:
            raise Damaged("the checksum of the journal's superblock is wrong")
        self.seed = crc32c(0xFFFFFFFF, self.raw[48:64])

    @property
    def is_checksummed(self) -> bool:
        """Whether the journal has checksums of version 2 or 3."""
        return bool(self.incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3))

    def checksum(self) -> int:
        """Return the checksum of the superblock itself."""
        return crc32c(0xFFFFFFFF, self.raw[:0xFC] + bytes(4) + self.raw[0x100:])

    def write(self, sequence: int, start: int) -> None:
        """Write the superblock, with the journal's first transaction at ``start``; 0: none."""
        struct.pack_into(">II", self.raw, 24, sequence, start)
        if self.is_checksummed:
            struct.pack_into(">I", self.raw, 0xFC, self.checksum())
        self._device.write(self.places[0] * self.block_size, self.raw)

    def take_features(self, sb: Super) -> None:
        """Set the features that suit the filesystem. The journal must be empty."""
        self.incompat = (INCOMPAT_64BIT if sb.is_64bit else 0) | (
            INCOMPAT_CSUM_V3 if sb.csum else 0
        )
        self.kind = SUPER_V2
        struct.pack_into(">I", self.raw, 4, SUPER_V2)
        struct.pack_into(">III", self.raw, 36, 0, self.incompat, 0)
        self.raw[0x50] = _CRC32C if sb.csum else 0
        if not sb.csum:
            struct.pack_into(">I", self.raw, 0xFC, 0)


class Journal:
    """The journal of a mounted filesystem. The caller orders the other writes.

    Attributes:
        logged: the blocks in transactions that a replay would write.
        most: the number of blocks that one transaction should not exceed.
    """

    def __init__(self, device: Device, sb: Super, header: JournalSuper) -> None:
        self._device = device
        self._size = sb.block_size
        self._header = header
        self._csum = bool(header.incompat & INCOMPAT_CSUM_V3)
        self._wide = bool(header.incompat & INCOMPAT_64BIT)
        self._tag = 16 if self._csum else 12 if self._wide else 8
        self._sequence = header.sequence
        self._head = 0  # 0: the journal is empty
        self.logged: set[int] = set()
        self.most = (header.end - header.first) // 4

    def _needed(self, count: int) -> int:
        per = (self._size - 12 - 16 - 4) // self._tag
        return count + -(-count // per) + 1

    def fits(self, count: int) -> bool:
        """Return whether a transaction of ``count`` blocks fits into the empty journal."""
        return bool(self._needed(count) <= self._header.end - self._header.first)

    def has_room(self, count: int) -> bool:
        """Return whether a transaction of ``count`` blocks fits behind those in the journal."""
        return bool((self._head or self._header.first) + self._needed(count) <= self._header.end)

    def append(self, transaction: Transaction) -> None:
        """Write a transaction; it is committed when the device is flushed."""
        header, tid = self._header, self._sequence
        at = self._head or header.first
        blocks = self._encode(transaction, tid)
        places = header.places[at : at + len(blocks)]
        last = bytes(blocks[-1])
        # The commit block is zeros at first; then only its first bytes change, in one sector.
        blocks[-1] = bytes(self._size)
        for begin, end in _ascending(places):
            write_blocks(self._device, self._size, places[begin:end], blocks[begin:end])
        # Without this, a replay may find the commit block but wrong checksums, and fail.
        self._device.barrier()
        self._device.write(places[-1] * self._size, last[:_COMMIT_SIZE])
        if not self._head:
            self._device.barrier()
            header.write(tid, header.first)
        self._head = at + len(places)
        self._sequence = tid + 1 & 0xFFFFFFFF
        self.logged.update(transaction.numbers)

    def _encode(self, transaction: Transaction, tid: int) -> list[bytes | bytearray]:
        out: list[bytes | bytearray] = []
        numbers, blocks = transaction.numbers, transaction.blocks
        seed = self._header.seed
        each = crc32c(seed, struct.pack(">I", tid))
        per = (self._size - 12 - 16 - 4) // self._tag
        for begin in range(0, len(numbers), per):
            descriptor = bytearray(self._size)
            HEADER.pack_into(descriptor, 0, MAGIC, DESCRIPTOR, tid)
            at = HEADER.size
            out.append(descriptor)
            end = min(begin + per, len(numbers))
            for index in range(begin, end):
                data, number = blocks[index], numbers[index]
                flags = (TAG_SAME_UUID if index > begin else 0) | (TAG_LAST * (index == end - 1))
                if data[:4] == b"\xc0\x3b\x39\x98":
                    data, flags = bytes(4) + data[4:], flags | TAG_ESCAPE
                self._put_tag(
                    descriptor, at, number, flags, crc32c(each, data) if self._csum else 0
                )
                at += self._tag
                if not flags & TAG_SAME_UUID:
                    descriptor[at : at + 16] = self._header.raw[48:64]
                    at += 16
                out.append(data)
            if self._csum:
                struct.pack_into(">I", descriptor, self._size - 4, crc32c(seed, descriptor))
        commit = bytearray(self._size)
        HEADER.pack_into(commit, 0, MAGIC, COMMIT, tid)
        struct.pack_into(">QI", commit, 48, *divmod(time.time_ns(), 1_000_000_000))
        if self._csum:
            struct.pack_into(">I", commit, 16, crc32c(seed, commit))
        out.append(commit)
        return out

    def _put_tag(self, block: bytearray, at: int, number: int, flags: int, value: int) -> None:
        low, high = number & 0xFFFFFFFF, number >> 32
        if self._csum:
            struct.pack_into(">IIII", block, at, low, flags, high, value)
        else:
            struct.pack_into(">IHH", block, at, low, 0, flags)
            if self._wide:
                struct.pack_into(">I", block, at + 8, high)

    def clear(self) -> None:
        """Empty the journal. All its blocks must have been written to their final locations."""
        if self._head:
            self._device.barrier()
            self._head = 0
            self._header.write(self._sequence, 0)
            self._device.barrier()
        self.logged.clear()


def _ascending(places: list[int]) -> list[tuple[int, int]]:
    """Return where to cut a list so that each part ascends: (begin, end) of the parts."""
    cuts = [0, *(n for n in range(1, len(places)) if places[n] < places[n - 1]), len(places)]
    return list(pairwise(cuts))
