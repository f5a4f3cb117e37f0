"""A device that an engine uses: its use, its lock, and the cleanup when the engine ends."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

from loopfs.driver.bdev import BlockDevice, Use
from loopfs.driver.loop import LoopDevice
from loopfs.filesystems import blockdev
from loopfs.filesystems.image_lock import ImageLock
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.rewriting import Change, Rewriting


class HeldDevice:
    """The base class for both ways in which an engine reads and writes a device.

    Args:
        instance: the instance of the device.
        node: the node of the device.
        use: the bytes that the engine may write, if any; removed when the engine ends.
        lock: the lock on the image; released when the engine ends.
    """

    def __init__(
        self, instance: LoopFilesystem, node: Node, use: Use | None, lock: ImageLock
    ) -> None:
        assert node.device is not None
        self._instance = instance
        self._node = node
        self._device: BlockDevice = node.device
        self._use = use
        self.lock = lock
        self._rewriting = Rewriting(self._device)
        self._errors = blockdev.SyncErrors(node.device)
        self.error = 0  # if not 0, every sync fails with this errno
        self.gone = threading.Event()  # the engine has ended, and has nothing of it open

    @property
    def writes(self) -> bool:
        """Whether the engine may write to the device."""
        return self._use is not None

    @property
    def disk(self) -> LoopDevice:
        """The disk that it is, or that it is a partition of."""
        return self._device.disk

    def freed_by_umount(self, process: int) -> None:
        """Call :meth:`loopfs.driver.loop.LoopDevice.freed_by_umount`, when the engine has ended."""
        self._instance.drive(lambda: self._device.disk.freed_by_umount(process))

    def failed(self, code: int) -> None:
        """Record that data written by the engine is lost: every later sync fails with this error,
        as on a filesystem of the kernel whose journal was aborted."""
        self.error = self.error or code

    def sync(self, datasync: bool) -> None:
        """Sync the image, and drop the cached pages of other openers of the device.

        Raises:
            OSError: as a disk does. After the first failure every sync fails.
        """
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        try:
            self._errors.sync(datasync)
            self._instance.drop_pages(self._device)
        except OSError as problem:
            self.failed(problem.errno or errno.EIO)
            raise

    def contents(self, start: int, length: int) -> bytes:
        """Return a part of the device (in bytes) as it is in the image. Raises OSError."""
        return self._rewriting.read(start, length)

    def rewrite(self, start: int, length: int, change: Change) -> None:
        """Change a part of the device in the image, now and whenever the engine writes it.

        Args:
            start, length: bytes of the device. There can be only one such part.
            change: is called with the data of that part, and returns as many bytes.
        Raises:
            OSError: EROFS if the engine only reads the device; else as a disk does.
        """
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def store(self, start: int, data: bytes) -> None:
        """Write a part of the device directly to the image. Raises OSError as a disk does."""
        self._rewriting.store(start, data)

    def drop_pages(self, start: int, length: int) -> None:
        """Drop cached pages of a part of the device, as :meth:`LoopFilesystem.drop_pages`."""
        self._instance.drop_pages(self._device, start, length)

    def exempt(self, write: Callable[[int, bytes], bool]) -> None:
        """Register a function that decides on, and makes, writes of a node to the used bytes."""
        self._instance.exempt[self._device] = write

    def _let_go(self) -> None:
        """Drop the cached pages of the device, which are outdated, and remove the use. As long as
        the use exists, a page dirtied through mmap(2) before is refused, and so dropped."""
        self._instance.exempt.pop(self._device, None)
        if self._use is not None:
            try:
                self._instance.drop_pages(self._device)
            finally:
                self._device.unmounted(self._use)
