"""Allocation of minor numbers and disk sequence numbers."""

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
    """Return the first number of the longest range of minors that are not ``taken``. It is after
    the highest of them, unless that is near the last minor."""
    used = sorted({-1, MINORMASK + 1, *taken})
    _, after = max((end - start, start) for start, end in pairwise(used))
    return after + 1


class NumberSet:
    """A set of numbers whose lowest member is found in O(log n)."""

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._heap: list[int] = []  # may contain removed numbers, but each only once
        self._in_heap: set[int] = set()

    def add(self, number: int) -> None:
        self._numbers.add(number)
        if number not in self._in_heap:
            self._in_heap.add(number)
            heappush(self._heap, number)

    def discard(self, number: int) -> None:
        self._numbers.discard(number)

    def lowest(self) -> int | None:
        """Return the lowest number, or None if the set is empty."""
        while self._heap and self._heap[0] not in self._numbers:
            self._in_heap.discard(heappop(self._heap))
        return self._heap[0] if self._heap else None


class Minors:
    """The minor numbers of all loop devices, of loopfs and of the host (loop_index_idr).

    Args:
        first: the lowest number that is allocated if the caller does not ask for one.
        host: the numbers of the host's own devices.
    """

    def __init__(self, first: int = 0, host: frozenset[int] = frozenset()) -> None:
        self._first = first
        self._host = host
        self._owners: dict[int, Instance] = {}
        self._lowest_free = first
        # Only single atomic operations, since threads that serve different instances use them.
        self._freed: list[int] = []
        self.extended: dict[int, Partition] = {}  # by minor
        self._extended = count(FIRST_EXTENDED)
        self._diskseqs = count(1)

    def owner(self, number: int) -> Instance | None:
        """Return the instance that owns ``number``; None for a number of the host or a free one."""
        return self._owners.get(number)

    def taken(self, number: int) -> bool:
        return number in self._owners or number in self._host

    def lowest_free(self) -> int:
        """Return the number of a new device if the caller asks for none.

        Raises:
            DriverError: ENOSPC if all minor numbers are in use.
        """
        while self.taken(self._lowest_free):
            self._lowest_free += 1
        if self._lowest_free > MINORMASK:
            raise DriverError(errno.ENOSPC, "no loop device number is left")
        return self._lowest_free

    def claim(self, number: int, instance: Instance) -> None:
        """Allocate ``number`` to ``instance``."""
        self._owners[number] = instance

    def free(self, number: int) -> None:
        del self._owners[number]
        if self._first <= number < self._lowest_free:
            self._lowest_free = number

    def next_diskseq(self) -> int:
        """Return the next sequence number of a disk or of the medium in it (inc_diskseq)."""
        return next(self._diskseqs)

    def claim_extended(self) -> tuple[int, int]:
        """Allocate a device number for a partition (blk_alloc_ext_minor).

        The host allocates its own numbers from 0 upwards and rarely reaches FIRST_EXTENDED. The
        caller enters the partition in ``extended``.
        """
        try:
            return BLOCK_EXT_MAJOR, self._freed.pop()
        except IndexError:
            return BLOCK_EXT_MAJOR, next(self._extended)

    def free_extended(self, minor: int) -> None:
        """Free the minor number of a removed partition."""
        del self.extended[minor]
        self._freed.append(minor)
