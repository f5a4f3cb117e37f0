"""What a block device counts of its I/O (struct disk_stats; Documentation/block/stat.rst)."""

from __future__ import annotations

from threading import Lock

from loopfs.uapi.block import SECTOR_SIZE

# Kinds of I/O (enum stat_group).
READ, WRITE, DISCARD, FLUSH = range(4)
NANOSECONDS = 1_000_000  # in a millisecond


class Statistics:
    """Of one device; a partition's count for its disk too.

    Args:
        whole: those of the disk.
    """

    def __init__(self, whole: Statistics | None = None) -> None:
        self._whole = whole
        self._lock = Lock()  # slow requests are counted by threads of their own
        self._requests = [0] * 4
        self._bytes = [0] * 4
        self._nanoseconds = [0] * 4
        self._begun = [0] * 4

    def begin(self, kind: int) -> None:
        """A request of a kind has come in."""
        with self._lock:
            self._begun[kind] += 1
        if self._whole is not None:
            self._whole.begin(kind)

    def end(self, kind: int, length: int, nanoseconds: int) -> None:
        """It is answered.

        Args:
            length: bytes that it was about.
            nanoseconds: that it took.
        """
        with self._lock:
            self._begun[kind] -= 1
            self._requests[kind] += 1
            self._bytes[kind] += length
            self._nanoseconds[kind] += nanoseconds
        if self._whole is not None:
            self._whole.end(kind, length, nanoseconds)

    def add(self, kind: int, requests: int, length: int, nanoseconds: int) -> None:
        """Requests that were counted elsewhere; as those of :meth:`end`, of all together."""
        with self._lock:
            self._requests[kind] += requests
            self._bytes[kind] += length
            self._nanoseconds[kind] += nanoseconds
        if self._whole is not None:
            self._whole.add(kind, requests, length, nanoseconds)

    @property
    def writing(self) -> bool:
        """Some write is not answered yet."""
        return self._begun[WRITE] > 0

    def inflight(self) -> str:
        """The attribute ``inflight``: reads and writes that are not answered yet."""
        return f"{self._begun[READ]:8d} {self._begun[WRITE]:8d}"

    def show(self) -> str:
        """The attribute ``stat``. Nothing is merged here, and requests do not overlap."""
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
