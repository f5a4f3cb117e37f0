"""Processing of an ioctl(2) of a device, from its request to its answer.

It is processed by a thread that can block. The driver is called with its lock held and does not
block: pages are written and dropped before and after the call (:mod:`loopfs.driver.pages`), and the
caller's memory and files and the size of the backing file are read in between
(:mod:`loopfs.filesystems.caller`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from loopfs.driver import block as driver_block
from loopfs.driver import ioctl as driver_ioctl
from loopfs.driver.bdev import BlockDevice, Opener
from loopfs.driver.pages import CHANGES
from loopfs.errors import LoopfsError
from loopfs.filesystems import blockdev
from loopfs.filesystems.backing import BackingFile
from loopfs.filesystems.caller import IoctlCaller, Missing
from loopfs.fuse.session import Request
from loopfs.lean import TYPE_CHECKING
from loopfs.process import Process
from loopfs.uapi import loop
from loopfs.uapi.block import BLKDISCARD, BLKFLSBUF, BLKRRPART, BLKZEROOUT

if TYPE_CHECKING:
    from loopfs.filesystems.loopfs import LoopFilesystem

T = TypeVar("T")

# Commands for which the driver needs the current size of the backing file.
_ASK_THE_FILE = frozenset(
    {loop.LOOP_SET_STATUS, loop.LOOP_SET_STATUS64, loop.LOOP_SET_CAPACITY, loop.LOOP_CHANGE_FD}
)
_ON_RANGES = {
    BLKDISCARD: (driver_block.discard_range, blockdev.discard),
    BLKZEROOUT: (driver_block.zero_range, blockdev.zero_out),
}


class UnreadableTable(LoopfsError):
    """A partition table cannot be read; the message names the disk."""


class Ioctl:
    """A call of ioctl(2).

    Args:
        filesystem: the instance of the device.
        device, opener: the open file.
        cmd, arg: the arguments as numbers.
        compat: whether a 32-bit program makes the call.
    """

    def __init__(
        self,
        filesystem: LoopFilesystem,
        request: Request,
        device: BlockDevice,
        opener: Opener,
        cmd: int,
        arg: int,
        compat: bool,
    ) -> None:
        self._filesystem = filesystem
        self._request = request
        self._device = device
        self._opener = opener
        self._cmd = cmd
        self._arg = arg
        self._caller = IoctlCaller(
            Process(request.pid), 4 if compat else 8, filesystem.userns, filesystem.backing
        )

    def carry_out(self) -> None:
        """Carry out the call and answer the request. Raises OSError."""
        try:
            result = self._change_range() if self._cmd in _ON_RANGES else self._call()
            self._caller.store()
        except UnreadableTable as problem:
            if self._cmd == BLKRRPART:
                raise
            # The kernel also logs a message and continues (loop_reread_partitions).
            print(f"loopfs: cannot read the partition table: {problem.strerror}", file=sys.stderr)
            result = 0
        finally:
            self._caller.close()
        self._request.reply_ioctl(result)

    def _call(self) -> int:
        if self._cmd == BLKFLSBUF and self._caller.capable():
            self._filesystem.sync_mounted(self._device)
        if self._cmd in CHANGES:
            self._filesystem.drop_pages(self._device)
        if self._cmd in _ASK_THE_FILE and isinstance(self._device.disk.backing, BackingFile):
            self._device.disk.backing.refresh()
        return self._drive(
            lambda: driver_ioctl.ioctl(
                self._device, self._opener, self._caller, self._cmd, self._arg
            )
        )

    def _change_range(self) -> int:
        device, (byte_range, change) = self._device, _ON_RANGES[self._cmd]
        start, length = self._drive(
            lambda: byte_range(device, self._opener, self._caller, self._arg)
        )
        # If its dirty pages were written later, that would undo the change.
        self._filesystem.drop_pages(device, start, length)
        change(device, start, length)
        self._filesystem.touch(device)
        self._filesystem.drop_pages(device, start, length)
        return 0

    def _drive(self, call: Callable[[], T]) -> T:
        while True:
            try:
                return self._filesystem.drive(call, may_wait=True)
            except Missing as missing:
                missing.fetch()
