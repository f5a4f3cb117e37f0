"""The I/O statistics of a block device (struct disk_stats; Documentation/block/stat.rst)."""

from __future__ import annotations

from threading import Lock

from loopfs.uapi.block import SECTOR_SIZE

# The kinds of I/O (enum stat_group).
READ, WRITE, DISCARD, FLUSH = range(4)
NANOSECONDS = 1_000_000  # in a millisecond


class Statistics:
    """The I/O statistics of a device. The requests of a partition also count for its disk.

    Args:
        whole: for a partition, the statistics of its disk.
    """

    def __init__(self, whole: Statistics | None = None) -> None:
        self._whole = whole
        self._lock = Lock()  # slow requests are counted by other threads
        self._requests = [0] * 4
        self._bytes = [0] * 4
        self._nanoseconds = [0] * 4
        self._begun = [0] * 4

    def begin(self, kind: int) -> None:
        """Count a request that has been received."""
        with self._lock:
            self._begun[kind] += 1
        if self._whole is not None:
            self._whole.begin(kind)

    def end(self, kind: int, length: int, nanoseconds: int) -> None:
        """Count a request that has been answered.

        Args:
            length: bytes transferred.
            nanoseconds: the duration of the request.
        """
        with self._lock:
            self._begun[kind] -= 1
            self._requests[kind] += 1
            self._bytes[kind] += length
            self._nanoseconds[kind] += nanoseconds
        if self._whole is not None:
            self._whole.end(kind, length, nanoseconds)

    def add(self, kind: int, requests: int, length: int, nanoseconds: int) -> None:
        """Add requests that were counted elsewhere; the arguments are totals, as in :meth:`end`."""
        with self._lock:
            self._requests[kind] += requests
            self._bytes[kind] += length
            self._nanoseconds[kind] += nanoseconds
        if self._whole is not None:
            self._whole.add(kind, requests, length, nanoseconds)

    @property
    def writing(self) -> bool:
        """Whether a write is in flight."""
        return self._begun[WRITE] > 0

    def inflight(self) -> str:
        """Return the attribute ``inflight``: the numbers of reads and writes in flight."""
        return f"{self._begun[READ]:8d} {self._begun[WRITE]:8d}"

    def show(self) -> str:
        """Return the attribute ``stat``. Requests are not merged and do not overlap."""
        ticks = [nanoseconds // NANOSECONDS for nanoseconds in self._nanoseconds]
        fields: list[int] = []
        for kind in (READ, WRITE):
            fields += self._fields(kind, ticks[kind])
        fields += [sum(self._begun), sum(ticks), sum(ticks)]
        fields += self._fields(DISCARD, ticks[DISCARD])
        fields += [self._requests[FLUSH], ticks[FLUSH]]
        return " ".join(f"{field:8d}" for field in fields)

    def _fields(self, kind: int, ticks: int) -> list[int]:
        return [self._requests[kind], 0, self._bytes[kind] // SECTOR_SIZE, ticks]
