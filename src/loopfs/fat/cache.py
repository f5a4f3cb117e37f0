"""The clusters of a file (fs/fat/cache.c): a chain, stored as runs of consecutive clusters."""

from __future__ import annotations

from array import array
from bisect import bisect_right

from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Runs:
    """A chain, as a sequence of runs (first cluster, count).

    A run is stored as two numbers, not as an object: the chain of a damaged or hostile volume can
    have millions of runs.
    """

    __slots__ = ("_begin", "_first", "total")

    def __init__(self) -> None:
        self._first = array("I")  # the first cluster of each run
        self._begin = array("I")  # its index in the file
        self.total = 0

    def __len__(self) -> int:
        """The number of runs."""
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
        """The number of the last cluster + 1; 0 if there is none."""
        return self.last + 1 if self._first else 0

    def append(self, first: int, count: int) -> None:
        """Add clusters at the end."""
        if first != self.end or not self._first:
            self._first.append(first)
            self._begin.append(self.total)
        self.total += count

    def cut(self, count: int) -> Runs:
        """Keep the first ``count`` clusters; remove the others and return them."""
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
        """Yield ``count`` clusters from index ``cluster`` on, as runs. They must exist."""
        n = bisect_right(self._begin, cluster) - 1
        while count > 0:
            skip = cluster - self._begin[n]
            length = min(self._length(n) - skip, count)
            yield self._first[n] + skip, length
            cluster, count, n = cluster + length, count - length, n + 1
