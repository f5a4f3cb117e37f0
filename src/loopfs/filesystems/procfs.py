"""/proc/partitions: the sandbox's devices in addition to the host's (block/genhd.c)."""

from __future__ import annotations

import stat
import time
from itertools import count

from loopfs.driver.bdev import BlockDevice
from loopfs.filesystems.sysfs import Disks
from loopfs.fuse.operations import Buffer, Operations
from loopfs.fuse.session import Request
from loopfs.uapi.fuse import FOPEN_DIRECT_IO, FUSE_ROOT_ID, Attr

PATH = "/proc/partitions"
BLOCK = 1024  # bytes


class PartitionsFile(Operations):
    """The file, which is the root of its mount.

    Args:
        disks: the devices of the sandbox.
        hosts_loops: whether the host's loop devices are shown, as its other devices are.
    """

    def __init__(self, disks: Disks, *, hosts_loops: bool = True) -> None:
        self._disks = disks
        self._hosts_loops = hosts_loops
        self._now = time.time_ns()
        self._handles = count(1)
        self._texts: dict[int, bytes] = {}

    def getattr(self, nodeid: int) -> Attr:
        return Attr(FUSE_ROOT_ID, 0, stat.S_IFREG | 0o444, 1, 0, 0, 0, (self._now,) * 3)

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        handle = next(self._handles)
        self._texts[handle] = b""
        return handle, FOPEN_DIRECT_IO

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        if offset == 0:  # as in seq_file, a read from the start generates new contents
            self._texts[handle] = self._text(request.pid).encode()
        return self._texts[handle][offset : offset + size]

    def release(self, request: Request, handle: int) -> None:
        del self._texts[handle]
        request.reply()

    def _text(self, tid: int) -> str:
        with open(PATH, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line for line in file if self._hosts_loops or not _is_of_loop(line)]
        self._disks.catch_up()
        own: list[BlockDevice] = []
        for disk in list(self._disks.seen_by(tid).values()):
            own += [disk, *disk.partitions.in_order()]
        # Devices of size 0 are not shown.
        lines += [_line(device) for device in own if device.capacity]
        return "".join(lines)


def _is_of_loop(line: str) -> bool:
    return line.split()[-1:] != [] and line.rsplit(maxsplit=1)[-1].startswith("loop")


def _line(device: BlockDevice) -> str:
    return f"{device.major:4d}  {device.minor:7d} {device.capacity // BLOCK:10d} {device.name}\n"
