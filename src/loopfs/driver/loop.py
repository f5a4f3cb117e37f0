"""A loop device: its states, its backing file and its openers.

The states and the transitions between them (drivers/block/loop.c)::

    Lo_unbound --LOOP_SET_FD, LOOP_CONFIGURE--> Lo_bound
    Lo_bound   --LOOP_CLR_FD, one opener------> Lo_rundown
    Lo_bound, Lo_rundown --last close---------> Lo_unbound   (AUTOCLEAR or rundown)
    Lo_unbound --LOOP_CTL_REMOVE--------------> Lo_deleting

LOOP_CLR_FD never closes the backing file: it marks the device, and the last close of the device
closes the file. Current kernels avoid a race between detach and open in this way.
"""

from __future__ import annotations

import errno
from enum import Enum

from loopfs.driver.bdev import BlockDevice, Extent, Opener, Use, valid_block_size
from loopfs.driver.event import Event, Invalidate, ReadPartitions, uevent
from loopfs.driver.minors import Minors, NumberSet
from loopfs.driver.partition import Partitions
from loopfs.driver.window import Window, check_info, window_of
from loopfs.driver.world import Backing, Caller
from loopfs.errors import DriverError
from loopfs.uapi.block import SECTOR_SIZE
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
    LO_NAME_SIZE,
    LOOP_CONFIGURE_SETTABLE_FLAGS,
    LOOP_MAJOR,
    LOOP_SET_STATUS_CLEARABLE_FLAGS,
    LOOP_SET_STATUS_SETTABLE_FLAGS,
    LoopConfig,
    LoopInfo64,
)

READ_AHEAD_SECTORS = 256


class State(Enum):
    """The states of a loop device, named as in drivers/block/loop.c."""

    Lo_unbound = 0
    Lo_bound = 1
    Lo_rundown = 2
    Lo_deleting = 3


class LoopDevice(BlockDevice):
    """A loop device of an instance.

    Args:
        number: its minor number and the N in its name.
        minors: allocates disk sequence numbers and the minor numbers of partitions.
        events: the list to which the device appends its events.
        unbound: the numbers of the instance's unbound devices, which the device updates.
    """

    def __init__(
        self, number: int, minors: Minors, events: list[Event], unbound: NumberSet
    ) -> None:
        super().__init__(f"loop{number}", LOOP_MAJOR, number, events)
        self.number = number
        self.minors = minors
        self.diskseq = minors.next_diskseq()  # BLKGETDISKSEQ
        self.state = State.Lo_unbound
        self._unbound = unbound
        unbound.add(number)
        self.read_only_disk = False  # kept after detach, until the next bind
        # The features of the queue (flush, discard) are kept likewise.
        self.write_cache = False
        self.discards = False
        self.partitions = Partitions(self, events)
        self._freed_for: int | None = None  # the process whose umount2(2) has detached the device
        # What filesystems use of the disk and its partitions; replaced as a whole, as ``window`` is
        self.uses: tuple[Use, ...] = ()
        self._reset()

    def _reset(self) -> None:
        self.backing: Backing | None = None
        self.info = LoopInfo64()
        self.block_size = SECTOR_SIZE  # the logical block size, in bytes
        self.read_ahead = READ_AHEAD_SECTORS  # BLKRAGET
        # Always replaced as a whole, so that a data path in another thread sees a consistent value.
        self.window: Window | None = None

    @property
    def disk(self) -> LoopDevice:
        return self

    @property
    def flags(self) -> int:
        return self.info.flags

    @property
    def capacity(self) -> int:
        return self.window.capacity if self.window else 0

    # --- opening -------------------------------------------------------------

    @property
    def open_count(self) -> int:
        """The number of openers of the disk and its partitions (disk_openers)."""
        return len(self.openers) + sum(len(p.openers) for p in self.partitions.values())

    @property
    def claimed(self) -> bool:
        return self.held or any(partition.held for partition in self.partitions.values())

    def open(self, *, write: bool, exclusive: bool = False) -> Opener:
        if exclusive and self.claimed:
            raise DriverError(errno.EBUSY, f"{self.name} is claimed by another opener")
        if write:
            self.check_may_open_for_writing()
        self.check_may_open()
        return self.opened(write=write, exclusive=exclusive)

    @property
    def going_away(self) -> bool:
        return self.state in (State.Lo_rundown, State.Lo_deleting)

    def check_may_open(self) -> None:
        """Check that the disk can be opened, directly or through a partition (lo_open).

        Raises:
            DriverError: ENXIO if the device is being detached or removed.
        """
        if self.going_away:
            raise DriverError(errno.ENXIO, f"{self.name} is being detached")

    def release(self, opener: Opener) -> None:
        """Remove an opener when the last reference to its open file description is closed."""
        opener.bdev.closed(opener)
        if self.open_count:
            return
        if self.state is State.Lo_rundown or (
            self.state is State.Lo_bound and self.flags & LO_FLAGS_AUTOCLEAR
        ):
            self._clear()

    # --- binding -------------------------------------------------------------

    def configure(self, opener: Opener, backing: Backing, config: LoopConfig) -> None:
        """Bind the device: LOOP_CONFIGURE, or LOOP_SET_FD with an empty ``config``.

        The device owns ``backing`` only if this method returns without an exception.

        Raises:
            DriverError: EBUSY (bound, or claimed by another opener), EBADF (the file is this
                device, directly or through other devices), EINVAL (a file that cannot be bound,
                unknown flags, bad block size, encryption), EOVERFLOW (an offset or size limit
                beyond 2^63-1).
        """
        self._check_transfers(backing)
        self.check_claim(opener)
        if self.state is not State.Lo_unbound:
            raise DriverError(errno.EBUSY, f"{self.name} is in use")
        self._validate_file(backing)
        if config.info.flags & ~LOOP_CONFIGURE_SETTABLE_FLAGS:
            raise DriverError(errno.EINVAL, "unknown flag in LOOP_CONFIGURE")
        check_info(config.info)
        window = window_of(backing, config.info)
        self._freed_for = None
        flags = config.info.flags
        if not opener.write or not backing.writable:
            flags |= LO_FLAGS_READ_ONLY
        if backing.direct:
            flags |= LO_FLAGS_DIRECT_IO
        # As in the kernel, these keep their new values if the block size is refused.
        self.read_only_disk = bool(flags & LO_FLAGS_READ_ONLY)
        self._media_change()
        block_size = config.block_size or _default_block_size(backing, flags)
        _check_block_size(block_size)
        self.backing = backing
        self.block_size = block_size
        self._store_info(config.info, flags)
        self._update_direct_io(backing)
        self.write_cache = not self.read_only_disk
        self.discards = True
        self.state = State.Lo_bound
        self._unbound.discard(self.number)
        self.window = window
        self._events.append(uevent("change", self))
        if flags & LO_FLAGS_PARTSCAN:
            self._reread_partitions()

    def change_fd(self, backing: Backing) -> None:
        """Replace the backing file by one of the same size (LOOP_CHANGE_FD).

        If this method returns without an exception, the device owns ``backing`` and has closed the
        old file.

        Raises:
            DriverError: ENXIO (not bound), EINVAL (not read-only, a file that cannot be bound, or
                one of another size), EBADF (the file is this device).
        """
        self._check_transfers(backing)
        old = self._require_bound()
        if not self.flags & LO_FLAGS_READ_ONLY:
            raise DriverError(errno.EINVAL, f"{self.name} is not read-only")
        self._validate_file(backing)
        window = window_of(backing, self.info)
        if window.capacity != window_of(old, self.info).capacity:
            raise DriverError(errno.EINVAL, "the file has a different size")
        self.backing = backing
        self.window = window._replace(capacity=self.capacity)
        if backing.direct:
            self._set_flag(LO_FLAGS_DIRECT_IO)
        self._update_direct_io(backing)
        self._media_change()
        self._events.append(uevent("change", self))
        if self.flags & LO_FLAGS_PARTSCAN:
            self._reread_partitions()
        old.close()

    def freed_by_umount(self, process: int) -> None:
        """Note that an umount2(2) of this process has ended the last use of a mounted filesystem.

        umount(8) calls LOOP_CLR_FD afterwards if it does not see the flag autoclear, as when /sys
        shows other devices. Other openers may not have closed the device yet.
        """
        if self.state is not State.Lo_bound or self.flags & LO_FLAGS_AUTOCLEAR:
            self._freed_for = process

    def is_freed_for(self, caller: Caller) -> bool:
        """Return whether the caller's umount2(2) has detached the device; True only once."""
        if self.state is not State.Lo_unbound or self._freed_for is None:
            return False
        if self._freed_for != caller.process:
            return False
        self._freed_for = None
        return True

    def clr_fd(self) -> None:
        """Detach the device at its last close (LOOP_CLR_FD).

        Raises:
            DriverError: ENXIO if the device is not bound.
        """
        self._require_bound()
        self._set_flag(LO_FLAGS_AUTOCLEAR)
        if self.open_count == 1:
            self.state = State.Lo_rundown
            if self.window:
                self.window = self.window._replace(backing=None)
            if self.flags & LO_FLAGS_PARTSCAN:
                # The kernel removes them at the last close, before close(2) returns. Here the close
                # may be processed after that, and the partitions cannot be opened any more.
                self.partitions.drop_all()

    def _clear(self) -> None:
        backing, scanned = self.backing, self.flags & LO_FLAGS_PARTSCAN
        self._reset()
        self.state = State.Lo_unbound
        self._unbound.add(self.number)
        # Both uevents carry the sequence number of the old medium.
        self._events += (uevent("change", self), uevent("change", self, "DISK_MEDIA_CHANGE=1"))
        self._media_change()
        if scanned:
            self._reread_partitions()
        if backing is not None:
            backing.close()

    def detach_when_unused(self) -> None:
        """Detach the device at once, or at its last close if it is open."""
        if self.state is State.Lo_bound:
            self._set_flag(LO_FLAGS_AUTOCLEAR)
            if not self.open_count:
                self._clear()

    def shut_down(self) -> None:
        """Detach the device in whatever state it is, since the instance is removed."""
        if self.backing is not None:
            self._clear()
        self.partitions.drop_all()
        self.state = State.Lo_deleting

    def _check_transfers(self, backing: Backing) -> None:
        if not backing.transfers:
            raise DriverError(errno.EINVAL, "a file that can be neither read nor written")

    def _validate_file(self, backing: Backing) -> None:
        file: Backing | None = backing
        while file is not None and isinstance(below := file.loop_device, BlockDevice):
            if below.disk is self:
                raise DriverError(errno.EBADF, f"{self.name} cannot be bound to itself")
            if below.disk.state is not State.Lo_bound:
                raise DriverError(errno.EINVAL, f"{below.name} is not bound to a file")
            file = below.disk.backing
        if not backing.supported:
            raise DriverError(errno.EINVAL, "neither a regular file nor a block device")

    def _require_bound(self) -> Backing:
        if self.state is not State.Lo_bound or self.backing is None:
            raise DriverError(errno.ENXIO, f"{self.name} is not bound to a file")
        return self.backing

    # --- status --------------------------------------------------------------

    def set_status(self, info: LoopInfo64) -> None:
        """Change offset, size limit, name and flags of a bound device (LOOP_SET_STATUS64).

        LO_FLAGS_AUTOCLEAR can be set and cleared, LO_FLAGS_PARTSCAN can only be set; other flags
        in ``info`` are ignored.

        Raises:
            DriverError: ENXIO (not bound), EINVAL (encryption), EOVERFLOW.
        """
        backing = self._require_bound()
        check_info(info)
        moved = (info.offset, info.sizelimit) != (self.info.offset, self.info.sizelimit)
        window = window_of(backing, info) if moved else None
        scan = info.flags & ~self.flags & LO_FLAGS_PARTSCAN
        kept = self.flags & ~LOOP_SET_STATUS_CLEARABLE_FLAGS
        self._store_info(info, kept | info.flags & LOOP_SET_STATUS_SETTABLE_FLAGS)
        self._update_direct_io(backing)
        if window:
            self._resize(window)
        if scan:
            self._reread_partitions()

    def get_status(self) -> LoopInfo64:
        """Return the status of the device (LOOP_GET_STATUS64).

        Raises:
            DriverError: ENXIO if the device is not bound.
        """
        dev, ino, rdev = self._require_bound().identity
        return self.info._replace(device=dev, inode=ino, rdevice=rdev, number=self.number)

    def set_capacity(self) -> None:
        """Adapt the size of the device to the current size of the file (LOOP_SET_CAPACITY).

        Raises:
            DriverError: ENXIO if the device is not bound.
        """
        self._resize(window_of(self._require_bound(), self.info))

    def set_direct_io(self, wanted: bool) -> None:
        """Switch direct I/O on or off (LOOP_SET_DIRECT_IO).

        Raises:
            DriverError: ENXIO (not bound), EINVAL (the file does not support direct I/O, or only
                with larger blocks than those of the device).
        """
        backing = self._require_bound()
        if wanted and not self._may_be_direct(backing):
            raise DriverError(errno.EINVAL, "the file does not support direct I/O for this device")
        self._set_flag(LO_FLAGS_DIRECT_IO, wanted)

    def set_block_size(self, opener: Opener, size: int) -> None:
        """Set the logical block size in bytes; 0 is the default (LOOP_SET_BLOCK_SIZE).

        Raises:
            DriverError: EBUSY (claimed by another opener), ENXIO (not bound), EINVAL (not a
                power of two from 512 to 64 KiB).
        """
        self.check_claim(opener)
        backing = self._require_bound()
        if size == self.block_size:
            return
        size = size % 2**32 or _default_block_size(backing, self.flags)
        _check_block_size(size)
        self.block_size = size
        self.read_ahead = READ_AHEAD_SECTORS
        self._update_direct_io(backing)
        self._events.append(Invalidate(self))

    def _set_flag(self, flag: int, on: bool = True) -> None:
        flags = self.flags | flag if on else self.flags & ~flag
        self.info = self.info._replace(flags=flags)

    def _may_be_direct(self, backing: Backing) -> bool:
        unit = backing.min_dio_size()
        return bool(unit) and self.block_size >= unit and self.info.offset % unit == 0

    def _update_direct_io(self, backing: Backing) -> None:
        """Clear LO_FLAGS_DIRECT_IO if direct I/O is not possible (loop_update_dio)."""
        if self.flags & LO_FLAGS_DIRECT_IO and not self._may_be_direct(backing):
            self._set_flag(LO_FLAGS_DIRECT_IO, False)

    def _store_info(self, info: LoopInfo64, flags: int) -> None:
        self.info = LoopInfo64(
            offset=info.offset,
            sizelimit=info.sizelimit,
            flags=flags,
            file_name=info.file_name[: LO_NAME_SIZE - 1],
        )

    # --- changes of the medium and its size -----------------------------------

    def _media_change(self) -> None:
        """Account for a new medium: new sequence number, no pages (disk_force_media_change)."""
        self.diskseq = self.minors.next_diskseq()
        self._events.append(Invalidate(self))

    def _resize(self, window: Window) -> None:
        old, self.window = self.capacity, window
        # No RESIZE=1 if the old or the new size is 0 (set_capacity_and_notify).
        resized = old and window.capacity and window.capacity != old
        environment = ("RESIZE=1",) if resized else ()
        self._events += (Invalidate(self), uevent("change", self, *environment))

    # --- partitions ----------------------------------------------------------

    def scan_partitions(self, opener: Opener) -> None:
        """Read the partition table again (BLKRRPART).

        Raises:
            DriverError: EINVAL (the device does not have LO_FLAGS_PARTSCAN), EBUSY (a partition
                is open, or another opener has claimed the device), ENXIO (the device is being
                detached).
        """
        if not self.flags & LO_FLAGS_PARTSCAN:
            raise DriverError(errno.EINVAL, f"{self.name} does not have the flag partscan")
        if self.partitions.open:
            raise DriverError(errno.EBUSY, f"a partition of {self.name} is open")
        self.check_claim(opener)
        self.check_may_open()
        self._reread_partitions()

    def _reread_partitions(self) -> None:
        """Remove the partitions and request a new scan (bdev_disk_changed)."""
        if self.partitions.open:
            return  # the kernel logs a warning and keeps them
        self.partitions.drop_all()
        if self.capacity:
            self._events.append(ReadPartitions(self))

    # --- data ----------------------------------------------------------------

    def extent(self, position: int, length: int) -> Extent | None:
        window = self.window
        if window is None:
            return None
        length = min(length, window.capacity - position)
        if length <= 0:
            return None
        if window.backing is None:
            raise DriverError(errno.EIO, f"{self.name} is being detached")
        if position + length > window.capacity - window.capacity % self.block_size:
            raise DriverError(errno.EIO, f"{self.name} ends with an incomplete block")
        return window.backing, window.offset + position, length


def _default_block_size(backing: Backing, flags: int) -> int:
    """Return the default block size in bytes (loop_default_blocksize)."""
    direct = backing.min_dio_size() if flags & LO_FLAGS_DIRECT_IO else 0
    return direct or SECTOR_SIZE


def _check_block_size(size: int) -> None:
    if not valid_block_size(size):
        raise DriverError(errno.EINVAL, f"{size} is not a valid block size")
