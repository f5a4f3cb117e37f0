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


# Where a transfer is made: the backing file, the offset in it and the length, in bytes.
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
    """The bytes of a disk that a filesystem mounted for writing uses.

    Args:
        name: the device that the filesystem is mounted from.
        start, end: bytes from the start of the disk.
    """

    name: str
    start: int
    end: int


class BlockDevice:
    """The common part of a disk and a partition.

    Args:
        name: the name of its node.
        major, minor: its device number.
        events: the list to which the device appends its events.
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
        """Append an event, which the user of the driver carries out."""
        self._events.append(event)

    @property
    def disk(self) -> LoopDevice:
        """The whole disk: the device itself, if it is a disk."""
        raise NotImplementedError

    @property
    def capacity(self) -> int:
        """The size in bytes."""
        raise NotImplementedError

    @property
    def start(self) -> int:
        """The offset of the device on its disk, in bytes."""
        return 0

    @property
    def read_only(self) -> bool:
        """Whether writes fail with EPERM (BLKROGET)."""
        disk = self.disk
        return disk.read_only_disk or disk.marked_read_only or self.marked_read_only

    def open(self, *, write: bool, exclusive: bool = False) -> Opener:
        """Open the device's node.

        Args:
            write: open for writing.
            exclusive: O_EXCL: claim the device for this opener alone.
        Raises:
            DriverError: EBUSY (the device, its disk or a partition of it is claimed, or writing
                is blocked), ENXIO (the disk is being detached, or the partition does not exist).
        """
        raise NotImplementedError

    def extent(self, position: int, length: int) -> Extent | None:
        """Return where a transfer is made; it is truncated at the end of the device.

        Args:
            position: bytes from the start of the device.
            length: bytes requested.
        Returns:
            None if nothing remains of the transfer.
        Raises:
            DriverError: EIO if the disk has no data there: it is being detached, or the
                partition extends beyond the end of the disk.
        """
        raise NotImplementedError

    # --- openers ---------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether an opener has claimed this device itself."""
        return any(opener.exclusive for opener in self.openers)

    @property
    def claimed(self) -> bool:
        """Whether the device, its disk or a partition of it is claimed (bd_may_claim)."""
        raise NotImplementedError

    def block_writers(self) -> None:
        """Refuse writes as long as the opener that claims the device is open (bdev_block_writes).

        Raises:
            DriverError: EBUSY if the device is not claimed any more.
        """
        holders = [opener for opener in self.openers if opener.exclusive]
        if not holders:
            raise DriverError(errno.EBUSY, f"{self.name} is not claimed")
        for holder in holders:
            holder.blocks_writers = True
        self.writes_blocked = True

    def check_may_open_for_writing(self) -> None:
        """Raise DriverError EBUSY if a filesystem of the kernel is mounted from the device."""
        if self.writes_blocked:
            raise DriverError(errno.EBUSY, f"{self.name} is mounted by the kernel")

    def mounted(self, start: int, end: int) -> Use:
        """Record that an engine serves the device for writing, until :meth:`unmounted`.

        Args:
            start, end: the bytes of the device that the filesystem uses.
        Raises:
            DriverError: EBUSY if another filesystem uses some of these bytes.
        """
        use = Use(self.name, self.start + start, self.start + end)
        disk = self.disk
        _check_unused(disk, use.start, use.end)
        disk.uses = (*disk.uses, use)
        return use

    def uses_less(self, use: Use, start: int, end: int) -> Use:
        """Reduce a use that :meth:`mounted` has recorded: the engine uses only a part of it.

        Args:
            use: the recorded use.
            start, end: the part, in bytes from the start of ``use``.
        Returns:
            the use to pass to :meth:`unmounted` when the engine has released the device.
        """
        less = Use(use.name, use.start + start, use.start + end)
        self.disk.uses = tuple(less if each is use else each for each in self.disk.uses)
        return less

    def unmounted(self, use: Use) -> None:
        """Remove a recorded use: the engine has released the device."""
        self.disk.uses = tuple(each for each in self.disk.uses if each is not use)

    def claim_as(self, openers: set[Opener]) -> frozenset[Opener]:
        """Claim the device for the openers of a process that serves and mounts a filesystem.

        The claim ends when they close the device.

        Raises:
            DriverError: EBUSY if another opener has claimed the device.
        """
        if self.claimed and not any(opener.exclusive for opener in openers):
            raise DriverError(errno.EBUSY, f"{self.name} is claimed by another opener")
        for opener in openers:
            opener.exclusive = True
        return frozenset(openers)

    def check_may_write(self, position: int, length: int) -> None:
        """Check that a node may be written: no mounted filesystem uses the bytes.

        Args:
            position: bytes from the start of the device.
            length: bytes.
        Raises:
            DriverError: EBUSY if a mounted filesystem uses some of the bytes.
        """
        self.check_may_open_for_writing()
        if self.disk.uses:
            start = self.start + position
            _check_unused(self.disk, start, start + length)

    def unused(self, position: int, length: int) -> list[tuple[int, int]]:
        """Return the parts of a range that no mounted filesystem uses.

        Args:
            position: bytes from the start of the device.
            length: bytes.
        Returns:
            position and length of each part.
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
        """Remove an opener that has closed the device."""
        self.openers.discard(opener)
        if opener.blocks_writers:
            self.writes_blocked = any(other.blocks_writers for other in self.openers)

    def opened(self, *, write: bool, exclusive: bool) -> Opener:
        """Add an opener; the caller has made all checks."""
        if not self.openers:
            self.soft_block_size = _fitting_block_size(self.disk.block_size, self.capacity)
        opener = Opener(self, write=write, exclusive=exclusive)
        self.openers.add(opener)
        return opener

    def check_claim(self, opener: Opener) -> None:
        """Check that no other opener has claimed the device.

        Raises:
            DriverError: EBUSY if another opener has claimed the device.
        """
        if self.claimed and not opener.exclusive:
            raise DriverError(errno.EBUSY, f"{self.name} is claimed by another opener")

    # --- ioctls of every block device --------------------------------------------

    def flush_buffers(self) -> None:
        """Drop the cached pages of the device (BLKFLSBUF)."""
        self._events.append(Invalidate(self))

    def set_soft_block_size(self, opener: Opener, size: int) -> None:
        """Set the unit in which the kernel would cache the device, in bytes (BLKBSZSET).

        Raises:
            DriverError: EBUSY (claimed by another opener, or being detached: the kernel opens the
                device again), EINVAL (not a power of two from the disk's block size to 64 KiB).
        """
        self.check_claim(opener)
        if self.disk.going_away and not opener.exclusive:
            raise DriverError(errno.EBUSY, f"{self.name} is being detached")
        if not valid_block_size(size) or size < self.disk.block_size:
            raise DriverError(errno.EINVAL, f"{size} is not a valid block size")
        if size != self.soft_block_size:
            self.soft_block_size = size
            self._events.append(Invalidate(self))


def _check_unused(disk: LoopDevice, start: int, end: int) -> None:
    for use in disk.uses:
        if start < use.end and use.start < end:
            raise DriverError(errno.EBUSY, f"a filesystem is mounted from {use.name}")


def valid_block_size(size: int) -> bool:
    """Whether a size in bytes is a power of two from 512 to 64 KiB (blk_validate_block_size)."""
    return 512 <= size <= MAX_BLOCK_SIZE and size & (size - 1) == 0


def _fitting_block_size(logical: int, capacity: int) -> int:
    """Return the largest size in bytes, up to a page, that divides the device
    (set_init_blocksize)."""
    size = logical
    while size < PAGE_SIZE and not capacity & size:
        size *= 2
    return size
