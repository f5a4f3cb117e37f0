"""The instances of a sandbox: one for each mount of type loop that still exists."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable

from loopfs import syscalls
from loopfs.driver.bdev import BlockDevice
from loopfs.driver.instance import Instance
from loopfs.driver.loop import LoopDevice
from loopfs.driver.minors import Minors
from loopfs.driver.partition import Partition
from loopfs.driver.sysfs import Attribute
from loopfs.driver.ucounts import MAX_DEVICES, Ucounts
from loopfs.driver.world import FileIdentity
from loopfs.filesystems.backing import BackingFile, Stat
from loopfs.filesystems.directory import DeviceListener
from loopfs.filesystems.loopfs import IdMap, LoopFilesystem, TableReader
from loopfs.filesystems.shares import BACKING_FILE, ROOT, Share, Shares
from loopfs.filesystems.threads import start
from loopfs.filesystems.uevents import Uevents
from loopfs.fuse.connection import Connection
from loopfs.lean import NamedTuple
from loopfs.process import Process

# Seconds that an unmount waits for a driver that is itself waiting.
PATIENCE = 10
SOON = 0.02  # seconds


class Owner(NamedTuple):
    """A user namespace that mounts: its inode number and those of its ancestors, its id maps as
    seen from ours, and the user of ours to whom its resources are charged."""

    namespaces: tuple[int, ...]
    id_map: IdMap
    user: int = ROOT

    @property
    def userns(self) -> int:
        return self.namespaces[0]

    @classmethod
    def of(cls, process: Process) -> Owner:
        """Return that of a process. The process may end afterwards."""
        maps = {kind: process.id_map(kind) for kind in ("uid", "gid")}
        return cls(process.user_namespaces(), maps.__getitem__, process.charged_user())


class Instances:
    """All instances, by the device number (st_dev) of their superblock.

    Args:
        minors: the numbers that they share.
        fstat: returns the status of a descriptor to which this process has no access.
        read_table: see LoopFilesystem.
        shares: the resources that each user may use.
        ucounts: the number of devices that each user namespace may have.
    """

    def __init__(
        self,
        minors: Minors,
        fstat: Stat,
        read_table: TableReader,
        shares: Shares | None = None,
        ucounts: Ucounts | None = None,
    ) -> None:
        self.ucounts = ucounts or Ucounts()
        self.shares = shares or Shares()
        self.uevents = Uevents(self.shares)
        self.numbers = threading.Lock()  # held while numbers are allocated or freed
        self._minors = minors
        self._fstat = fstat
        self._read_table = read_table
        self.some_read_only = False  # read-only mounts of superblocks that are writable
        self._lock = threading.Lock()
        self._taken: dict[LoopFilesystem, Share] = {}
        self._userns = os.stat("/proc/self/ns/user").st_ino
        # Called with st_dev of an instance and a node's inode number: syncs the filesystem mounted
        # from it.
        self.sync_mounted: Callable[[int, int], None] = lambda instance, ino: None
        # Called with a predicate on disks: returns when the engines of these disks whose mounts are
        # all gone have written everything.
        self.settle_mounts: Callable[[Callable[[LoopDevice], bool]], None] = lambda concerns: None
        # Called with each removed device, before the call that removed it returns.
        self.on_removal: list[Callable[[BlockDevice], None]] = []
        # Always replaced as a whole, since it is read without the lock.
        self._filesystems: dict[int, LoopFilesystem] = {}

    def add(
        self,
        fuse: int,
        device_number: int,
        owner: Owner,
        on_device: DeviceListener | None = None,
        share: Share | None = None,
        make: Callable[..., LoopFilesystem] = LoopFilesystem,
    ) -> LoopFilesystem:
        """Create an instance; the caller must then call :meth:`serve`.

        Args:
            fuse: the open /dev/fuse that it is mounted with; the instance owns it.
            device_number: st_dev of the mount.
            owner: the user namespace that has mounted it.
            on_device: see LoopFilesystem.
            share: the share of the owner that it uses, released when the instance ends.
            make: another class, with the same arguments.
        """
        with self.numbers:
            counted = self.ucounts.hold(owner.namespaces)
        filesystem = make(
            Connection(fuse),
            device_number,
            owner.userns,
            owner.id_map,
            Instance(self._minors, MAX_DEVICES, counted),
            on_device or _nobody_listens,
            self._read_table,
            self,
        )
        filesystem.user = owner.user
        with self._lock:
            if share is not None:
                self._taken[filesystem] = share
            self._filesystems = self._filesystems | {device_number: filesystem}
        return filesystem

    def serve(self, filesystem: LoopFilesystem) -> None:
        """Serve an instance until its last mount and its last descriptor are closed."""
        try:
            filesystem.serve()
        finally:
            self._remove(filesystem)

    def serve_in_thread(self, filesystem: LoopFilesystem) -> None:
        """As :meth:`serve`, in another thread.

        Raises:
            OSError: EAGAIN if no thread can be started; the instance is then removed.
        """
        try:
            start("loop", self.serve, filesystem)
        except OSError:
            self._remove(filesystem)
            filesystem.session.abort()
            raise

    def _remove(self, filesystem: LoopFilesystem) -> None:
        with self._lock:
            left = {n: f for n, f in self._filesystems.items() if f is not filesystem}
            self._filesystems = left
            share = self._taken.pop(filesystem, None)
        with self.numbers:
            self.ucounts.drop(filesystem.instance.owner)
        if share is not None:
            share.give_back()
        filesystem.gone.set()

    def find(self, device_number: int) -> LoopFilesystem | None:
        return self._filesystems.get(device_number)

    def backing(self, fd: int, user: int) -> BackingFile:
        """Return the backing file of a duplicated descriptor, which it then owns.

        Args:
            user: the user to whom it is charged.
        Raises:
            OSError: EMFILE if the user has reached the limit, or if the remaining descriptors of
                this process are needed for other work.
        """
        try:
            share = self.shares.take(user, BACKING_FILE, errno.EMFILE, fd)
        except OSError:
            os.close(fd)
            raise
        with share:
            file = self._backing(fd)
        share.last_as_long_as(file)
        return file

    def _backing(self, fd: int) -> BackingFile:
        filesystem = self.find(syscalls.statx_dev(fd))
        if filesystem is None:
            file = BackingFile(fd, None, self._fstat)
            self.settle_mounts(lambda disk: _is_bound(disk, file.identity))
            return file
        node = filesystem.nodes.of_inode(syscalls.descriptor_info(os.getpid(), fd).ino)
        if node is None or node.device is None:
            os.close(fd)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return BackingFile(fd, node, self._fstat)

    def all(self) -> list[LoopFilesystem]:
        return list(self._filesystems.values())

    def device_numbers(self) -> tuple[int, ...]:
        return tuple(self._filesystems)

    def in_use(self) -> bool:
        """Return whether a node is open, or may be held by an O_PATH descriptor, in any
        instance."""
        return any(f.open_files or f.data_faces.held() for f in self._filesystems.values())

    @property
    def devices(self) -> dict[int, LoopDevice]:
        """The devices of all instances, by number."""
        return {
            number: device
            for filesystem in self._filesystems.values()
            for number, device in filesystem.instance.devices.copy().items()
        }

    def catch_up(self) -> None:
        """Wait a short time until the requests queued before now have been answered.

        close(2) of a device does not wait for its effect, which a following look at /sys must show.
        """
        deadline = time.monotonic() + SOON
        for filesystem in self._filesystems.values():
            while not filesystem.session.idle():
                if time.monotonic() > deadline:
                    return
                time.sleep(SOON / 100)

    def written_to(self) -> bool:
        """Return whether a device is open for writing, and so may have dirty pages."""
        return any(
            file.opener is not None and file.opener.write
            for filesystem in self._filesystems.values()
            for file in filesystem.open_files.copy().values()
            if file.connection == filesystem.session.fd  # not an engine
        )

    def drain(self) -> None:
        """Wait until the writes that the kernel had queued are done, but at most PATIENCE
        seconds."""
        deadline = time.monotonic() + PATIENCE
        for filesystem in self._filesystems.values():
            while _writing(filesystem) and time.monotonic() < deadline:
                time.sleep(SOON / 100)

    @property
    def all_see_all(self) -> bool:
        """Whether all instances belong to our user namespace, so that all threads see all
        devices."""
        return all(f.userns == self._userns for f in self._filesystems.values())

    def seen_by(self, tid: int) -> dict[int, LoopDevice]:
        """Return the devices of a thread's user namespace and of its ancestors (patch 8/8).

        As with the host's devices, those of ancestors are visible, those of descendants or other
        namespaces are not.
        """
        if self.all_see_all:
            return self.devices
        around = Process(tid).user_namespaces()
        return {
            number: device
            for filesystem in self._filesystems.values()
            if filesystem.userns in around
            for number, device in filesystem.instance.devices.copy().items()
        }

    def seen(self, number: int, tid: int | None) -> LoopDevice | None:
        """Return the device with a number, if a thread may see it (see :meth:`seen_by`).

        Args:
            tid: the thread; None for any existing device.
        """
        for filesystem in self._filesystems.values():
            if (device := filesystem.instance.devices.get(number)) is not None:
                if tid is None or filesystem.userns == self._userns:
                    return device
                around = Process(tid).user_namespaces()
                return device if filesystem.userns in around else None
        return None

    def partition(self, minor: int) -> Partition | None:
        """Return the partition with a minor number, in any instance."""
        return self._minors.extended.get(minor)

    def store(self, attribute: Attribute, text: str) -> None:
        """Write to a device's attribute in /sys.

        Raises:
            OSError: ENODEV if the device has been removed; any error of the attribute.
        """
        device, store = attribute.device, attribute.stored
        assert store is not None
        for filesystem in self._filesystems.values():
            if filesystem.instance.devices.get(device.disk.number) is device.disk:
                filesystem.drive(lambda: store(device, text))
                return
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def removed(self, device: BlockDevice) -> None:
        """Call all functions in ``on_removal``. Raises the first OSError that one of them
        raises."""
        first = None
        for forget in self.on_removal:
            try:
                forget(device)
            except OSError as problem:
                first = first or problem
        if first is not None:
            raise first

    def detach_unused(self) -> None:
        """Detach each device of all instances, at once or at its last close."""
        for filesystem in self._filesystems.values():
            filesystem.detach_unused()

    def settled(self) -> None:
        """Wait until the instances whose last mount and descriptor are gone have been shut down."""
        for filesystem in self._filesystems.values():
            if _disconnected(filesystem):
                filesystem.gone.wait(PATIENCE)


def _writing(filesystem: LoopFilesystem) -> bool:
    """Return whether a write is queued or being processed."""
    devices = filesystem.instance.devices.copy().values()
    return not filesystem.session.idle() or any(each.statistics.writing for each in devices)


def _disconnected(filesystem: LoopFilesystem) -> bool:
    if (fd := filesystem.session.fd) is None:
        return True
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))  # POLLERR


def _nobody_listens(action: str, name: str) -> None:
    return


def _is_bound(disk: LoopDevice, identity: FileIdentity) -> bool:
    return disk.backing is not None and disk.backing.identity == identity
