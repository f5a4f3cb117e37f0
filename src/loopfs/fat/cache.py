"""Where a file's clusters are (fs/fat/cache.c): a chain as runs of consecutive clusters."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Runs:
    """A chain, as (first cluster, count).

    Two numbers a run are kept, and not objects: the chain of a damaged or hostile volume may
    have millions.
    """

    __slots__ = ("_begin", "_first", "total")

    def __init__(self) -> None:
        self._first = array("I")  # cluster, by run
        self._begin = array("I")  # which cluster of the file that is
        self.total = 0

    def __len__(self) -> int:
        """How many runs."""
        return len(self._first)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for n, first in enumerate(self._first):
            yield first, self._length(n)

    def _length(self, n: int) -> int:
        following = self._begin[n + 1] if n + 1 < len(self._begin) else self.total
        return following - self._begin[n]

    @property
    def start(self) -> int:
        """The first cluster; 0 if there is none."""
        return self._first[0] if self._first else 0

    @property
    def last(self) -> int:
        """The last cluster; 0 if there is none."""
        return self._first[-1] + self._length(len(self._first) - 1) - 1 if self._first else 0

    @property
    def end(self) -> int:
        """The number after the last cluster's; 0 if there is none."""
        return self.last + 1 if self._first else 0

    def append(self, first: int, count: int) -> None:
        """More clusters at the end."""
        if first != self.end or not self._first:
            self._first.append(first)
            self._begin.append(self.total)
        self.total += count

    def cut(self, count: int) -> Runs:
        """Keep ``count`` clusters; the others are returned."""
        gone = []
        while self.total > count:
            begin, first = self._begin[-1], self._first[-1]
            keep = max(count - begin, 0)
            gone.append((first + keep, self.total - begin - keep))
            if keep == 0:
                self._begin.pop()
                self._first.pop()
            self.total = begin + keep
        runs = Runs()
        for first, length in reversed(gone):
            runs.append(first, length)
        return runs

    def within(self, cluster: int, count: int) -> Iterator[tuple[int, int]]:
        """``count`` clusters of the file from ``cluster`` on, as runs; they must be there"""
        n = bisect_right(self._begin, cluster) - 1
        while count > 0:
            skip = cluster - self._begin[n]
            length = min(self._length(n) - skip, count)
            yield self._first[n] + skip, length
            cluster, count, n = cluster + length, count - length, n + 1
