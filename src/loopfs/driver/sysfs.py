"""What sysfs shows of a loop disk (block/genhd.c, block/blk-sysfs.c, loop_attr_group)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.block import MAX_SECTORS
from loopfs.driver.loop import LoopDevice
from loopfs.driver.partition import Partition
from loopfs.uapi.block import SECTOR_SIZE
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
)

MAX_DISCARD = 0xFFFFFE00  # bytes: UINT_MAX in whole sectors


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class Attribute(NamedTuple):
    """A file; ``show`` says what it reads as now, without the newline."""

    show: Callable[[], str]


Item = Attribute | Link | dict[str, "Item"]


def device_number(device: BlockDevice) -> str:
    """The attribute ``dev``."""
    return f"{device.major}:{device.minor}"


def place(device: BlockDevice) -> str:
    """Where its directory is, beneath that of all disks."""
    return device.name if device is device.disk else f"{device.disk.name}/{device.name}"


def disk(device: LoopDevice) -> dict[str, Item]:
    """The directory of a disk, by name of its entries."""
    entries: dict[str, Item] = {
        "alignment_offset": _constant("0"),
        "capability": _constant("0"),
        "dev": _constant(device_number(device)),
        "discard_alignment": _constant("0"),
        "diskseq": Attribute(lambda: str(device.diskseq)),
        "events": _constant("media_change"),
        "events_async": _constant(""),
        "events_poll_msecs": _constant("-1"),
        "ext_range": _constant("256"),
        "hidden": _constant("0"),
        "holders": {},
        "inflight": Attribute(device.statistics.inflight),
        "partscan": Attribute(lambda: str(int(bool(device.flags & LO_FLAGS_PARTSCAN)))),
        "queue": _queue(device),
        "range": _constant("1"),
        "removable": _constant("0"),
        "ro": Attribute(lambda: str(int(device.read_only))),
        "size": Attribute(lambda: str(device.capacity // SECTOR_SIZE)),
        "slaves": {},
        "stat": Attribute(device.statistics.show),
        "subsystem": Link("../../../../class/block"),
        "uevent": Attribute(lambda: _uevent(device)),
    }
    if device.backing is not None:
        entries["loop"] = _loop(device)
    return entries | {part.name: _partition(part) for part in list(device.partitions.values())}


def _partition(part: Partition) -> dict[str, Item]:
    return {
        "alignment_offset": _constant("0"),
        "dev": _constant(device_number(part)),
        "discard_alignment": _constant("0"),
        "holders": {},
        "inflight": Attribute(part.statistics.inflight),
        "partition": _constant(str(part.number)),
        "ro": Attribute(lambda: str(int(part.read_only))),
        "size": Attribute(lambda: str(part.capacity // SECTOR_SIZE)),
        "start": _constant(str(part.start // SECTOR_SIZE)),
        "stat": Attribute(part.statistics.show),
        "subsystem": Link("../../../../../class/block"),
        "uevent": Attribute(lambda: _partition_uevent(part)),
    }


# What a queue says of itself that nothing here can change.
_QUEUE = {
    "add_random": "0",
    "chunk_sectors": "0",
    "dax": "0",
    "dma_alignment": "511",
    "fua": "0",
    "io_poll": "0",
    "io_poll_delay": "-1",
    "iostats": "1",
    "max_discard_segments": "1",
    "max_integrity_segments": "0",
    "max_segment_size": "65536",
    "max_segments": "128",
    "nomerges": "0",
    "nr_zones": "0",
    "rq_affinity": "1",
    "stable_writes": "0",
    "virt_boundary_mask": "0",
    "write_same_max_bytes": "0",
    "zone_append_max_bytes": "0",
    "zone_write_granularity": "0",
}


def _constant(text: str) -> Attribute:
    return Attribute(lambda: text)


def _uevent(device: BlockDevice) -> str:
    fields = {
        "MAJOR": device.major,
        "MINOR": device.minor,
        "DEVNAME": device.name,
        "DEVTYPE": "disk" if device is device.disk else "partition",
        "DISKSEQ": device.disk.diskseq,
    }
    return "\n".join(f"{key}={value}" for key, value in fields.items())


def _partition_uevent(part: Partition) -> str:
    fields = _uevent(part) + f"\nPARTN={part.number}"
    return f"{fields}\nPARTNAME={part.label}" if part.label else fields


def _loop(device: LoopDevice) -> dict[str, Item]:
    """Only while the device is bound."""

    def flag(mask: int) -> Attribute:
        return Attribute(lambda: str(int(bool(device.flags & mask))))

    return {
        "autoclear": flag(LO_FLAGS_AUTOCLEAR),
        "backing_file": Attribute(lambda: device.backing.path if device.backing else ""),
        "dio": flag(LO_FLAGS_DIRECT_IO),
        "offset": Attribute(lambda: str(device.info.offset)),
        "partscan": flag(LO_FLAGS_PARTSCAN),
        "sizelimit": Attribute(lambda: str(device.info.sizelimit)),
    }


def _queue(device: LoopDevice) -> dict[str, Item]:
    block_size = Attribute(lambda: str(device.block_size))
    discard = Attribute(lambda: str(MAX_DISCARD if device.discards else 0))
    sectors_kb = _constant(str(MAX_SECTORS * SECTOR_SIZE // 1024))
    own: dict[str, Item] = {
        "discard_granularity": Attribute(lambda: str(4096 if device.backing else 0)),
        "discard_max_bytes": discard,
        "discard_max_hw_bytes": discard,
        "discard_zeroes_data": _constant("0"),
        "hw_sector_size": block_size,
        "logical_block_size": block_size,
        "max_hw_sectors_kb": sectors_kb,
        "max_sectors_kb": sectors_kb,
        "minimum_io_size": block_size,
        "nr_requests": _constant("128"),
        "optimal_io_size": _constant("0"),
        "physical_block_size": block_size,
        "read_ahead_kb": Attribute(lambda: str(device.read_ahead * SECTOR_SIZE // 1024)),
        "rotational": _constant("0"),
        "scheduler": _constant("[none]"),
        "write_cache": Attribute(lambda: "write back" if device.write_cache else "write through"),
        "write_zeroes_max_bytes": discard,
        "zoned": _constant("none"),
    }
    return own | {name: _constant(text) for name, text in _QUEUE.items()}
