"""Metadata blocks in memory: the equivalent of the buffer cache of fs/ext4."""

from __future__ import annotations

from loopfs.ext4.device import Device
from loopfs.ext4.errors import Damaged
from loopfs.ext4.super import Super

_CACHE_BYTES = 12 << 20


class Blocks:
    """A cache of metadata blocks.

    Attributes:
        dirty: numbers of the blocks that the next commit writes.
        read_only: nothing is changed, so any block can be dropped from the cache at any time.
        busy: for each block, the number of committed transactions that contain it and are not
            written completely; the copy on disk is older than the one in memory.
        directories: dirty directory blocks, with the seeds of their checksums.
    """

    def __init__(self, device: Device, sb: Super) -> None:
        self.device = device
        self.size = sb.block_size
        self.count = sb.blocks
        self._first = sb.first_data_block
        self._cache: dict[int, bytearray] = {}
        self._limit = _CACHE_BYTES // self.size
        self.read_only = False
        self.dirty: set[int] = set()
        self.busy: dict[int, int] = {}
        self.directories: dict[int, int] = {}

    def check(self, number: int, count: int = 1) -> int:
        """Return ``number`` if ``count`` blocks from there are in the filesystem.

        Raises:
            OSError: EUCLEAN.
        """
        if not self._first < number <= self.count - count:
            raise Damaged(f"block {number} is not in the filesystem", block=number)
        return number

    def get(self, number: int) -> bytearray:
        """Return a block, read if necessary. The caller marks it dirty if it changes it."""
        block = self._cache.get(number)
        if block is None:
            if self.read_only:
                self.trim()
            if not self._first <= number < self.count:
                raise Damaged(f"block {number} is not in the filesystem", block=number)
            block = bytearray(self.device.read(number * self.size, self.size))
            self._cache[number] = block
        return block

    def new(self, number: int) -> bytearray:
        """Return a block of zeros, marked dirty."""
        block = self._cache[number] = bytearray(self.size)
        self.dirty.add(number)
        return block

    def put(self, number: int, block: bytearray) -> None:
        """Replace the contents of a block, and mark it dirty."""
        self._cache[number] = block
        self.dirty.add(number)

    def drop(self, number: int, count: int) -> None:
        """Remove blocks that no longer hold metadata."""
        cache = self._cache
        numbers = range(number, number + count)
        for one in numbers if count < len(cache) else [n for n in cache if n in numbers]:
            if cache.pop(one, None) is not None:
                self.dirty.discard(one)
                self.directories.pop(one, None)

    def trim(self) -> None:
        """Remove clean blocks if the cache has reached its limit."""
        if len(self._cache) > self._limit:
            kept = self.dirty | self.busy.keys()
            self._cache = {n: block for n, block in self._cache.items() if n in kept}
