"""The numbers of block devices: minors, and the sequence numbers of disks."""

from __future__ import annotations

import errno
from heapq import heappop, heappush
from itertools import count, pairwise

from loopfs.errors import DriverError
from loopfs.lean import TYPE_CHECKING, Iterable

if TYPE_CHECKING:
    from loopfs.driver.instance import Instance
    from loopfs.driver.partition import Partition

MINORMASK = (1 << 20) - 1
BLOCK_EXT_MAJOR = 259
FIRST_EXTENDED = 1 << 19


def longest_gap(taken: Iterable[int]) -> int:
    """The first number of the longest run of minors that are not ``taken``: after the highest of
    them, unless that is near the last minor."""
    used = sorted({-1, MINORMASK + 1, *taken})
    _, after = max((end - start, start) for start, end in pairwise(used))
    return after + 1


class NumberSet:
    """Numbers, of which the lowest is found at once however many there are."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._heap: list[int] = []  # may have numbers that are gone, but none twice
        self._in_heap: set[int] = set()

    def add(self, number: int) -> None:
        self._numbers.add(number)
        if number not in self._in_heap:
            self._in_heap.add(number)
            heappush(self._heap, number)

    def discard(self, number: int) -> None:
        self._numbers.discard(number)

    def lowest(self) -> int | None:
        """None when it is empty."""
        while self._heap and self._heap[0] not in self._numbers:
            self._in_heap.discard(heappop(self._heap))
        return self._heap[0] if self._heap else None


class Minors:
    """The numbers of all loop devices, ours and the host's (loop_index_idr).

    Args:
        first: the lowest number given out when the caller does not ask for one.
        host: numbers that the host's own devices have.
    """

    def __init__(self, first: int = 0, host: frozenset[int] = frozenset()) -> None:
        self._first = first
        self._host = host
        self._owners: dict[int, Instance] = {}
        self._lowest_free = first
        # Each is one step, for threads that serve different instances.
        self._freed: list[int] = []
        self.extended: dict[int, Partition] = {}  # by minor
        self._extended = count(FIRST_EXTENDED)
        self._diskseqs = count(1)

    def owner(self, number: int) -> Instance | None:
        """The instance that has ``number``; None for the host's and for free ones."""
        return self._owners.get(number)

    def taken(self, number: int) -> bool:
        return number in self._owners or number in self._host

    def lowest_free(self) -> int:
        """The number a new device gets when the caller names none.

        Raises:
            DriverError: ENOSPC when all minors are in use.
        """
        while self.taken(self._lowest_free):
            self._lowest_free += 1
        if self._lowest_free > MINORMASK:
            raise DriverError(errno.ENOSPC, "no loop device number is left")
        return self._lowest_free

    def claim(self, number: int, instance: Instance) -> None:
        """Take ``number`` for ``instance``."""
        self._owners[number] = instance

    def free(self, number: int) -> None:
        del self._owners[number]
        if self._first <= number < self._lowest_free:
            self._lowest_free = number

    def next_diskseq(self) -> int:
        """The next number of a disk, or of the medium in it (inc_diskseq)."""
        return next(self._diskseqs)

    def claim_extended(self) -> tuple[int, int]:
        """A device number for a partition (blk_alloc_ext_minor).

        The host gives out its own from 0 on; ours lie where it hardly comes. Who takes one puts
        the partition into ``extended``.
        """
        try:
            return BLOCK_EXT_MAJOR, self._freed.pop()
        except IndexError:
            return BLOCK_EXT_MAJOR, next(self._extended)

    def free_extended(self, minor: int) -> None:
        """Its partition is gone."""
        del self.extended[minor]
        self._freed.append(minor)
