"""A device that an engine has: what nobody else does with it meanwhile, and what follows."""

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
    """Whichever way the engine reads and writes it.

    Args:
        instance: the device's.
        node: the device's.
        use: what the engine may write, if anything; it ends with the engine.
        lock: on what is below the device; the same.
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
        self.error = 0  # the errno of every sync
        self.gone = threading.Event()  # and nothing of it is open any more

    @property
    def writes(self) -> bool:
        """The engine may write it."""
        return self._use is not None

    @property
    def disk(self) -> LoopDevice:
        """What it is, or is a partition of."""
        return self._device.disk

    def freed_by_umount(self, process: int) -> None:
        """:meth:`loopfs.driver.loop.LoopDevice.freed_by_umount`, once it is gone."""
        self._instance.drive(lambda: self._device.disk.freed_by_umount(process))

    def failed(self, code: int) -> None:
        """Something that the engine had written is not in the image, and never will be: from now
        on every sync says so, as of a kernel's filesystem whose journal was aborted."""
        self.error = self.error or code

    def sync(self, datasync: bool) -> None:
        """Have the image synced. Who has the device open sees then what it has brought.

        Raises:
            OSError: as a disk; what has failed once fails from then on.
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
        """A part of the device (in bytes) as it is in the image. Raises OSError."""
        return self._rewriting.read(start, length)

    def rewrite(self, start: int, length: int, change: Change) -> None:
        """Have a part of the device changed in the image now, and whenever the engine writes it.

        Args:
            start, length: bytes of the device. There is only one such part.
            change: is given that part, and returns as many bytes.
        Raises:
            OSError: EROFS: the engine serves it for reading; as a disk.
        """
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def store(self, start: int, data: bytes) -> None:
        """Write a part of the device beside the engine. Raises OSError as a disk."""
        self._rewriting.store(start, data)

    def drop_pages(self, start: int, length: int) -> None:
        """Have the instance's nodes forget a part of the device; as
        :meth:`LoopFilesystem.drop_pages`."""
        self._instance.drop_pages(self._device, start, length)

    def exempt(self, write: Callable[[int, bytes], bool]) -> None:
        """Have ``write`` asked, and do, what a node's write(2) to the use is to be allowed of."""
        self._instance.exempt[self._device] = write

    def _let_go(self) -> None:
        """What was cached of the device is old. A page that is dirty by a store of the time when
        the engine had it is refused, and so dropped, as long as the use lasts."""
        self._instance.exempt.pop(self._device, None)
        if self._use is not None:
            try:
                self._instance.drop_pages(self._device)
            finally:
                self._device.unmounted(self._use)
