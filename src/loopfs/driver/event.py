"""The events of the driver, as values. The user of the driver carries them out."""

from __future__ import annotations

from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.driver.bdev import BlockDevice
    from loopfs.driver.loop import LoopDevice


class Uevent(NamedTuple):
    """A kobject uevent of a disk or a partition.

    ``action`` is add, change or remove, or what was written to the attribute uevent;
    ``environment`` has the variables that depend on the cause; ``diskseq`` is the sequence
    number of the disk when the event occurred.
    """

    action: str
    device: BlockDevice
    environment: tuple[str, ...]
    diskseq: int


def uevent(action: str, device: BlockDevice, *environment: str) -> Uevent:
    """Return a uevent with the disk's current sequence number."""
    return Uevent(action, device, environment, device.disk.diskseq)


class Invalidate(NamedTuple):
    """The data or the size of the device has changed: drop its cached pages."""

    device: BlockDevice


class ReadPartitions(NamedTuple):
    """Read the partition table and pass its entries to ``partitions.scanned`` of the device."""

    device: LoopDevice


Event = Uevent | Invalidate | ReadPartitions
