"""A block device: a whole disk or a partition of one (struct block_device, block/bdev.c)."""

from __future__ import annotations

import errno

from loopfs.driver.event import Event, Invalidate
from loopfs.driver.statistics import Statistics
from loopfs.driver.world import Backing
from loopfs.errors import DriverError
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.driver.loop import LoopDevice

PAGE_SIZE = 4096
MAX_BLOCK_SIZE = 65536  # BLK_MAX_BLOCK_SIZE


# Where a transfer lands: the backing file, the offset in it and the length, in bytes.
Extent = tuple[Backing, int, int]


class Opener:
    """One open file description of a block device."""

    __slots__ = ("bdev", "blocks_writers", "exclusive", "write")

    def __init__(self, bdev: BlockDevice, *, write: bool, exclusive: bool) -> None:
        self.bdev = bdev
        self.blocks_writers = False
        self.write = write
        self.exclusive = exclusive


class Use(NamedTuple):
    """What a filesystem that is mounted for writing uses of its disk.

    Args:
        name: of the device that it is mounted from.
        start, end: bytes from the disk's start.
    """

    name: str
    start: int
    end: int


class BlockDevice:
    """What a disk and a partition have in common.

    Args:
        name: of its node.
        major, minor: its device number.
        events: where it appends what the world must do.
    """

    def __init__(self, name: str, major: int, minor: int, events: list[Event]) -> None:
        self.name = name
        self.major = major
        self.minor = minor
        self.openers: set[Opener] = set()
        self.marked_read_only = False  # BLKROSET
        self.soft_block_size = PAGE_SIZE  # BLKBSZGET
        self.writes_blocked = False
        self._events = events
        self.statistics = Statistics()

    def tell(self, event: Event) -> None:
        """Have the world do something for it."""
        self._events.append(event)

    @property
    def disk(self) -> LoopDevice:
        """The whole disk; itself if it is one."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """The size in bytes."""
        raise NotImplementedError

    @property
    def start(self) -> int:
        """Bytes from the disk's beginning to its own."""
        return 0

    @property
    def read_only(self) -> bool:
        """BLKROGET: writes get EPERM."""
        disk = self.disk
        return disk.read_only_disk or disk.marked_read_only or self.marked_read_only

    def open(self, *, write: bool, exclusive: bool = False) -> Opener:
        """Open the device's node.

        Args:
            write: opened for writing.
            exclusive: O_EXCL: claim the device for this opener alone.
        Raises:
            DriverError: EBUSY (it, its disk or a partition of it is claimed, or writing is
                blocked), ENXIO (the disk is going away, or the partition is gone).
        """
        raise NotImplementedError

    def extent(self, position: int, length: int) -> Extent | None:
        """Where a transfer lands; its length is cut at the device's end.

        Args:
            position: bytes from the device's start.
            length: bytes asked for.
        Returns:
            None when nothing is left of it.
        Raises:
            DriverError: EIO where the disk has no data: it is being detached, or a
                partition reaches beyond its end.
        """
        raise NotImplementedError

    # --- openers ---------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Some opener has this very device exclusively."""
        return any(opener.exclusive for opener in self.openers)

    @property
    def claimed(self) -> bool:
        """Held, or what it is part of, or a part of it (bd_may_claim)."""
        raise NotImplementedError

    def block_writers(self) -> None:
        """Refuse writes while the opener that claims the device has it open (bdev_block_writes).

        Raises:
            DriverError: EBUSY: nobody claims it any more.
        """
        holders = [opener for opener in self.openers if opener.exclusive]
        if not holders:
            raise DriverError(errno.EBUSY, f"{self.name} is not claimed")
        for holder in holders:
            holder.blocks_writers = True
        self.writes_blocked = True

    def check_may_open_for_writing(self) -> None:
        """Raises DriverError EBUSY: a mounted filesystem of the kernel's relies on the data."""
        if self.writes_blocked:
            raise DriverError(errno.EBUSY, f"{self.name} is mounted by the kernel")

    def mounted(self, start: int, end: int) -> Use:
        """An engine serves the device for writing, until :meth:`unmounted`.

        Args:
            start, end: what the filesystem uses of it, in bytes.
        Raises:
            DriverError: EBUSY: another one uses a part of that.
        """
        use = Use(self.name, self.start + start, self.start + end)
        disk = self.disk
        _check_unused(disk, use.start, use.end)
        disk.uses = (*disk.uses, use)
        return use

    def uses_less(self, use: Use, start: int, end: int) -> Use:
        """The engine uses only a part of what :meth:`mounted` was told.

        Args:
            use: that.
            start, end: the part, in bytes of it.
        Returns:
            what is unmounted once the engine has let go.
        """
        less = Use(use.name, use.start + start, use.start + end)
        self.disk.uses = tuple(less if each is use else each for each in self.disk.uses)
        return less

    def unmounted(self, use: Use) -> None:
        """The engine has let go of the device."""
        self.disk.uses = tuple(each for each in self.disk.uses if each is not use)

    def claim_as(self, openers: set[Opener]) -> frozenset[Opener]:
        """Who has opened the device serves and mounts it: it is claimed until they close it.

        Raises:
            DriverError: EBUSY: others claim it.
        """
        if self.claimed and not any(opener.exclusive for opener in openers):
            raise DriverError(errno.EBUSY, f"{self.name} is claimed by another opener")
        for opener in openers:
            opener.exclusive = True
        return frozenset(openers)

    def check_may_write(self, position: int, length: int) -> None:
        """What a node may be written to: the bytes that no mounted filesystem uses.

        Args:
            position: bytes from the device's start.
            length: bytes.
        Raises:
            DriverError: EBUSY.
        """
        self.check_may_open_for_writing()
        if self.disk.uses:
            start = self.start + position
            _check_unused(self.disk, start, start + length)

    def unused(self, position: int, length: int) -> list[tuple[int, int]]:
        """The parts of a range that no mounted filesystem uses.

        Args:
            position: bytes from the device's start.
            length: bytes.
        Returns:
            position and length of each.
        """
        if self.writes_blocked:
            return []
        parts, start, end = [], self.start + position, self.start + position + length
        for use in sorted(self.disk.uses, key=lambda use: use.start):
            if start < min(use.start, end):
                parts.append((start - self.start, min(use.start, end) - start))
            start = max(start, use.end)
        if start < end:
            parts.append((start - self.start, end - start))
        return parts

    def closed(self, opener: Opener) -> None:
        """An opener is gone."""
        self.openers.discard(opener)
        if opener.blocks_writers:
            self.writes_blocked = any(other.blocks_writers for other in self.openers)

    def opened(self, *, write: bool, exclusive: bool) -> Opener:
        """A new opener; what may refuse it has been asked."""
        if not self.openers:
            self.soft_block_size = _fitting_block_size(self.disk.block_size, self.capacity)
        opener = Opener(self, write=write, exclusive=exclusive)
        self.openers.add(opener)
        return opener

    def check_claim(self, opener: Opener) -> None:
        """What only the holder may do while there is one.

        Raises:
            DriverError: EBUSY: another opener has claimed the device.
        """
        if self.claimed and not opener.exclusive:
            raise DriverError(errno.EBUSY, f"{self.name} is claimed by another opener")

    # --- what any block device can be told ---------------------------------------

    def flush_buffers(self) -> None:
        """BLKFLSBUF: what was cached of it is read anew."""
        self._events.append(Invalidate(self))

    def set_soft_block_size(self, opener: Opener, size: int) -> None:
        """BLKBSZSET: the unit, in bytes, in which the kernel would cache the device.

        Raises:
            DriverError: EBUSY (claimed by another opener, or going away: the kernel opens
                it once more), EINVAL (no power of two from the disk's block size to 64 KiB).
        """
        self.check_claim(opener)
        if self.disk.going_away and not opener.exclusive:
            raise DriverError(errno.EBUSY, f"{self.name} is being detached")
        if not valid_block_size(size) or size < self.disk.block_size:
            raise DriverError(errno.EINVAL, f"{size} is no block size")
        if size != self.soft_block_size:
            self.soft_block_size = size
            self._events.append(Invalidate(self))


def _check_unused(disk: LoopDevice, start: int, end: int) -> None:
    for use in disk.uses:
        if start < use.end and use.start < end:
            raise DriverError(errno.EBUSY, f"a filesystem is mounted from {use.name}")


def valid_block_size(size: int) -> bool:
    """A power of two from a sector to 64 KiB, in bytes (blk_validate_block_size)."""
    return 512 <= size <= MAX_BLOCK_SIZE and size & (size - 1) == 0


def _fitting_block_size(logical: int, capacity: int) -> int:
    """The largest up to a page that divides the device (set_init_blocksize); all in bytes."""
    size = logical
    while size < PAGE_SIZE and not capacity & size:
        size *= 2
    return size
