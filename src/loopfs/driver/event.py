"""What the driver tells the world, as values."""

from __future__ import annotations

from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.driver.bdev import BlockDevice
    from loopfs.driver.loop import LoopDevice


class Uevent(NamedTuple):
    """A kobject uevent of a disk or a partition.

    ``action`` is add, change or remove; ``environment`` what it carries besides.
    """

    action: str
    device: BlockDevice
    environment: tuple[str, ...] = ()


class Invalidate(NamedTuple):
    """What the device reads or its size has changed: cached pages must go."""

    device: BlockDevice


class ReadPartitions(NamedTuple):
    """The partition table is to be read, and told to the device's ``partitions``."""

    device: LoopDevice


Event = Uevent | Invalidate | ReadPartitions
