"""The loop device filesystem: one instance, served through FUSE.

Everything of the kernel's that this file stands in for: loopfs.c of patch 2/8 (the
nodes), block/fops.c (opening, reading, writing a block device) and the ioctl entry.
The decisions are the driver's; here they meet descriptors, threads and the clock.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count

from loopfs import syscalls
from loopfs.driver import block as driver_block
from loopfs.driver import ioctl as driver_ioctl
from loopfs.driver.bdev import BlockDevice, Opener
from loopfs.driver.event import Invalidate, ReadPartitions
from loopfs.driver.instance import Instance
from loopfs.driver.loop import LoopDevice
from loopfs.driver.partition import Found
from loopfs.filesystems import blockdev, faces
from loopfs.filesystems.backing import BackingFile, Stat
from loopfs.filesystems.caller import IoctlCaller
from loopfs.filesystems.nodes import Node, Nodes
from loopfs.filesystems.worker import Worker, spawn
from loopfs.fuse.operations import Buffer, Entry, Operations, SetAttr
from loopfs.fuse.session import MAX_WRITE, Request, Session, pack_entry
from loopfs.lean import TYPE_CHECKING, NamedTuple
from loopfs.process import Process
from loopfs.uapi.block import BLKDISCARD, BLKZEROOUT
from loopfs.uapi.fuse import (
    FOPEN_DIRECT_IO,
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    FOPEN_STREAM,
    OPEN_OUT,
    Attr,
)

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
NAME_MAX = 255  # bytes

if TYPE_CHECKING:
    from loopfs.filesystems.instances import Instances

DeviceListener = Callable[[str, str], None]
TableReader = Callable[[int, int, int, int], list[Found]]
IdMap = Callable[[str], str]


class OpenFile(NamedTuple):
    """An open file description: of a device, or of the control node (no ``device``).

    ``connection`` is the descriptor of /dev/fuse through which it was opened.
    """

    node: Node
    device: BlockDevice | None
    opener: Opener | None
    connection: int


class LoopFilesystem(Operations):
    """An instance as a filesystem.

    Args:
        fd: the open /dev/fuse that the instance is mounted with.
        device_number: st_dev of the mount.
        userns: the user namespace that made it (its inode number).
        id_map: that namespace's "uid" or "gid" map as we read it.
        instance: what is served.
        on_device: called with "add" or "remove" and a node's name, before the call
            that caused it returns.
        fstat: asks a descriptor that this process may not look at (another user
            namespace's FUSE mount).
        read_table: the partitions in a part of a descriptor's file: offset, size and
            block size in bytes.
        instances: it and the others, whose numbers are also its.
    """

    def __init__(
        self,
        fd: int,
        device_number: int,
        userns: int,
        id_map: IdMap,
        instance: Instance,
        on_device: DeviceListener,
        fstat: Stat,
        read_table: TableReader,
        instances: Instances,
    ) -> None:
        self.instance = instance
        self.session = Session(fd, self)
        self.worker = Worker()
        self.device_number = device_number
        self.userns = userns
        self.id_map = id_map
        self.nodes = Nodes(time.time_ns())
        self.open_files: dict[int, OpenFile] = {}
        self.cached_elsewhere: list[BlockDevice] = []  # which engines write by another mount
        self._handles = count(1)
        self.gone = threading.Event()  # shut down, and out of reach
        self.on_device = on_device
        self._fstat = fstat
        self._read_table = read_table
        self._instances = instances
        self._buffer = memoryview(bytearray(MAX_WRITE))

    # --- names and attributes --------------------------------------------------

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        if len(name) > NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        node = self.nodes.by_name.get(name)
        if node is None or parent != self.nodes.root.special:
            raise _error(errno.ENOENT)
        process = Process(request.pid)
        try:
            flags = faces.open_flags(process)
        except faces.InMemory:
            spawn(lambda: self._lookup_openat2(request, node, process))
            return None
        return self._entry(node, flags)

    def _lookup_openat2(self, request: Request, node: Node, process: Process) -> None:
        try:
            entry = self._entry(node, faces.flags_in_memory(process))
        except OSError as problem:
            request.fail(problem.errno or errno.EIO)
        else:
            request.reply(pack_entry(*entry))

    def _entry(self, node: Node, flags: int | None) -> Entry:
        nodeid = node.special if flags is None or flags & os.O_PATH else node.data
        return Entry(nodeid, node.attr(nodeid))

    def getattr(self, nodeid: int) -> Attr:
        return self._node(nodeid).attr(nodeid)

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        node = self._node(nodeid)
        if changes.size is not None and changes.by_handle:
            raise _error(errno.EINVAL)  # ftruncate(2); O_TRUNC changes nothing
        node.change(changes, time.time_ns())
        return node.attr(nodeid)

    def entries(
        self, request: Request, nodeid: int, handle: int, place: int
    ) -> Iterator[tuple[int, bytes, int, int]]:
        return ((n, node.name, node.ino, node.kind) for n, node in self.nodes.after(place))

    def unlink(self, request: Request, parent: int, name: bytes) -> None:
        def unlink_device() -> None:
            with self._instances.numbers:
                self.instance.remove_unused(self._renamable(name))
            self._settle()
            request.reply()

        self.worker.now_if_idle(blockdev.answering(request, unlink_device))

    def rename(
        self, request: Request, parent: int, name: bytes, to: int, to_name: bytes, flags: int
    ) -> None:
        def rename_device() -> None:
            device = self._renamable(name)
            other = self._renamable(to_name) if to_name in self.nodes.by_name else None
            if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
                raise _error(errno.EINVAL)
            if flags & RENAME_EXCHANGE:
                self._exchange(device, self._renamable(to_name))
            else:
                self._rename(device, to_name, other)
            request.reply()

        self.worker.now_if_idle(blockdev.answering(request, rename_device))

    def _rename(self, device: LoopDevice, name: bytes, victim: LoopDevice | None) -> None:
        """Give a device's node another name; a device that has it must be unused, and goes."""
        if is_name_of_partition(name):
            raise _error(errno.EPERM)  # it would be in a scan's way
        if victim is device:
            return
        if victim is not None:
            with self._instances.numbers:
                self.instance.remove_unused(victim)
            self._settle()
        self._name({device: name})

    def _exchange(self, device: LoopDevice, other: LoopDevice) -> None:
        """Give each of two devices the other's name; none goes, so both may be in use."""
        names = [self.nodes.of_device(each).name for each in (other, device)]
        self._name(dict(zip((device, other), names, strict=True)))

    def _name(self, names: dict[LoopDevice, bytes]) -> None:
        """Rename nodes, to names that no others have."""
        for device in names:
            if self.nodes.of_device(device).name == device.name.encode():
                self.on_device("remove", device.name)
        for device, name in names.items():
            self.instance.rename(device, os.fsdecode(name))
        self.nodes.rename({self.nodes.of_device(device): name for device, name in names.items()})
        for device, name in names.items():
            if name == device.name.encode():
                self.on_device("add", device.name)

    def _renamable(self, name: bytes) -> LoopDevice:
        """The disk whose node can be removed and renamed: not the control node or a partition."""
        node = self.nodes.by_name.get(name)
        if node is None:
            raise _error(errno.ENOENT)
        if not isinstance(node.device, LoopDevice):
            raise _error(errno.EPERM)
        return node.device

    def _node(self, nodeid: int) -> Node:
        node = self.nodes.by_id.get(nodeid)
        if node is None:
            raise _error(errno.ENXIO)  # a device that is gone
        return node

    # --- opening ---------------------------------------------------------------

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        node = self._node(nodeid)
        if node.device is None:
            if flags & os.O_DIRECT:
                raise _error(errno.EINVAL)
            self.open_files[handle := next(self._handles)] = OpenFile(
                node, None, None, request.connection
            )
            return handle, FOPEN_NOFLUSH | FOPEN_DIRECT_IO | FOPEN_STREAM
        process = Process(request.pid)
        try:  # FUSE passes O_EXCL on to nobody
            real_flags = faces.open_flags(process)
        except faces.InMemory:

            def open_openat2() -> None:
                self._open_openat2(request, node, flags, process)

            self.worker.later(blockdev.answering(request, open_openat2))
            return None
        except ProcessLookupError:
            real_flags = None
        exclusive = bool((real_flags or 0) & os.O_EXCL)

        def open_device() -> None:
            self._open_device(request, node, flags, exclusive)

        self.worker.now_if_idle(blockdev.answering(request, open_device))
        return None

    def _open_openat2(self, request: Request, node: Node, flags: int, process: Process) -> None:
        try:
            exclusive = bool((faces.flags_in_memory(process) or 0) & os.O_EXCL)
        except OSError:
            exclusive = False  # the caller is gone and will not use the file
        self._open_device(request, node, flags, exclusive)

    def _open_device(self, request: Request, node: Node, flags: int, exclusive: bool) -> None:
        device = node.device
        assert device is not None
        # The kernel, too, drops a block device's cache with its last opener.
        kept = FOPEN_KEEP_CACHE if device.openers and device not in self.cached_elsewhere else 0
        write = flags & os.O_ACCMODE != os.O_RDONLY
        opener = device.open(write=write, exclusive=exclusive)
        self._settle()
        self.open_files[handle := next(self._handles)] = OpenFile(
            node, device, opener, request.connection
        )
        request.reply(OPEN_OUT.pack(handle, FOPEN_NOFLUSH | kept, 0))

    def release(self, request: Request, handle: int) -> None:
        file = self.open_files[handle]
        if file.device is None:
            del self.open_files[handle]
            request.reply()
        else:

            def release_device() -> None:
                self._release_device(request, handle)

            self.worker.now_if_idle(blockdev.answering(request, release_device))

    def _release_device(self, request: Request, handle: int) -> None:
        self._close(handle)
        self._settle()
        request.reply()

    def _close(self, handle: int) -> None:
        file = self.open_files.pop(handle)
        assert file.device is not None and file.opener is not None
        file.device.disk.release(file.opener)

    def release_all(self, connection: int, then: Callable[[], None]) -> None:
        """Close what was opened through another mount's connection, which has ended, for the
        kernel then says nothing of it; and call ``then``."""

        def release() -> None:
            files = list(self.open_files.items())
            for handle in [h for h, file in files if file.connection == connection]:
                self._close(handle)
            self._settle()
            then()

        self.worker.now_if_idle(release)

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
        device.check_may_write()
        if flags & os.O_DIRECT:
            blockdev.check_aligned(device, offset, len(data))
        return blockdev.write(device, request, offset, data)

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        device = self._device(handle)

        def sync() -> None:
            blockdev.sync(device, datasync)
            request.reply()

        spawn(blockdev.answering(request, sync))

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        device = self.open_files[handle].device
        if device is None:
            raise _error(errno.ENODEV)

        def fallocate() -> None:
            blockdev.fallocate(device, mode, offset, length)
            request.reply()

        spawn(blockdev.answering(request, fallocate))

    def _device(self, handle: int) -> BlockDevice:
        device = self.open_files[handle].device
        if device is None:  # the control node: misc devices neither read nor write here
            raise _error(errno.EINVAL)
        return device

    # --- ioctl -------------------------------------------------------------------

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        file = self.open_files[handle]
        if file.device is None:

            def control_ioctl() -> None:
                self._control_ioctl(request, cmd, arg)

            self.worker.now_if_idle(blockdev.answering(request, control_ioctl))
        else:

            def device_ioctl() -> None:
                self._device_ioctl(request, file, cmd, arg, compat)

            self.worker.later(blockdev.answering(request, device_ioctl))

    def _control_ioctl(self, request: Request, cmd: int, arg: int) -> None:
        number = (arg + 2**31) % 2**32 - 2**31  # an int in the driver
        with self._instances.numbers:
            result = driver_ioctl.control_ioctl(self.instance, cmd, number)
        self._settle()
        request.reply_ioctl(result)

    def _device_ioctl(
        self, request: Request, file: OpenFile, cmd: int, arg: int, compat: bool
    ) -> None:
        device, opener = file.device, file.opener
        assert device is not None and opener is not None
        process = Process(request.pid)
        caller = IoctlCaller(process, 4 if compat else 8, self.userns, self.backing)
        if cmd in _ON_RANGES:
            byte_range, change = _ON_RANGES[cmd]
            start, length = byte_range(device, opener, caller, arg)

            def change_range() -> None:
                change(device, start, length)
                self.session.invalidate(file.node.data, start, length)
                request.reply_ioctl(0)

            spawn(blockdev.answering(request, change_range))
            return
        result = driver_ioctl.ioctl(device, opener, caller, cmd, arg)
        self._settle(ioctl_waits=True)
        request.reply_ioctl(result)

    def backing(self, fd: int) -> BackingFile:
        """The backing file behind a duplicated descriptor, which is then ours.

        Raises:
            OSError: EMFILE: what is left of our descriptors is needed for other work.
        """
        if fd >= self._instances.backing_limit:
            os.close(fd)
            raise _error(errno.EMFILE)
        filesystem = self._instances.find(syscalls.statx_dev(fd))
        if filesystem is None:
            return BackingFile(fd, None, self._fstat)
        node = filesystem.nodes.of_inode(syscalls.descriptor_info(os.getpid(), fd).ino)
        if node is None or node.device is None:
            os.close(fd)
            raise _error(errno.EINVAL)
        return BackingFile(fd, node, self._fstat)

    # --- what follows a change -----------------------------------------------------

    def _settle(self, *, ioctl_waits: bool = False) -> None:
        """Carry out the driver's events; before the call that caused them is answered.

        Args:
            ioctl_waits: we are the worker, and may wait for pages to be dropped. Other
                calls change only devices that nobody has open, and so nobody's pages.
        """
        while events := self.instance.take_events():
            for event in events:
                if isinstance(event, Invalidate):
                    if ioctl_waits:
                        self._invalidate(event.device)
                elif isinstance(event, ReadPartitions):
                    self._read_partitions(event.device)
                elif event.action == "add":
                    self.nodes.add_device(event.device, time.time_ns())
                    self.on_device("add", event.device.name)
                elif event.action == "remove":
                    for forget in self._instances.on_removal:
                        forget(event.device)
                    node = self.nodes.remove_device(event.device)
                    if node.name == event.device.name.encode():
                        self.on_device("remove", event.device.name)

    def _invalidate(self, device: BlockDevice) -> None:
        """Nothing that was cached of it, its partitions and its disk is true any more."""
        for affected in {device, device.disk, *device.disk.partitions.values()}:
            if affected.openers:
                node = self.nodes.of_device(affected)
                if affected.capacity:
                    self.session.grow(node.data, affected.capacity)
                self.session.invalidate(node.data)

    def _read_partitions(self, disk: LoopDevice) -> None:
        window, backing = disk.window, disk.backing
        if window is not None and isinstance(backing, BackingFile):
            where = window.offset, window.capacity, disk.block_size
            disk.partitions.scanned(self._read_table(backing.fileno(), *where))

    def detach_unused(self) -> None:
        """Have each device detached as soon as nobody has it open."""

        def detach() -> None:
            self.instance.detach_unused()
            self._settle()

        self.worker.later(detach)

    def serve(self) -> None:
        """Answer requests until the instance is unmounted, then shut it down."""
        self.session.serve()
        self.worker.later(self._shut_down)
        self.worker.stop()

    def _shut_down(self) -> None:
        with self._instances.numbers:
            self.instance.shut_down()
        self._settle()


_ON_RANGES = {
    BLKDISCARD: (driver_block.discard_range, blockdev.discard),
    BLKZEROOUT: (driver_block.zero_range, blockdev.zero_out),
}


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def is_name_of_partition(name: bytes) -> bool:
    """It is of the form loopNpM."""
    disk, _, partition = name[4:].partition(b"p")
    return name[:4] == b"loop" and disk.isdigit() and partition.isdigit()
