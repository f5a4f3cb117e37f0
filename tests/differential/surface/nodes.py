"""The nodes and descriptors on which ioctls are made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.differential.steps import uapi
from tests.differential.steps.bench import Bench, Device, ioctl, remove_all
from tests.differential.steps.partitions import ADD, blkpg, nodes, pg
from tests.differential.surface.asker import Argument, Asker, Hidden, Memory
from tests.differential.surface.commands import DEVICE, FILES

SIZE = 1 << 20


class Kind(NamedTuple):
    """A kind of node, and how it is opened.

    Args:
        config: of struct loop_config; None for a device that is not bound.
        image: how its file is opened.
        opening: how its node is.
        partition: the node of a partition is asked.
        capable: who asks has CAP_SYS_ADMIN.
    """

    config: dict[str, int] | None = None
    image: int = os.O_RDWR
    opening: int = os.O_RDWR
    partition: bool = False
    capable: bool = True


CONTROL = "loop-control"
INCAPABLE_CONTROL = f"{CONTROL} without the capability"
KINDS = {
    "unbound": Kind(),
    "bound": Kind({}),
    "bound read-only": Kind({"flags": uapi.READ_ONLY}),
    "of a read-only file": Kind({}, image=os.O_RDONLY),
    "open for reading": Kind({}, opening=os.O_RDONLY),
    "open for writing": Kind({}, opening=os.O_WRONLY),
    "sectors of 4096": Kind({"block_size": 4096}),
    "with partitions": Kind({"flags": uapi.PARTSCAN}),
    "partition": Kind({"flags": uapi.PARTSCAN}, partition=True),
    "partition open for reading": Kind(
        {"flags": uapi.PARTSCAN}, opening=os.O_RDONLY, partition=True
    ),
    "without the capability": Kind({}, capable=False),
    "without it, open for reading": Kind({}, opening=os.O_RDONLY, capable=False),
    "without it, unbound": Kind(opening=os.O_RDONLY, capable=False),
    "partition without it": Kind({"flags": uapi.PARTSCAN}, partition=True, capable=False),
}

Masked = list[object]


class Place:
    """Where nodes are made, and the program that asks them.

    Args:
        bench: makes devices and images.
        asker: the program; it gets the descriptors of FILES.
    """

    _device: Device

    def __init__(self, bench: Bench, asker: Asker) -> None:
        self.bench = bench
        self.asker = asker
        self._unbound = bench.device()
        paths = {
            "another image": (bench.image(SIZE, b"B"), os.O_RDWR),
            "an image open for reading": (bench.image(SIZE), os.O_RDONLY),
            "a directory": (bench.directory, os.O_RDONLY),
            "no block device": ("/dev/null", os.O_RDWR),
            "a smaller image": (bench.image(SIZE // 2), os.O_RDWR),
            "O_PATH": (bench.image(SIZE), os.O_PATH),
            "O_DIRECT": (bench.image(SIZE), os.O_RDWR | os.O_DIRECT),
            "an unbound device": (self._unbound.path, os.O_RDWR),
        }
        for name, slot in FILES.items():
            asker.open(slot, *paths[name])

    def leave(self) -> None:
        self.asker.stop()
        assert not remove_all([self._unbound.number])

    @contextmanager
    def control(self) -> Iterator[None]:
        """The control node is what is asked."""
        self.asker.open(DEVICE, os.path.realpath("/dev/loop-control"), os.O_RDWR)
        yield
        self.asker.close(DEVICE)

    @contextmanager
    def node(self, kind: Kind) -> Iterator[None]:
        """A new node of a kind is what is asked; nobody else has it open."""
        device = self.bench.device()
        if kind.config is not None:
            self._bind(device.open(), kind, kind.config)
        self._device = device
        self.asker.open(DEVICE, device.path + ("p1" if kind.partition else ""), kind.opening)
        yield
        self.asker.close(DEVICE)
        assert not remove_all([device.number]), f"{device.path} stays in use"

    def _bind(self, fd: int, kind: Kind, config: dict[str, int]) -> None:
        image = os.open(self.bench.image(SIZE, b"A"), kind.image | os.O_CLOEXEC)
        ioctl(fd, uapi.LOOP_CONFIGURE, uapi.config(image, file_name=b"/the/image", **config))
        os.close(image)
        if config.get("flags", 0) & uapi.PARTSCAN:
            pg(fd, blkpg(ADD, 1, 4096, SIZE // 2))
        os.close(fd)

    def ask(self, cmd: int, argument: Argument, hidden: Hidden) -> Masked:
        """What came of an ioctl: its result, and what it changed from which byte on."""
        result, at, changed = self.asker.ioctl(DEVICE, cmd, argument, hidden)
        return [result, at, changed.hex()] if changed else [result]

    def state(self) -> Masked:
        """What the device says of itself, and the names of its partitions."""
        status = self._get(uapi.LOOP_GET_STATUS64, uapi.INFO64_SIZE)
        said: Masked = [status]
        if isinstance(status, bytes):
            info = uapi.unpack_info64(status)
            said = [info[name] for name in ("offset", "sizelimit", "flags")]
            said.append(status.rstrip(b"\0").hex()[112:])
        shift = (8 - self.asker.word) << 16
        for cmd, size in (
            (uapi.BLKGETSIZE64 - shift, 8),
            (uapi.BLKBSZGET - shift, 4),
            (uapi.BLKSSZGET, 4),
            (uapi.BLKROGET, 4),
        ):
            data = self._get(cmd, size)
            said.append(int.from_bytes(data, "little") if isinstance(data, bytes) else data)
        return [*said, *nodes(self._device)]

    def _get(self, cmd: int, size: int) -> bytes | int | str:
        """What a getter stores, or its errno."""
        result, page = self.asker.page(DEVICE, cmd, Memory(bytes(size)))
        return page[:size] if result == 0 else result
