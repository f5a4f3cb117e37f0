"""Partitions: where the blocks are that a logical volume names (UDF 2.2.8 to 2.2.10)."""

from __future__ import annotations

from loopfs.lean import NamedTuple, Protocol, Sequence
from loopfs.udf.errors import damaged

MOST_BLOCKS = 0xFFFFFFFF


class Run(NamedTuple):
    """Blocks one after the other: the first on the device, and how many are known to follow."""

    block: int
    length: int


class Partition(Protocol):
    """One of a logical volume; ``length`` is blocks."""

    length: int

    def run(self, block: int) -> Run:
        """Where a block is. Raises OSError EIO: nowhere."""


class Physical:
    """Blocks from ``root`` on."""

    def __init__(self, root: int, length: int) -> None:
        self.root = root
        self.length = length

    def run(self, block: int) -> Run:
        if block >= self.length:
            raise damaged()
        return Run(self.root + block, self.length - block)


class Sparable:
    """As physical, but for packets that are defect.

    Args:
        packet: blocks, a power of two.
        spared: for the first block of a packet where on the device it is instead.
    """

    def __init__(self, physical: Physical, packet: int, spared: dict[int, int]) -> None:
        self._physical = physical
        self.length = physical.length
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
    """Blocks of which a table tells where they are.

    Args:
        table: by virtual block.
    """

    def __init__(self, physical: Physical, table: Sequence[int]) -> None:
        self._physical = physical
        self._table = table
        self.length = physical.length

    def run(self, block: int) -> Run:
        if block >= len(self._table):
            raise damaged()
        return Run(self._physical.run(self._table[block]).block, 1)


class Metadata:
    """Blocks of a file; if they are not there, those of its mirror.

    Args:
        files: for each the extents: first block in ``physical``, number of blocks, None as the
            first for those that are not recorded.
    """

    def __init__(
        self, physical: Partition, files: Sequence[Sequence[tuple[int | None, int]]], length: int
    ) -> None:
        self._physical = physical
        self._files = files
        self.length = length

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
