"""Partition maps of a logical volume (3/10.7, UDF 2.2.8 to 2.2.10)."""

from __future__ import annotations

import struct

from loopfs.lean import TYPE_CHECKING, Callable
from loopfs.udf import tag
from loopfs.udf.errors import damaged
from loopfs.udf.icb import RECORDED, Extent, Inode
from loopfs.udf.partition import Metadata, Partition, Physical, Sparable, Virtual

if TYPE_CHECKING:
    from loopfs.udf.recognition import Blocks, Described

_TYPE1, _TYPE2 = 1, 2
_VIRTUAL, _SPARABLE, _METADATA = (
    b"*UDF Virtual Partition",
    b"*UDF Sparable Partition",
    b"*UDF Metadata Partition",
)
_NUMBER1 = struct.Struct("<4xH")
_NUMBER2 = struct.Struct("<38xH")
_IDENT, _REVISION = slice(5, 28), slice(28, 30)
_PACKET = struct.Struct("<40xHBxI")  # blocks of a packet, number of tables, bytes of each table
_TABLES_AT, _MOST_TABLES = 48, 4
_FILES = struct.Struct("<40xII")  # metadata file and its mirror
_SPARING = b"*UDF Sparing Table"
_ENTRIES_AT, _NO_PACKET = 56, 0xFFFFFFF0
_OLD_VAT, _OLD_VAT_TAIL = 0x0200, 36  # below this revision a table has no header, but such a tail
_BEFORE_LAST = 3  # blocks before the last one that may hold the table
MOST_TABLE = 16 << 20  # bytes of a virtual allocation table

ReadInode = Callable[[int, int], Inode]  # by partition and block; raises OSError
ReadFile = Callable[[Inode, int, int], bytes]
Extents = Callable[[Inode], list[Extent]]


class Maps:
    """The partitions that the maps of a volume describe.

    Args:
        inode, content, extents: read a file on partitions that have been found already.
    Attributes:
        partitions: by their reference number; None for those that cannot be used.
    Raises:
        OSError: EIO.
    """

    def __init__(
        self,
        described: Described,
        blocks: Blocks,
        inode: ReadInode,
        content: ReadFile,
        extents: Extents,
    ) -> None:
        self._described = described
        self._blocks = blocks
        self._inode, self._content, self._extents = inode, content, extents
        self.partitions: list[Partition | None] = [None] * len(described.maps)

    def read(self) -> None:
        """Read the maps; those of physical partitions first, as the others refer to them."""
        later: list[tuple[int, bytes]] = []
        for index, raw in enumerate(self._described.maps):
            if raw[0] == _TYPE1:
                self.partitions[index] = self._physical(_NUMBER1.unpack_from(raw)[0])
            elif raw[0] == _TYPE2 and len(raw) >= 64:
                if raw[_IDENT].startswith(_SPARABLE):
                    self.partitions[index] = self._sparable(raw)
                else:
                    later.append((index, raw))
        for index, raw in later:
            number = _NUMBER2.unpack_from(raw)[0]
            if raw[_IDENT].startswith(_VIRTUAL):
                self.partitions[index] = self._virtual(raw, number)
            elif raw[_IDENT].startswith(_METADATA):
                self.partitions[index] = self._metadata(raw, number)

    def _physical(self, number: int) -> Physical:
        for info in self._described.partitions:
            if info.number == number:
                return Physical(info.root, info.length, info.bitmap)
        raise damaged()

    def _under(self, number: int) -> int:
        """Return the reference number of the partition that a virtual or metadata one is on."""
        for index, raw in enumerate(self._described.maps):
            unpack = _NUMBER1 if raw[0] == _TYPE1 else _NUMBER2
            if self.partitions[index] is not None and unpack.unpack_from(raw)[0] == number:
                return index
        raise damaged()

    def _sparable(self, raw: bytes) -> Sparable:
        packet, tables, length = _PACKET.unpack_from(raw)
        if not packet or packet & (packet - 1) or tables > _MOST_TABLES:
            raise damaged()
        if length > self._blocks.size:
            raise damaged()
        spared: dict[int, int] = {}
        for block in struct.unpack_from(f"<{tables}I", raw, _TABLES_AT):
            found = self._blocks.tagged(block)
            if found is not None and found[0] == 0 and found[1][17:40].startswith(_SPARING):
                spared = _spared(found[1])
                break
        return Sparable(self._physical(_NUMBER2.unpack_from(raw)[0]), packet, spared)

    def _virtual(self, raw: bytes, number: int) -> Virtual:
        under = self._under(number)
        physical = self.partitions[under]
        assert isinstance(physical, Physical)
        table = self._table(under, physical)
        data = self._content(table, 0, min(table.size, MOST_TABLE))
        if int.from_bytes(raw[_REVISION], "little") < _OLD_VAT:
            data = data[: max(len(data) - _OLD_VAT_TAIL, 0)]
        else:
            data = data[int.from_bytes(data[:2], "little") :]
        return Virtual(physical, memoryview(data[: len(data) & ~3]).cast("I"))

    def _table(self, under: int, physical: Physical) -> Inode:
        """Return the virtual allocation table, whose entry is in the last block written."""
        for last in dict.fromkeys((self._described.last, self._blocks.count - 1)):
            for block in range(last, last - _BEFORE_LAST - 1, -1):
                if block >= physical.root:
                    try:
                        return self._inode(under, block - physical.root)
                    except OSError:
                        continue
        raise damaged()

    def _metadata(self, raw: bytes, number: int) -> Metadata:
        under = self._under(number)
        physical = self.partitions[under]
        assert physical is not None
        files: list[list[tuple[int | None, int]]] = []
        for block in _FILES.unpack_from(raw):
            try:
                files.append(self._places(self._inode(under, block)))
            except OSError:  # the mirror may be readable
                continue
        if not files:
            raise damaged()
        length = max(sum(count for _, count in extents) for extents in files)
        return Metadata(physical, files, length)

    def _places(self, inode: Inode) -> list[tuple[int | None, int]]:
        size = self._blocks.size
        return [
            (each.block if each.kind == RECORDED else None, each.length // size)
            for each in self._extents(inode)
        ]


def _spared(raw: bytes) -> dict[int, int]:
    count = int.from_bytes(raw[48:50], "little")
    usable = raw[_ENTRIES_AT : _ENTRIES_AT + 8 * count]
    entries = struct.iter_unpack("<II", usable[: len(usable) & ~7])
    return {packet: place for packet, place in entries if packet < _NO_PACKET}


def identify_entry(raw: bytes, location: int) -> int:
    """Return the tag identifier of a block. Raises OSError EIO: it has none."""
    ident = tag.identify(raw, location)
    if ident is None:
        raise damaged()
    return ident
