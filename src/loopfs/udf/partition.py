"""Partitions: the mapping of the blocks of a logical volume (UDF 2.2.8 to 2.2.10)."""

from __future__ import annotations

from loopfs.lean import NamedTuple, Protocol, Sequence
from loopfs.udf.errors import damaged

MOST_BLOCKS = 0xFFFFFFFF


class Run(NamedTuple):
    """Consecutive blocks: the first on the device, and how many are known to follow it."""

    block: int
    length: int


class Partition(Protocol):
    """A partition of a logical volume; ``length`` is in blocks.

    ``bitmap`` is the first block of the bitmap of free blocks, or None.
    """

    length: int
    bitmap: int | None

    def run(self, block: int) -> Run:
        """Return where a block is. Raises OSError EIO: it is not mapped."""


class Physical:
    """A partition of consecutive blocks from ``root`` on."""

    def __init__(self, root: int, length: int, bitmap: int | None = None) -> None:
        self.root = root
        self.length = length
        self.bitmap = bitmap

    def run(self, block: int) -> Run:
        if block >= self.length:
            raise damaged()
        return Run(self.root + block, self.length - block)


class Sparable:
    """A physical partition with replacements for defective packets.

    Args:
        packet: the number of blocks of a packet, a power of two.
        spared: the replacement on the device, by the first block of the packet.
    """

    def __init__(self, physical: Physical, packet: int, spared: dict[int, int]) -> None:
        self._physical = physical
        self.length = physical.length
        self.bitmap = physical.bitmap
        self._packet = packet
        self._spared = spared

    def run(self, block: int) -> Run:
        within = block & (self._packet - 1)
        first, rest = block - within, self._packet - within
        if (instead := self._spared.get(first)) is not None:
            return Run(instead + within, rest)
        found = self._physical.run(block)
        return Run(found.block, min(found.length, rest) if self._spared else found.length)


class Virtual:
    """A partition whose blocks are mapped by a table.

    Args:
        table: physical blocks by virtual block.
    """

    def __init__(self, physical: Physical, table: Sequence[int]) -> None:
        self._physical = physical
        self._table = table
        self.length = physical.length
        self.bitmap: int | None = None

    def run(self, block: int) -> Run:
        if block >= len(self._table):
            raise damaged()
        return Run(self._physical.run(self._table[block]).block, 1)


class Metadata:
    """A partition whose blocks are those of a file, or of its mirror if they are not recorded.

    Args:
        files: the extents of each file: first block in ``physical``, number of blocks. The first
            block is None if they are not recorded.
    """

    def __init__(
        self, physical: Partition, files: Sequence[Sequence[tuple[int | None, int]]], length: int
    ) -> None:
        self._physical = physical
        self._files = files
        self.length = length
        self.bitmap: int | None = None

    def run(self, block: int) -> Run:
        for extents in self._files:
            left = block
            for first, count in extents:
                if left < count:
                    if first is None:
                        break
                    found = self._physical.run(first + left)
                    return Run(found.block, min(found.length, count - left))
                left -= count
        raise damaged()
