"""The sysfs attributes of a loop disk (block/genhd.c, block/blk-sysfs.c, loop_attr_group)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.block import MAX_SECTORS
from loopfs.driver.loop import LoopDevice
from loopfs.driver.uevent import synthesize, variables
from loopfs.lean import Any, NamedTuple
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


Show = Callable[[Any], str]
Store = Callable[[BlockDevice, str], None]


class Attribute(NamedTuple):
    """A file. ``shown`` returns its contents for a device, without the newline; ``stored`` is
    called with what is written to it. If ``stored`` is None, the file is read-only."""

    device: BlockDevice
    shown: Show
    stored: Store | None

    def show(self) -> str:
        return self.shown(self.device)


class Directory(Mapping[str, "Item"]):
    """A directory of a device: a table of its attributes, and its other entries."""

    __slots__ = ("_device", "_files", "_others")

    def __init__(
        self, device: BlockDevice, files: Mapping[str, Show], others: Mapping[str, Item] | None
    ) -> None:
        self._device = device
        self._files = files
        self._others = others or {}

    def __getitem__(self, name: str) -> Item:
        if name in self._files:
            return Attribute(self._device, self._files[name], _STORES.get(name))
        return self._others[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._files
        yield from self._others

    def __len__(self) -> int:
        return len(self._files) + len(self._others)


Item = Attribute | Link | Directory


def device_number(device: BlockDevice) -> str:
    """Return the attribute ``dev``."""
    return f"{device.major}:{device.minor}"


def disk(device: LoopDevice) -> Directory:
    """Return the directory of a disk."""
    empty = Directory(device, {}, None)
    others: dict[str, Item] = {
        "holders": empty,
        "queue": Directory(device, _QUEUE, None),
        "slaves": empty,
        "subsystem": Link("../../../../class/block"),
    }
    if device.backing is not None:
        others["loop"] = Directory(device, _LOOP, None)
    for part in device.partitions.in_order():
        links: dict[str, Item] = {
            "holders": Directory(part, {}, None),
            "subsystem": Link("../../../../../class/block"),
        }
        others[part.name] = Directory(part, _PARTITION, links)
    return Directory(device, _DISK, others)


def _constants(texts: Mapping[str, str]) -> dict[str, Show]:
    def constant(text: str) -> Show:
        return lambda device: text

    return {name: constant(text) for name, text in texts.items()}


def _flag(mask: int) -> Show:
    return lambda device: str(int(bool(device.flags & mask)))


def _sectors(device: BlockDevice) -> str:
    return str(device.capacity // SECTOR_SIZE)


# The attributes of both a disk and a partition.
_COMMON: dict[str, Show] = {
    "dev": device_number,
    "inflight": lambda device: device.statistics.inflight(),
    "ro": lambda device: str(int(device.read_only)),
    "size": _sectors,
    "stat": lambda device: device.statistics.show(),
    "uevent": lambda device: "\n".join(variables(device, device.disk.diskseq)),
} | _constants({"alignment_offset": "0", "discard_alignment": "0"})

_DISK: dict[str, Show] = (
    _COMMON
    | {
        "diskseq": lambda device: str(device.diskseq),
        "partscan": _flag(LO_FLAGS_PARTSCAN),
    }
    | _constants(
        {
            "capability": "0",
            "events": "media_change",
            "events_async": "",
            "events_poll_msecs": "-1",
            "ext_range": "256",
            "hidden": "0",
            "range": "1",
            "removable": "0",
        }
    )
)

_PARTITION: dict[str, Show] = _COMMON | {
    "partition": lambda part: str(part.number),
    "start": lambda part: str(part.start // SECTOR_SIZE),
}

_STORES: dict[str, Store] = {"uevent": synthesize}

# The directory exists only while the device is bound.
_LOOP: dict[str, Show] = {
    "autoclear": _flag(LO_FLAGS_AUTOCLEAR),
    "backing_file": lambda device: device.backing.path if device.backing else "",
    "dio": _flag(LO_FLAGS_DIRECT_IO),
    "offset": lambda device: str(device.info.offset),
    "partscan": _flag(LO_FLAGS_PARTSCAN),
    "sizelimit": lambda device: str(device.info.sizelimit),
}


def _block_size(device: LoopDevice) -> str:
    return str(device.block_size)


def _max_discard(device: LoopDevice) -> str:
    return str(MAX_DISCARD if device.discards else 0)


_QUEUE: dict[str, Show] = {
    "discard_granularity": lambda device: str(4096 if device.backing else 0),
    "discard_max_bytes": _max_discard,
    "discard_max_hw_bytes": _max_discard,
    "hw_sector_size": _block_size,
    "logical_block_size": _block_size,
    "minimum_io_size": _block_size,
    "physical_block_size": _block_size,
    "read_ahead_kb": lambda device: str(device.read_ahead * SECTOR_SIZE // 1024),
    "write_cache": lambda device: "write back" if device.write_cache else "write through",
    "write_zeroes_max_bytes": _max_discard,
} | _constants(
    {
        "add_random": "0",
        "chunk_sectors": "0",
        "dax": "0",
        "discard_zeroes_data": "0",
        "dma_alignment": "511",
        "fua": "0",
        "io_poll": "0",
        "io_poll_delay": "-1",
        "iostats": "1",
        "max_discard_segments": "1",
        "max_hw_sectors_kb": str(MAX_SECTORS * SECTOR_SIZE // 1024),
        "max_integrity_segments": "0",
        "max_sectors_kb": str(MAX_SECTORS * SECTOR_SIZE // 1024),
        "max_segment_size": "65536",
        "max_segments": "128",
        "nomerges": "0",
        "nr_requests": "128",
        "nr_zones": "0",
        "optimal_io_size": "0",
        "rotational": "0",
        "rq_affinity": "1",
        "scheduler": "[none]",
        "stable_writes": "0",
        "virt_boundary_mask": "0",
        "write_same_max_bytes": "0",
        "zone_append_max_bytes": "0",
        "zone_write_granularity": "0",
        "zoned": "none",
    }
)
