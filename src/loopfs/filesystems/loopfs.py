"""The loop device filesystem: one instance, served through FUSE.

It implements what the kernel has in loopfs.c of patch 2/8 (the nodes), in block/fops.c (opening,
reading and writing a block device) and in the entry of ioctl. The driver makes the decisions; this
module has the descriptors, threads and clock.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TypeVar

from loopfs.driver import ioctl as driver_ioctl
from loopfs.driver import pages
from loopfs.driver.bdev import BlockDevice, Opener
from loopfs.driver.event import Invalidate, ReadPartitions, Uevent
from loopfs.driver.instance import Instance
from loopfs.driver.loop import LoopDevice
from loopfs.driver.partition import Found
from loopfs.driver.window import Window
from loopfs.errors import DriverError
from loopfs.filesystems import blockdev, faces
from loopfs.filesystems.backing import BackingFile
from loopfs.filesystems.directory import DeviceListener, Directory
from loopfs.filesystems.ioctls import Ioctl, UnreadableTable
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.shares import ROOT
from loopfs.filesystems.threads import spawn
from loopfs.fuse.operations import Buffer
from loopfs.fuse.replies import MAX_WRITE
from loopfs.fuse.session import Request
from loopfs.lean import TYPE_CHECKING, NamedTuple
from loopfs.process import Process
from loopfs.uapi.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_STREAM,
    OPEN_OUT,
    WRITE_OUT,
)
from loopfs.uapi.magic import LOOPFS_SUPER_MAGIC

if TYPE_CHECKING:
    from loopfs.filesystems.instances import Instances

TableReader = Callable[[int, int, int, int], list[Found]]
IdMap = Callable[[str], str]
T = TypeVar("T")


class OpenFile(NamedTuple):
    """An open file description of a device, or of the control node (``device`` is None).

    ``connection`` is the descriptor of the /dev/fuse through which it was opened.
    """

    node: Node
    device: BlockDevice | None
    opener: Opener | None
    connection: int
    errors: blockdev.SyncErrors | None = None
    thread: int = 0  # the thread that opened it


class _Changes(NamedTuple):
    """Events of the driver that are still to be carried out: devices whose pages are to be dropped,
    and disks whose partition tables are to be read, with their window at the time of the event."""

    pages: list[BlockDevice]
    tables: list[tuple[LoopDevice, Window | None]]


class LoopFilesystem(Directory):
    """An instance as a filesystem; ``magic`` is its type in statfs(2).

    Args:
        fd: the open /dev/fuse that the instance is mounted with.
        device_number: st_dev of the mount.
        userns: the user namespace that made it (its inode number).
        id_map: returns that namespace's "uid" or "gid" map as seen from ours.
        instance: the instance.
        on_device: called with "add" or "remove" and the name of a node, before the call
            that caused the change returns.
        read_table: returns the partitions in a part of a descriptor's file: offset, size and
            block size in bytes.
        instances: all instances, with which it shares the numbers.
    """

    magic = LOOPFS_SUPER_MAGIC

    def __init__(
        self,
        fd: int,
        device_number: int,
        userns: int,
        id_map: IdMap,
        instance: Instance,
        on_device: DeviceListener,
        read_table: TableReader,
        instances: Instances,
    ) -> None:
        super().__init__(fd, device_number, instance, on_device, instances)
        self.userns = userns
        self.id_map = id_map
        self.user = ROOT  # the user to whom its backing files are charged
        self.open_files: dict[int, OpenFile] = {}
        # Functions that decide on writes to bytes used by a mounted filesystem; else they fail with
        # EBUSY.
        self.exempt: dict[BlockDevice, Callable[[int, bytes], bool]] = {}
        # Functions to call when the backing file of a device, or its window, may have changed.
        self.lent: dict[BlockDevice, Callable[[], None]] = {}
        self._handles = count(1)
        self._uevents: deque[Uevent] = deque()  # uevents to be sent, in the order of their causes
        self._telling = threading.Lock()
        self.gone = threading.Event()  # it has been shut down and removed
        self._read_table = read_table
        self._buffer = memoryview(mmap.mmap(-1, MAX_WRITE))  # memory is allocated on first use

    def new_handle(self) -> int:
        return next(self._handles)

    # --- opening ---------------------------------------------------------------

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        node = self._node(nodeid)
        if node.device is None:
            if flags & os.O_DIRECT:
                raise _error(errno.EINVAL)
            self.open_files[handle := self.new_handle()] = OpenFile(
                node, None, None, request.connection
            )
            return handle, FOPEN_NOFLUSH | FOPEN_DIRECT_IO | FOPEN_STREAM
        process = Process(request.pid)
        try:  # the OPEN request does not contain O_EXCL
            real_flags = faces.open_flags(process)
        except faces.InMemory:

            def open_openat2() -> None:
                exclusive = bool((faces.flags_in_memory(process) or 0) & os.O_EXCL)
                self._open_device(request, node, flags, exclusive)

            spawn(blockdev.answering(request, open_openat2))  # only it waits for the memory
            return None
        except ProcessLookupError:
            real_flags = None
        exclusive = bool((real_flags or 0) & os.O_EXCL)
        disk = node.device.disk
        if request.connection == self.session.fd and (disk.claimed or disk.uses):

            def open_settled() -> None:
                self._instances.settle_mounts(lambda other: other is disk)
                self._open_device(request, node, flags, exclusive)

            spawn(blockdev.answering(request, open_settled))
            return None
        self._open_device(request, node, flags, exclusive)
        return None

    def _open_device(self, request: Request, node: Node, flags: int, exclusive: bool) -> None:
        device = node.device
        assert device is not None
        write = flags & os.O_ACCMODE != os.O_RDONLY
        handle = self.new_handle()

        def open_device() -> int:
            # As the kernel does, drop a device's pages with its last opener. If an engine writes
            # the device, cached pages may be outdated, except on the engine's own mount.
            current = request.connection != self.session.fd or not device.disk.uses
            kept = FOPEN_KEEP_CACHE if device.openers and current else 0
            opener = device.open(write=write, exclusive=exclusive)
            errors = blockdev.SyncErrors(device)
            self.open_files[handle] = OpenFile(
                node, device, opener, request.connection, errors, request.pid
            )
            return kept

        try:
            kept = self.drive(open_device)
        except BaseException:
            if handle in self.open_files:  # a later step has failed: no RELEASE request will follow
                self.drive(lambda: self._close(handle))
            raise
        request.reply(OPEN_OUT.pack(handle, FOPEN_NOFLUSH | kept, 0))

    def release(self, request: Request, handle: int) -> None:
        if self.open_files[handle].device is None:
            del self.open_files[handle]
        else:
            self.drive(lambda: self._close(handle))
        request.reply()

    def _close(self, handle: int) -> None:
        file = self.open_files.pop(handle)
        assert file.device is not None and file.opener is not None
        file.device.disk.release(file.opener)

    def claim_as(self, device: BlockDevice, process: int) -> frozenset[Opener]:
        """Claim a device for the openers of a process, which has mounted it itself.

        Args:
            process: its id, which is that of the thread that has opened the device.
        Raises:
            DriverError: EBUSY if another opener has claimed the device.
        """
        files = list(self.open_files.values())
        own = {f.opener for f in files if f.device is device and f.thread == process and f.opener}
        return self.drive(lambda: device.claim_as(own))

    def release_all(self, connection: int) -> None:
        """Close the files that were opened through the connection of another mount. The kernel does
        not send RELEASE requests when a connection has ended."""

        def release() -> None:
            files = list(self.open_files.items())
            for handle in [h for h, file in files if file.connection == connection]:
                self._close(handle)

        self.drive(release)

    # --- data --------------------------------------------------------------------

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        device = self._device(handle)
        if flags & os.O_DIRECT:
            blockdev.check_aligned(device, offset, size)
        return blockdev.read(device, request, offset, size, self._buffer)

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        device = self._device(handle)
        if device.read_only:
            raise _error(errno.EPERM)
        self.open_files[handle].node.touch()
        if flags & os.O_DIRECT:
            blockdev.check_aligned(device, offset, len(data))
        try:
            device.check_may_write(offset, len(data))
        except DriverError:
            if request.from_cache:
                self._write_around(request, device, offset, bytes(data))
                return None
            if device not in self.exempt:
                raise
            self._write_exempt(request, self.exempt[device], offset, bytes(data))
            return None
        return blockdev.write(device, request, offset, data)

    def _write_around(
        self, request: Request, device: BlockDevice, offset: int, data: bytes
    ) -> None:
        """Write the unused parts of dirty pages, then fail with EBUSY: the kernel sends adjacent
        pages in one request, and does not send any of them again."""

        def write() -> None:
            for start, length in device.unused(offset, len(data)):
                blockdev.store(device, start, data[start - offset : start - offset + length])
            raise _error(errno.EBUSY)

        spawn(blockdev.answering(request, write))

    def _write_exempt(
        self, request: Request, write: Callable[[int, bytes], bool], offset: int, data: bytes
    ) -> None:
        def ask() -> None:
            if not write(offset, data):
                raise _error(errno.EBUSY)
            request.reply(WRITE_OUT.pack(len(data), 0))

        spawn(blockdev.answering(request, ask))

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        errors = self.open_files[handle].errors
        if errors is None:  # the control node
            raise _error(errno.EINVAL)

        def sync() -> None:
            errors.sync(datasync)
            request.reply()

        spawn(blockdev.answering(request, sync))

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        device = self.open_files[handle].device
        if device is None:
            raise _error(errno.ENODEV)

        def fallocate() -> None:
            device.check_may_write(offset, length)
            self.drop_pages(device, offset, length, but=device)  # the kernel drops its pages
            blockdev.fallocate(device, mode, offset, length)
            self.touch(device)
            self.drop_pages(device, offset, length, but=device)
            request.reply()

        spawn(blockdev.answering(request, fallocate))

    def _device(self, handle: int) -> BlockDevice:
        device = self.open_files[handle].device
        if device is None:  # misc devices without read and write methods
            raise _error(errno.EINVAL)
        return device

    # --- ioctl -------------------------------------------------------------------

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        file = self.open_files[handle]
        if file.device is None:
            request.reply_ioctl(self.drive(lambda: self._control_ioctl(cmd, arg)))
            return
        assert file.opener is not None
        call = Ioctl(self, request, file.device, file.opener, cmd, arg, compat)
        spawn(blockdev.answering(request, call.carry_out))

    def _control_ioctl(self, cmd: int, arg: int) -> int:
        number = (arg + 2**31) % 2**32 - 2**31  # the driver takes an int
        with self._instances.numbers:
            return driver_ioctl.control_ioctl(self.instance, cmd, number)

    def sync_mounted(self, device: BlockDevice) -> None:
        """Sync the filesystem that is mounted from a device."""
        self._instances.sync_mounted(self.device_number, self.nodes.of_device(device).ino)

    def backing(self, fd: int) -> BackingFile:
        """Return :meth:`Instances.backing` for the owner of this instance."""
        return self._instances.backing(fd, self.user)

    # --- events of the driver ------------------------------------------------------

    def drive(self, call: Callable[[], T], *, may_wait: bool = False) -> T:
        """Call the driver, and carry out its events.

        Args:
            call: must not block.
            may_wait: whether this thread can block until pages are dropped and tables are read.
                Without it, the call must only change devices that are not open, which have no
                pages.
        Raises:
            Exception: that of the call, or the first one of the events; all events are carried out.
        """
        changes = _Changes([], [])
        try:
            with self.lock:
                try:
                    return call()
                finally:
                    self._take_events(changes)
        finally:
            try:
                self._tell_names()
            finally:
                self._tell_uevents()
                if may_wait:
                    self._follow(changes)

    def _take_events(self, changes: _Changes) -> None:
        """Update the nodes, with the lock held."""
        for event in self.instance.take_events():
            if isinstance(event, Invalidate):
                changes.pages.append(event.device)
            elif isinstance(event, ReadPartitions):
                changes.tables.append((event.device, event.device.window))
            else:
                self._uevents.append(event)
                if event.action == "change":
                    self.touch(event.device)
                if not event.environment:  # else a write to an attribute caused it
                    self._follow_name(event)

    def touch(self, device: BlockDevice) -> None:
        """Update the times of the device's node after a change of its data."""
        if (node := self.nodes.find(device)) is not None:
            node.touch()

    def _follow_name(self, event: Uevent) -> None:
        if event.action == "add":
            self.nodes.add_device(event.device, time.time_ns())
            self._named.append(("add", event.device))
        elif event.action == "remove":
            node = self.nodes.remove_device(event.device)
            self._named.append(("remove", event.device))
            if node.name != event.device.name.encode():
                self._named.pop()

    def _tell_uevents(self) -> None:
        uevents = self._instances.uevents
        with self._telling:
            events = [self._uevents.popleft() for _ in range(len(self._uevents))]
            if events and uevents.wanted:
                with suppress(OSError):  # no memory: the kernel also loses uevents then
                    uevents.send(self.userns, events)

    def _follow(self, changes: _Changes) -> None:
        first: Exception | None = None
        pages_of = (partial(self._invalidate, device) for device in changes.pages)
        tables_of = (partial(self._read_partitions, *table) for table in changes.tables)
        for step in (*pages_of, *tables_of):
            try:
                step()
            except Exception as problem:
                first = first or problem
        if first is not None:
            raise first

    def _invalidate(self, device: BlockDevice) -> None:
        """Drop all cached pages of the disk and its partitions, and update their sizes."""
        for affected in pages.nodes_of(device.disk):
            if affected.capacity:
                self.session.grow(self.nodes.of_device(affected).data, affected.capacity)
        self.drop_pages(device)
        for lent, follow in list(self.lent.items()):
            if lent.disk is device.disk:
                follow()

    def drop_pages(
        self,
        device: BlockDevice,
        start: int = 0,
        length: int | None = None,
        but: BlockDevice | None = None,
    ) -> None:
        """Write the dirty pages of a part of a device to the image, and drop all pages of that
        part, on the disk's node and on those of the partitions.

        It waits for the thread that serves the instance.

        Args:
            start, length: the part, in bytes; without a length the whole disk.
            but: a device whose node keeps its pages.
        """
        for affected in pages.nodes_of(device.disk):
            if affected is but:
                continue
            part = pages.Range(0, 0)  # to the end
            if length is not None:
                seen = pages.seen_by(device, start, length, affected)
                if seen is None:
                    continue
                part = seen
            node = self.nodes.find(affected)
            if node is not None:
                self.session.invalidate(node.data, *part)

    def _read_partitions(self, disk: LoopDevice, window: Window | None) -> None:
        """Read a partition table, and pass it to the driver if the window is still the same."""
        backing = window.backing if window is not None else None
        if window is None or not isinstance(backing, BackingFile):
            return
        try:
            found = self._read_table(
                backing.fileno(), window.offset, window.capacity, disk.block_size
            )
        except OSError as problem:
            code = problem.errno or errno.EIO
            raise UnreadableTable(code, f"{disk.name}: {os.strerror(code)}") from None

        def scanned() -> None:
            if disk.window is window:
                disk.partitions.scanned(found)

        self.drive(scanned, may_wait=True)

    def detach_unused(self) -> None:
        """Detach each device, at once or at its last close."""
        self.drive(self.instance.detach_unused)

    def serve(self) -> None:
        """Answer requests until the instance is unmounted, then shut it down."""
        try:
            self.session.serve()
        finally:
            self.drive(self._shut_down)

    def _shut_down(self) -> None:
        with self._instances.numbers:
            self.instance.shut_down()


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
