"""The partitions of a disk (block/partitions/core.c)."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from loopfs.driver.bdev import BlockDevice, Extent, Opener
from loopfs.driver.event import Event, Invalidate, uevent
from loopfs.driver.statistics import Statistics
from loopfs.errors import DriverError
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.driver.loop import LoopDevice

DISK_MAX_PARTS = 256


class Found(NamedTuple):
    """An entry of a partition table: ``start`` (from the disk's start) and ``size`` are bytes,
    ``name`` is the name in a GPT."""

    number: int
    start: int
    size: int
    name: str = ""


class Partition(BlockDevice):
    """A partition of a disk, which is a block device itself.

    Args:
        disk: the disk.
        found: its entry in the partition table.
        major, minor: its device number.
        events: the list of the disk's events.
    """

    def __init__(
        self, disk: LoopDevice, found: Found, major: int, minor: int, events: list[Event]
    ) -> None:
        super().__init__(f"{disk.name}p{found.number}", major, minor, events)
        self._disk = disk
        self.statistics = Statistics(disk.statistics)
        self.number = found.number
        self.label = found.name  # PARTNAME
        self.size = found.size
        self._start = found.start

    @property
    def disk(self) -> LoopDevice:
        return self._disk

    @property
    def start(self) -> int:
        return self._start

    @property
    def capacity(self) -> int:
        return self.size

    @property
    def claimed(self) -> bool:
        return self.held or self._disk.held

    def open(self, *, write: bool, exclusive: bool = False) -> Opener:
        if exclusive and self.claimed:
            raise DriverError(errno.EBUSY, f"{self.name} is claimed by another opener")
        if write:
            self.check_may_open_for_writing()
        self._disk.check_may_open()
        if self._disk.partitions.get(self.number) is not self:
            raise DriverError(errno.ENXIO, f"{self.name} is gone")
        return self.opened(write=write, exclusive=exclusive)

    def extent(self, position: int, length: int) -> Extent | None:
        length = max(0, min(length, self.size - position))
        if not length:
            return None
        extent = self._disk.extent(self._start + position, length)
        if extent is None or extent[2] < length:
            raise DriverError(errno.EIO, f"{self.name} reaches beyond the end of its disk")
        return extent


class Partitions(dict[int, Partition]):
    """The partitions of a disk, by number."""

    def __init__(self, disk: LoopDevice, events: list[Event]) -> None:
        super().__init__()
        self._disk = disk
        self._events = events

    @property
    def open(self) -> bool:
        """Whether a partition is open."""
        return any(partition.openers for partition in self.values())

    def in_order(self) -> list[Partition]:
        """Return all partitions by ascending number, in whatever order they were added."""
        return sorted(self.values(), key=lambda part: part.number)

    def scanned(self, table: Sequence[Found]) -> None:
        """Add the partitions that a scan has found. They may overlap, as logical partitions do.

        A partition that extends beyond the disk is truncated; one that lies beyond it is ignored.
        """
        capacity = self._disk.capacity
        if table:
            self._events.append(uevent("change", self._disk))
        for found in table:
            fits = found.start < capacity and 0 < found.number < DISK_MAX_PARTS
            if fits and found.number not in self:
                self._add(found._replace(size=min(found.size, capacity - found.start)))

    def add(self, found: Found) -> None:
        """Add a partition (BLKPG_ADD_PARTITION).

        Raises:
            DriverError: EINVAL (not within the disk, or the number is too high), EBUSY (it
                overlaps another partition, or the number is in use).
        """
        self._check_within(found)
        if self._overlap(found, None):
            raise DriverError(errno.EBUSY, "it overlaps another partition")
        if found.number >= DISK_MAX_PARTS:
            raise DriverError(errno.EINVAL, f"a disk has {DISK_MAX_PARTS - 1} partitions at most")
        if found.number in self:
            raise DriverError(errno.EBUSY, f"there is a partition {found.number}")
        self._add(found)

    def _add(self, found: Found) -> None:
        major, minor = self._disk.minors.claim_extended()
        partition = Partition(self._disk, found, major, minor, self._events)
        self._disk.minors.extended[minor] = self[found.number] = partition
        self._events.append(uevent("add", partition))

    def delete(self, number: int) -> None:
        """Remove a partition (BLKPG_DEL_PARTITION).

        Raises:
            DriverError: ENXIO (no such partition), EBUSY (it is open).
        """
        partition = self._get(number)
        if partition.openers:
            raise DriverError(errno.EBUSY, f"{partition.name} is open")
        self._drop(partition)

    def resize(self, found: Found) -> None:
        """Change the size of a partition (BLKPG_RESIZE_PARTITION).

        Raises:
            DriverError: EINVAL (not within the disk, or another start), ENXIO (no such
                partition), EBUSY (it would overlap another partition).
        """
        self._check_within(found)
        partition = self._get(found.number)
        if partition.start != found.start:
            raise DriverError(errno.EINVAL, "a partition can only change its size")
        if self._overlap(found, partition):
            raise DriverError(errno.EBUSY, "it would overlap another partition")
        partition.size = found.size
        self._events += (Invalidate(partition), uevent("change", partition, "RESIZE=1"))

    def drop_all(self) -> None:
        """Remove all partitions; none may be open."""
        for partition in list(self.values()):
            self._drop(partition)

    def _drop(self, partition: Partition) -> None:
        del self[partition.number]
        self._disk.minors.free_extended(partition.minor)
        self._events.append(uevent("remove", partition))

    def _get(self, number: int) -> Partition:
        if number not in self:
            raise DriverError(errno.ENXIO, f"{self._disk.name} has no partition {number}")
        return self[number]

    def _check_within(self, found: Found) -> None:
        capacity = self._disk.capacity
        if found.start >= capacity or found.start + found.size > capacity:
            raise DriverError(errno.EINVAL, "not within the disk")

    def _overlap(self, found: Found, but: Partition | None) -> bool:
        start, end = found.start, found.start + found.size
        others = (partition for partition in self.values() if partition is not but)
        return any(p.start < end and start < p.start + p.size for p in others)
