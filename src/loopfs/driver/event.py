"""What the driver tells the world, as values."""

from __future__ import annotations

from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.driver.bdev import BlockDevice
    from loopfs.driver.loop import LoopDevice


class Uevent(NamedTuple):
    """A kobject uevent of a disk or a partition.

    ``action`` is add, change or remove, or what was written to the attribute uevent;
    ``environment`` are the variables that the cause brings along; ``diskseq`` is the disk's
    sequence number at the time.
    """

    action: str
    device: BlockDevice
    environment: tuple[str, ...]
    diskseq: int


def uevent(action: str, device: BlockDevice, *environment: str) -> Uevent:
    """A uevent of now."""
    return Uevent(action, device, environment, device.disk.diskseq)


class Invalidate(NamedTuple):
    """What the device reads or its size has changed: cached pages must go."""

    device: BlockDevice


class ReadPartitions(NamedTuple):
    """The partition table is to be read, and told to the device's ``partitions``."""

    device: LoopDevice


Event = Uevent | Invalidate | ReadPartitions
