"""A loop device: its states, its backing file, its openers.

The states and their moves (drivers/block/loop.c)::

    Lo_unbound --LOOP_SET_FD, LOOP_CONFIGURE--> Lo_bound
    Lo_bound   --LOOP_CLR_FD, one opener------> Lo_rundown
    Lo_bound, Lo_rundown --last close---------> Lo_unbound   (AUTOCLEAR or rundown)
    Lo_unbound --LOOP_CTL_REMOVE--------------> Lo_deleting

LOOP_CLR_FD never frees the backing file at once: it marks the device, and the last
close frees it. That is how the running kernels avoid a race of detach with open.
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
    """enum of drivers/block/loop.c, in its spelling."""

    Lo_unbound = 0
    Lo_bound = 1
    Lo_rundown = 2
    Lo_deleting = 3


class LoopDevice(BlockDevice):
    """One loop device of one instance.

    Args:
        number: its minor number and the N of its name.
        minors: where disk sequence numbers and the partitions' numbers come from.
        events: where the device appends what the world must do.
        unbound: the instance's devices that are; it keeps its own number there.
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
        self.read_only_disk = False  # stays when the device is freed, until it is bound again
        # What the queue can do stays likewise: flush, discard.
        self.write_cache = False
        self.discards = False
        self.partitions = Partitions(self, events)
        self._freed_for: int | None = None  # the process whose umount2(2) has freed it
        # Replaced as a whole, as the window is; of its partitions too.
        self.uses: tuple[Use, ...] = ()
        self._reset()

    def _reset(self) -> None:
        self.backing: Backing | None = None
        self.info = LoopInfo64()
        self.block_size = SECTOR_SIZE  # the logical block size, in bytes
        self.read_ahead = READ_AHEAD_SECTORS  # BLKRAGET
        # Replaced as a whole, so that a data path in another thread sees no mixture.
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
        """How often it is open, by its own node or by a partition's (disk_openers)."""
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
        """The disk is opened, by itself or through a partition (lo_open).

        Raises:
            DriverError: ENXIO while the device is going away.
        """
        if self.going_away:
            raise DriverError(errno.ENXIO, f"{self.name} is being detached")

    def release(self, opener: Opener) -> None:
        """The last reference to an open file description is gone."""
        opener.bdev.closed(opener)
        if self.open_count:
            return
        if self.state is State.Lo_rundown or (
            self.state is State.Lo_bound and self.flags & LO_FLAGS_AUTOCLEAR
        ):
            self._clear()

    # --- binding -------------------------------------------------------------

    def configure(self, opener: Opener, backing: Backing, config: LoopConfig) -> None:
        """Bind the device: LOOP_CONFIGURE, and LOOP_SET_FD with an empty ``config``.

        The device keeps ``backing`` only when this returns.

        Raises:
            DriverError: EBUSY (bound, or claimed by another opener), EBADF (the file
                is this device, directly or through others), EINVAL (no file to bind
                to, unknown flags, bad block size, encryption), EOVERFLOW (an offset
                or limit beyond 2^63-1).
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
        # As in the kernel these stay when the block size is refused.
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
        """LOOP_CHANGE_FD: go on with another file of the same size.

        The device keeps ``backing`` only when this returns, and has closed the old file.

        Raises:
            DriverError: ENXIO (not bound), EINVAL (not read-only, no file to bind to, or
                of another size), EBADF (the file is this device).
        """
        self._check_transfers(backing)
        old = self._require_bound()
        if not self.flags & LO_FLAGS_READ_ONLY:
            raise DriverError(errno.EINVAL, f"{self.name} is not read-only")
        self._validate_file(backing)
        window = window_of(backing, self.info)
        if window.capacity != window_of(old, self.info).capacity:
            raise DriverError(errno.EINVAL, "the file has another size")
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
        """An umount2(2) of this process has ended the last use of what was mounted.

        umount(8) that sees no autoclear, as below another's /sys, clears the device after that.
        Who else has the device open may still be about to close it.
        """
        if self.state is not State.Lo_bound or self.flags & LO_FLAGS_AUTOCLEAR:
            self._freed_for = process

    def is_freed_for(self, caller: Caller) -> bool:
        """The caller's umount2(2) has freed the device, and no LOOP_CLR_FD has been told so."""
        if self.state is not State.Lo_unbound or self._freed_for is None:
            return False
        if self._freed_for != caller.process:
            return False
        self._freed_for = None
        return True

    def clr_fd(self) -> None:
        """LOOP_CLR_FD: detach at the last close; at once only in name.

        Raises:
            DriverError: ENXIO when the device is not bound.
        """
        self._require_bound()
        self._set_flag(LO_FLAGS_AUTOCLEAR)
        if self.open_count == 1:
            self.state = State.Lo_rundown
            if self.window:
                self.window = self.window._replace(backing=None)
            if self.flags & LO_FLAGS_PARTSCAN:
                # The kernel does it at the close, before close(2) returns. Ours can come
                # after, and nobody can open them any more.
                self.partitions.drop_all()

    def _clear(self) -> None:
        backing, scanned = self.backing, self.flags & LO_FLAGS_PARTSCAN
        self._reset()
        self.state = State.Lo_unbound
        self._unbound.add(self.number)
        # Both are told with the number of the medium that goes.
        self._events += (uevent("change", self), uevent("change", self, "DISK_MEDIA_CHANGE=1"))
        self._media_change()
        if scanned:
            self._reread_partitions()
        if backing is not None:
            backing.close()

    def detach_when_unused(self) -> None:
        """Free the backing file at once, or at the last close."""
        if self.state is State.Lo_bound:
            self._set_flag(LO_FLAGS_AUTOCLEAR)
            if not self.open_count:
                self._clear()

    def shut_down(self) -> None:
        """The instance goes away: free the backing file whatever the state."""
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
                raise DriverError(errno.EINVAL, f"{below.name} is bound to nothing")
            file = below.disk.backing
        if not backing.supported:
            raise DriverError(errno.EINVAL, "neither a regular file nor a block device")

    def _require_bound(self) -> Backing:
        if self.state is not State.Lo_bound or self.backing is None:
            raise DriverError(errno.ENXIO, f"{self.name} is bound to nothing")
        return self.backing

    # --- status --------------------------------------------------------------

    def set_status(self, info: LoopInfo64) -> None:
        """LOOP_SET_STATUS64: change offset, limit, name and flags of a bound device.

        Only LO_FLAGS_AUTOCLEAR can be set and cleared, LO_FLAGS_PARTSCAN only set;
        other flags in ``info`` are ignored.

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
        """LOOP_GET_STATUS64.

        Raises:
            DriverError: ENXIO when the device is not bound.
        """
        dev, ino, rdev = self._require_bound().identity
        return self.info._replace(device=dev, inode=ino, rdevice=rdev, number=self.number)

    def set_capacity(self) -> None:
        """LOOP_SET_CAPACITY: see how large the file is now.

        Raises:
            DriverError: ENXIO when the device is not bound.
        """
        self._resize(window_of(self._require_bound(), self.info))

    def set_direct_io(self, wanted: bool) -> None:
        """LOOP_SET_DIRECT_IO.

        Raises:
            DriverError: ENXIO (not bound), EINVAL (the file does not take it, or only
                larger blocks than the device's).
        """
        backing = self._require_bound()
        if wanted and not self._may_be_direct(backing):
            raise DriverError(errno.EINVAL, "the file takes no direct I/O of this device")
        self._set_flag(LO_FLAGS_DIRECT_IO, wanted)

    def set_block_size(self, opener: Opener, size: int) -> None:
        """LOOP_SET_BLOCK_SIZE: the logical block size in bytes; 0 for the default.

        Raises:
            DriverError: EBUSY (claimed by another opener), ENXIO (not bound), EINVAL
                (no power of two from 512 to 64 KiB).
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
        """Drop LO_FLAGS_DIRECT_IO where it cannot be (loop_update_dio)."""
        if self.flags & LO_FLAGS_DIRECT_IO and not self._may_be_direct(backing):
            self._set_flag(LO_FLAGS_DIRECT_IO, False)

    def _store_info(self, info: LoopInfo64, flags: int) -> None:
        self.info = LoopInfo64(
            offset=info.offset,
            sizelimit=info.sizelimit,
            flags=flags,
            file_name=info.file_name[: LO_NAME_SIZE - 1],
        )

    # --- what follows --------------------------------------------------------

    def _media_change(self) -> None:
        """Another medium is in the drive (disk_force_media_change)."""
        self.diskseq = self.minors.next_diskseq()
        self._events.append(Invalidate(self))

    def _resize(self, window: Window) -> None:
        old, self.window = self.capacity, window
        # Not told of a change to or from nothing (set_capacity_and_notify).
        resized = old and window.capacity and window.capacity != old
        environment = ("RESIZE=1",) if resized else ()
        self._events += (Invalidate(self), uevent("change", self, *environment))

    # --- partitions ----------------------------------------------------------

    def scan_partitions(self, opener: Opener) -> None:
        """BLKRRPART.

        Raises:
            DriverError: EINVAL (the device has not LO_FLAGS_PARTSCAN), EBUSY (a partition
                is open, or the device is claimed by another opener), ENXIO (it is going
                away).
        """
        if not self.flags & LO_FLAGS_PARTSCAN:
            raise DriverError(errno.EINVAL, f"{self.name} does not look for partitions")
        if self.partitions.open:
            raise DriverError(errno.EBUSY, f"a partition of {self.name} is open")
        self.check_claim(opener)
        self.check_may_open()
        self._reread_partitions()

    def _reread_partitions(self) -> None:
        """Forget the partitions and look for others (bdev_disk_changed)."""
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
            raise DriverError(errno.EIO, f"{self.name} does not end with a whole block")
        return window.backing, window.offset + position, length


def _default_block_size(backing: Backing, flags: int) -> int:
    """In bytes (loop_default_blocksize)."""
    direct = backing.min_dio_size() if flags & LO_FLAGS_DIRECT_IO else 0
    return direct or SECTOR_SIZE


def _check_block_size(size: int) -> None:
    if not valid_block_size(size):
        raise DriverError(errno.EINVAL, f"{size} is no block size")
