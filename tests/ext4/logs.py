"""Random journals, as other kernels could leave them: all versions of checksums."""

from __future__ import annotations

import struct
from random import Random
from typing import NamedTuple

from loopfs.ext4 import recovery
from loopfs.ext4.crc import crc32c
from loopfs.ext4.device import Device
from loopfs.ext4.journal import JournalSuper
from loopfs.ext4.options import Options
from loopfs.ext4.super import INCOMPAT_RECOVER, OFFSET, SIZE, Super
from loopfs.ext4.volume import Volume
from tests.ext4.images import Memory

MAGIC = 0xC03B3998
_ESCAPED, _SAME_UUID, _LAST = 1, 2, 8
_COMPAT_CHECKSUM = 1
_REVOKE, _WIDE, _V2, _V3 = 1, 2, 8, 16
TARGETS = range(4000, 4060)  # blocks that nothing else has


class Version(NamedTuple):
    """Of a journal: its checksums (0 to 3), and whether block numbers have 64 bits."""

    checksum: int
    wide: bool


def _by_bits(state: int, data: bytes) -> int:
    """CRC-32, the highest bit first."""
    for byte in data:
        state ^= byte << 24
        for _ in range(8):
            state = (state << 1 ^ (0x04C11DB7 if state >> 31 else 0)) & 0xFFFFFFFF
    return state


class Writer:
    """Writes transactions into the journal of an image that has not been used."""

    def __init__(self, data: bytearray, version: Version, chance: Random) -> None:
        self._data = data
        self._version = version
        self._chance = chance
        device = Device(Memory(data))
        self._super = Super(device)
        self._size = self._super.block_size
        volume = Volume(device, self._super, Options(), read_only=True)
        header = recovery.journal_super(volume)
        assert header is not None
        self._header: JournalSuper = header
        self._at = chance.choice(
            (header.first, header.end - 6, chance.randrange(header.first, header.end))
        )
        self._tid = chance.choice((1, 77, 0xFFFFFFFE, chance.randrange(1, 1 << 32)))
        self._start = self._at, self._tid

    def write(self, transactions: int) -> None:
        """So many, and one that is not finished."""
        for _ in range(transactions):
            self._transaction(whole=True)
        if self._chance.random() < 0.6:
            self._transaction(whole=False)
        self._finish()

    def _put(self, block: bytes | bytearray) -> None:
        place = self._header.places[self._at] * self._size
        self._data[place : place + self._size] = block
        self._at = self._at + 1 if self._at + 1 < self._header.end else self._header.first

    def _head(self, kind: int) -> bytearray:
        block = bytearray(self._size)
        struct.pack_into(">III", block, 0, MAGIC, kind, self._tid)
        return block

    @property
    def _checked(self) -> bool:
        return self._version.checksum >= 2

    def _transaction(self, *, whole: bool) -> None:
        chance, state = self._chance, 0xFFFFFFFF
        parts = [chance.choice("ddr") for _ in range(chance.randrange(1, 4))]
        for part in parts:
            if part == "r":
                self._revoke()
                continue
            numbers = chance.sample(TARGETS, chance.randrange(1, 9))
            blocks = [self._content() for _ in numbers]
            state = self._descriptor(numbers, blocks, state)
        commit = self._head(2)
        struct.pack_into(">QI", commit, 48, 1_700_000_000 + self._tid % 1000, 5)
        if self._checked:
            struct.pack_into(">I", commit, 16, crc32c(self._header.seed, commit))
        elif self._version.checksum == 1:
            struct.pack_into(">BBxxI", commit, 12, 1, 4, state)
        self._put(commit if whole else bytes(self._size))
        self._tid = self._tid + 1 & 0xFFFFFFFF

    def _content(self) -> bytes:
        start = MAGIC.to_bytes(4, "big") if self._chance.random() < 0.3 else b"text"
        return start + self._chance.randbytes(self._size - 4)

    def _descriptor(self, numbers: list[int], blocks: list[bytes], state: int) -> int:
        descriptor, at = self._head(1), 12
        seed = crc32c(self._header.seed, struct.pack(">I", self._tid))
        logged = []
        for index, (number, content) in enumerate(zip(numbers, blocks, strict=True)):
            block = content
            flags = _SAME_UUID if index else 0
            if block[:4] == MAGIC.to_bytes(4, "big"):
                flags, block = flags | _ESCAPED, bytes(4) + block[4:]
            if index == len(numbers) - 1:
                flags |= _LAST
            value = crc32c(seed, block)
            if self._version.checksum == 3:
                tag = struct.pack(">IIII", number, flags, 0, value)
            else:
                tag = struct.pack(">IHH", number, value & 0xFFFF if self._checked else 0, flags)
                tag += bytes(4 * self._version.wide + 2 * (self._version.checksum == 2))
            descriptor[at : at + len(tag)] = tag
            at += len(tag)
            if not index:
                descriptor[at : at + 16] = self._header.raw[48:64]
                at += 16
            logged.append(block)
        if self._checked:
            struct.pack_into(
                ">I", descriptor, self._size - 4, crc32c(self._header.seed, descriptor)
            )
        for one in (bytes(descriptor), *logged):
            if self._version.checksum == 1:
                state = _by_bits(state, one)
            self._put(one)
        return state

    def _revoke(self) -> None:
        block, word = self._head(5), 8 if self._version.wide else 4
        numbers = self._chance.sample(TARGETS, self._chance.randrange(1, 12))
        struct.pack_into(">I", block, 12, 16 + word * len(numbers))
        for index, number in enumerate(numbers):
            block[16 + index * word : 16 + (index + 1) * word] = number.to_bytes(word, "big")
        if self._checked:
            struct.pack_into(">I", block, self._size - 4, crc32c(self._header.seed, block))
        self._put(block)

    def _finish(self) -> None:
        header, (start, sequence) = self._header, self._start
        incompat = _REVOKE | _WIDE * self._version.wide
        incompat |= {2: _V2, 3: _V3}.get(self._version.checksum, 0)
        compat = _COMPAT_CHECKSUM if self._version.checksum == 1 else 0
        struct.pack_into(">II", header.raw, 24, sequence, start)
        struct.pack_into(">III", header.raw, 36, compat, incompat, 0)
        header.raw[0x50] = 4 if self._checked else 0
        header.incompat = incompat
        struct.pack_into(">I", header.raw, 0xFC, header.checksum() if self._checked else 0)
        place = header.places[0] * self._size
        self._data[place : place + len(header.raw)] = header.raw
        self._super.set_u32(96, self._super.incompat | INCOMPAT_RECOVER)
        self._data[OFFSET : OFFSET + SIZE] = self._super.sealed()
