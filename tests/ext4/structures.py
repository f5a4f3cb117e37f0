"""The locations of structures in an image, and how to recompute their checksums."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from loopfs.ext4 import dir as directories
from loopfs.ext4 import htree, recovery
from loopfs.ext4.crc import crc16, crc32c
from loopfs.ext4.device import Device
from loopfs.ext4.inode import Inode
from loopfs.ext4.options import Options
from loopfs.ext4.super import INCOMPAT_MMP, OFFSET, SIZE, Super
from loopfs.ext4.volume import Volume
from tests.ext4.images import Memory

Seal = Callable[[bytearray], None]
_TAIL = 12  # bytes of a directory's block


class Structure(NamedTuple):
    """A part of an image.

    Attributes:
        kind: a word for reports.
        used: bytes from the beginning that mean something.
        seal: computes the checksum of the part, in an image.
    """

    kind: str
    offset: int
    length: int
    used: int
    seal: Seal


def _nothing(data: bytearray) -> None:
    """It has no checksum."""


def _put(data: bytearray, offset: int, value: int, size: int = 4) -> None:
    data[offset : offset + size] = (value & ((1 << size * 8) - 1)).to_bytes(size, "little")


class Finder:
    """Finds all structures of an image, which is a whole one."""

    def __init__(self, data: bytearray) -> None:
        self._device = Device(Memory(data))
        self._super = Super(self._device)
        self._volume = Volume(self._device, self._super, Options(), read_only=True)
        self.found: list[Structure] = []

    def all(self) -> list[Structure]:
        """Of all kinds."""
        self._add("superblock", OFFSET, SIZE, 700, self._seal_super)
        self._groups()
        self._protection()
        self._journal()
        volume = self._volume
        for ino in range(1, self._super.inodes + 1):
            if not volume.groups.is_used(ino):
                continue
            try:
                self._inode(volume.get(ino, special=True))
            except OSError:  # a number that is kept, with nothing in it
                continue
        return self.found

    def _add(self, kind: str, offset: int, length: int, used: int, seal: Seal) -> None:
        self.found.append(Structure(kind, offset, length, used, seal))

    def _block(self, kind: str, number: int, seal: Seal, used: int = 0) -> None:
        size = self._super.block_size
        self._add(kind, number * size, size, used or size, seal)

    def _sums(self, seal: Seal) -> Seal:
        return seal if self._super.csum else _nothing

    # --- what the filesystem has once -----------------------------------------------------

    def _seal_super(self, data: bytearray) -> None:
        if self._super.csum:
            _put(data, OFFSET + 1020, crc32c(0xFFFFFFFF, data[OFFSET : OFFSET + 1020]))

    def _groups(self) -> None:
        sb = self._super
        per = sb.block_size // sb.desc_size
        for group in self._volume.groups.all[:8]:
            block, index = divmod(group.number, per)
            at = sb.descriptor_block(block) * sb.block_size + index * sb.desc_size

            def seal(data: bytearray, number: int = group.number, at: int = at) -> None:
                raw = bytes(data[at : at + sb.desc_size])
                head = struct.pack("<I", number)
                if sb.csum:
                    state = crc32c(crc32c(sb.seed, head), raw[:30] + b"\0\0" + raw[32:])
                else:
                    state = crc16(crc16(crc16(0xFFFF, sb.uuid), head), raw[:30] + raw[32:])
                _put(data, at + 30, state, 2)

            self._add("descriptor", at, sb.desc_size, sb.desc_size, seal)
            for kind, place, slot, bits in (
                ("block bitmap", group.block_bitmap, 24, sb.blocks_per_group),
                ("inode bitmap", group.inode_bitmap, 26, sb.inodes_per_group),
            ):

                def seal_map(
                    data: bytearray,
                    place: int = place * sb.block_size,
                    to: int = at + slot,
                    high: int = at + 32 + slot,
                    size: int = bits // 8,
                    after: Seal = seal,
                ) -> None:
                    if sb.csum:
                        value = crc32c(sb.seed, data[place : place + size])
                        _put(data, to, value, 2)
                        if sb.desc_size >= 64:
                            _put(data, high, value >> 16, 2)
                    after(data)

                self._block(kind, place, seal_map, bits // 8)

    def _protection(self) -> None:
        sb = self._super
        if sb.incompat & INCOMPAT_MMP:
            at = sb.u32(360) * sb.block_size

            def seal(data: bytearray) -> None:
                _put(data, at + 1020, crc32c(sb.seed, data[at : at + 1020]))

            self._add("multiple mount protection", at, 1024, 120, self._sums(seal))

    def _journal(self) -> None:
        header = recovery.journal_super(self._volume)
        if header is None:
            return
        size, at = self._super.block_size, header.places[0] * self._super.block_size

        def seal_header(data: bytearray) -> None:
            if header.is_checksummed:
                raw = data[at : at + 0xFC] + bytes(4) + data[at + 0x100 : at + 1024]
                data[at + 0xFC : at + 0x100] = crc32c(0xFFFFFFFF, raw).to_bytes(4, "big")

        self._add("journal superblock", at, 1024, 0x100, seal_header)
        for place in header.places[header.first :][:400]:
            begin = place * size
            magic, kind = struct.unpack_from(">II", self._device.read(begin, 8))
            if magic != 0xC03B3998:
                continue
            slot = 16 if kind == 2 else size - 4

            def seal(data: bytearray, begin: int = begin, slot: int = slot) -> None:
                if header.is_checksummed:
                    raw = bytearray(data[begin : begin + size])
                    raw[slot : slot + 4] = bytes(4)
                    value = crc32c(header.seed, raw)
                    data[begin + slot : begin + slot + 4] = value.to_bytes(4, "big")

            self._block("journal block", place, seal, 200)

    # --- what each inode has -----------------------------------------------------------------

    def _inode(self, inode: Inode) -> None:
        sb, size = self._super, self._super.block_size
        group, index = divmod(inode.ino - 1, sb.inodes_per_group)
        at = self._volume.groups.all[group].inode_table * size + index * sb.inode_size

        def seal(data: bytearray) -> None:
            raw = data[at : at + sb.inode_size]
            raw[124:126] = b"\0\0"
            wide = sb.inode_size > 128 and int.from_bytes(raw[128:130], "little") >= 4
            if wide:
                raw[130:132] = b"\0\0"
            value = crc32c(crc32c(sb.seed, struct.pack("<I", inode.ino) + raw[100:104]), raw)
            _put(data, at + 124, value, 2)
            if wide:
                _put(data, at + 130, value >> 16, 2)

        self._add("inode", at, sb.inode_size, sb.inode_size, self._sums(seal))
        if inode.file_acl:
            self._xattr_block(inode.file_acl)
        if inode.has_inline_data or inode.is_fast_link:
            return
        self._volume.map(inode)
        for node in inode.nodes:
            self._extent_node(inode, node)
        for place in (inode.indirect or {}).values():
            self._block("indirect block", place, _nothing)
        if inode.is_dir:
            for number, place in enumerate(directories.load(self._volume, inode).blocks):
                self._directory_block(inode, number, place)

    def _xattr_block(self, place: int) -> None:
        size = self._super.block_size

        def seal(data: bytearray) -> None:
            raw = bytearray(data[place * size : (place + 1) * size])
            raw[16:20] = bytes(4)
            seed = crc32c(self._super.seed, struct.pack("<Q", place))
            _put(data, place * size + 16, crc32c(seed, raw))

        self._block("attributes", place, self._sums(seal))

    def _extent_node(self, inode: Inode, place: int) -> None:
        size = self._super.block_size

        def seal(data: bytearray) -> None:
            at = place * size
            end = 12 + 12 * int.from_bytes(data[at + 4 : at + 6], "little")
            if end + 4 <= size:
                _put(data, at + end, crc32c(inode.seed, data[at : at + end]))

        self._block("extents", place, self._sums(seal), 12 + 12 * 20)

    def _directory_block(self, inode: Inode, number: int, place: int) -> None:
        size, head = self._super.block_size, 8 if number else 32
        block = self._volume.blocks.get(place)
        indexed = directories.is_indexed(self._volume, inode)
        node = indexed and htree.is_node(block, number, size)

        def seal(data: bytearray) -> None:
            at = place * size
            raw = data[at : at + size]
            if not node:
                _put(data, at + size - 4, crc32c(inode.seed, raw[:-_TAIL]))
                return
            most, count = struct.unpack_from("<HH", raw, head)
            if head + most * 8 + 8 <= size:
                tail = head + most * 8
                value = crc32c(inode.seed, raw[: head + count * 8])
                _put(data, at + tail + 4, crc32c(value, raw[tail : tail + 4] + bytes(4)))

        kind = "directory index" if node else "directory"
        self._block(kind, place, self._sums(seal), 400)


def find(data: bytearray) -> list[Structure]:
    """All structures of a whole image."""
    return Finder(data).all()
