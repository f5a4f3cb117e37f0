"""The device that an engine uses: a separate mount with one file, for that engine only.

No other process writes the bytes that a mounted filesystem uses (:mod:`loopfs.driver.pages`). So
the kernel may cache the writes of an engine until the engine syncs or closes the file, as for a
filesystem of the kernel, and may merge small writes. On the instance it may not, since a write
there must detect the end of the device.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat

from loopfs.driver.bdev import Use
from loopfs.filesystems import blockdev
from loopfs.filesystems.held_device import HeldDevice
from loopfs.filesystems.image_lock import ImageLock
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.rewriting import Change
from loopfs.filesystems.threads import spawn, start
from loopfs.fuse.connection import Connection
from loopfs.fuse.operations import Buffer, Entry, Operations, SetAttr
from loopfs.fuse.replies import MAX_WRITE
from loopfs.fuse.session import Request, Session
from loopfs.uapi.fuse import FUSE_ROOT_ID, Attr

_FILE_ID = 2
_FOREVER = 3600  # seconds


class _Watched(Request):
    """A request of an engine; if it fails, all later syncs of the device fail."""

    __slots__ = ("_of",)

    def __init__(self, request: Request, of: EngineDevice) -> None:
        super().__init__(request.connection, request.unique, request.nodeid, request.pid)
        self._of = of

    def fail(self, code: int) -> None:
        self._of.failed(code)
        super().fail(code)


class EngineDevice(HeldDevice, Operations):
    """The directory and the file; the arguments are those of :class:`HeldDevice`."""

    def __init__(
        self, instance: LoopFilesystem, node: Node, use: Use | None, lock: ImageLock
    ) -> None:
        super().__init__(instance, node, use, lock)
        self._session: Session | None = None
        self._buffer = memoryview(mmap.mmap(-1, MAX_WRITE))  # memory is allocated on first use

    def serve_in_thread(self, connection: Connection) -> None:
        """Serve the mount of an open /dev/fuse in a thread.

        Raises:
            OSError: EAGAIN if no thread can be started.
        """
        start("engine", self._serve, connection)

    def rewrite(self, start: int, length: int, change: Change) -> None:
        """As in :class:`HeldDevice`. Waits for the thread that serves the engine."""
        if self._use is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        self._rewriting.begin(start, length, change)
        if self._session is not None:
            # The kernel writes the page and drops it: then all earlier writes are in the image.
            self._session.invalidate(_FILE_ID, start, length)
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self._rewriting.apply()
        blockdev.sync(self._device, datasync=False)

    def _serve(self, connection: Connection) -> None:
        self._session = Session(connection, self, writeback=True, watched=True)
        try:
            self._session.serve()
        finally:
            try:
                self._let_go()
            finally:
                try:
                    self._instance.release_all(connection)
                finally:
                    self.lock.release()
                    self.gone.set()

    # --- names and attributes ----------------------------------------------------

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        if parent != FUSE_ROOT_ID or name != self._device.name.encode():
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return Entry(_FILE_ID, self.getattr(_FILE_ID), _FOREVER)

    def getattr(self, nodeid: int) -> Attr:
        times = self._node.times
        if nodeid == FUSE_ROOT_ID:
            return Attr(FUSE_ROOT_ID, 0, stat.S_IFDIR | 0o700, 2, 0, 0, 0, times)
        size = self._device.capacity
        return Attr(self._node.ino, size, stat.S_IFREG | 0o600, 1, 0, 0, 0, times)

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        return self.getattr(nodeid)  # the kernel sets the times of its writes

    # --- the file, implemented as the node's data face of the instance -------------

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        return self._instance.open(request, self._node.data, flags)

    def release(self, request: Request, handle: int) -> None:
        self._instance.release(request, handle)

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        return blockdev.read(self._device, request, offset, size, self._buffer)

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        """Write the part of ``data`` that is within the use. What is outside does not belong to the
        engine, but is in the same page."""
        try:
            return self._write(_Watched(request, self), offset, data)
        except OSError as problem:
            self.failed(problem.errno or errno.EIO)
            raise

    def _write(self, request: Request, offset: int, data: memoryview) -> int | None:
        if self._use is None or self._device.read_only:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        start = self._use.start - self._device.start
        first = max(start - offset, 0)
        own = data[first : max(self._use.end - self._device.start - offset, 0)]
        if not own:
            return len(data)
        return self._rewriting.write(request, offset + first, own, len(data))

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        def sync() -> None:
            self.sync(datasync)
            request.reply()

        spawn(blockdev.answering(request, sync))

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        def fallocate() -> None:
            blockdev.fallocate(self._device, mode, offset, length)
            request.reply()

        spawn(blockdev.answering(request, fallocate))

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        self._instance.ioctl(request, handle, cmd, arg, data, compat)
