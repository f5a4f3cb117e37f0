"""Blocks of metadata in memory: what the buffer cache is to fs/ext4."""

from __future__ import annotations

from loopfs.ext4.device import Device
from loopfs.ext4.errors import Damaged
from loopfs.ext4.super import Super

_CACHE_BYTES = 12 << 20


class Blocks:
    """The blocks of metadata that were read or changed.

    Attributes:
        dirty: numbers of those that the next commit writes.
        read_only: nothing is changed: what was read can be let go of at any time.
        busy: how many transactions that are being written hold a block; the disk has an older one.
        directories: dirty blocks of directories, with the seed of their checksum.
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
        """``number``, if such blocks are in the filesystem; else raises OSError EUCLEAN."""
        if not self._first < number <= self.count - count:
            raise Damaged(f"block {number} is not in the filesystem", block=number)
        return number

    def get(self, number: int) -> bytearray:
        """A block; to be marked as dirty by who changes it."""
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
        """A block of zeros, dirty."""
        block = self._cache[number] = bytearray(self.size)
        self.dirty.add(number)
        return block

    def put(self, number: int, block: bytearray) -> None:
        """Other contents for a block."""
        self._cache[number] = block
        self.dirty.add(number)

    def drop(self, number: int, count: int) -> None:
        """Blocks are no metadata any more."""
        cache = self._cache
        numbers = range(number, number + count)
        for one in numbers if count < len(cache) else [n for n in cache if n in numbers]:
            if cache.pop(one, None) is not None:
                self.dirty.discard(one)
                self.directories.pop(one, None)

    def trim(self) -> None:
        """Let go of what is on the disk, when it is much."""
        if len(self._cache) > self._limit:
            kept = self.dirty | self.busy.keys()
            self._cache = {n: block for n, block in self._cache.items() if n in kept}
