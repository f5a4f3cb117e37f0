"""The filesystems that are mounted from devices of a sandbox, and their engines."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic

from loopfs.channel import close_all
from loopfs.engines.copies import Copies
from loopfs.engines.engine import Served, Wanted
from loopfs.engines.ext_superblock import TYPES as EXT_TYPES
from loopfs.engines.helper import Helper
from loopfs.engines.labels import Label, Tuning
from loopfs.engines.running import PATIENCE, Engine, KernelMount, OwnServer
from loopfs.engines.superblock import disconnected
from loopfs.engines.turns import Turns
from loopfs.filesystems.backing import BackingFile
from loopfs.filesystems.engine_device import EngineDevice
from loopfs.filesystems.held_device import HeldDevice
from loopfs.filesystems.image_lock import ImageLock
from loopfs.filesystems.instances import Instances
from loopfs.filesystems.lent_device import LentDevice, Loan, may_be_lent, open_lent
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.fuse.connection import Connection
from loopfs.lean import TYPE_CHECKING, Protocol
from loopfs.uapi.magic import OF_TYPE

if TYPE_CHECKING:
    from loopfs.driver.loop import LoopDevice
    from loopfs.process import Process


class Waiting(Protocol):
    """A thread that is blocked in a trapped call."""

    @property
    def process(self) -> Process: ...

    def alive(self) -> bool:
        """Return whether it still waits, so that its process id has not been reused."""


class Mounts:
    """The mounts of one sandbox.

    Args:
        helper: acts in the callers' namespaces.
        instances: the instances whose devices are mounted.
        copies: the sandbox's own versions of sysfs and devtmpfs.
    """

    def __init__(self, helper: Helper, instances: Instances, copies: Copies | None = None) -> None:
        self.helper = helper
        self.instances = instances
        self.copies = copies or Copies()
        self.turns = Turns()
        self._engines: list[Engine] = []
        # st_dev of filesystems whose engines have ended with unwritten data while mounted.
        self._lost: set[int] = set()
        self.magic: dict[int, int] = {}  # f_type of statfs(2), by st_dev
        self._lock = threading.Lock()
        instances.sync_mounted = self._sync_mounted
        instances.settle_mounts = self._settle

    def alive(self) -> list[Engine]:
        """Return the engines that have not ended; remove those that have."""
        with self._lock:
            for engine in [e for e in self._engines if e.ended()]:
                self._engines.remove(engine)
                self.magic.pop(engine.device, None)
                if engine.writes and not engine.unmounted:
                    self._lost.add(engine.device)
            return list(self._engines)

    def with_characters(self, number: int) -> Engine | None:
        """Return the engine of a filesystem, if an open regular file of it may be a device.

        Args:
            number: st_dev of the filesystem.
        """
        found = next((each for each in self._engines.copy() if each.device == number), None)
        lent = None if found is None else found.lent
        return found if lent is not None and lent.characters else None

    def any_characters(self) -> bool:
        """Return whether the filesystem of any engine has such a file."""
        lents = [engine.lent for engine in self._engines.copy()]
        return any(lent is not None and lent.characters for lent in lents)

    def writing(self) -> list[Engine]:
        """Return the engines of writable filesystems, in the order in which they were mounted."""
        return [engine for engine in self.alive() if engine.writes]

    def _sync_mounted(self, instance: int, ino: int) -> None:
        """Sync what is mounted from a device, as sync(2) does (fs_bdev_sync)."""
        for engine in self.writing():
            if engine.served is not None and engine.served.device == (instance, ino):
                engine.sync(self.helper, "sync", None, -1)

    def _settle(self, concerns: Callable[[LoopDevice], bool]) -> None:
        for engine in self.alive():
            engine.settle(concerns)

    def lost(self, number: int | None = None) -> bool:
        """Return whether the engine of a filesystem, or of any, was killed with unwritten data.

        Args:
            number: st_dev of a FUSE filesystem; None: any.
        """
        lost = self._lost.difference(self.instances.device_numbers())
        return bool(lost) if number is None else number in lost

    def device_numbers(self) -> tuple[int, ...]:
        """Return st_dev of all that is served in the sandbox: instances, and engines'
        filesystems."""
        engines = tuple(engine.device for engine in self.alive())
        return engines + self.instances.device_numbers()

    def served(self, device: tuple[int, int]) -> tuple[Served, int] | None:
        """Return the filesystem that an engine serves from a device, whose superblock can be
        mounted again, and its /dev/fuse, which the caller must close soon. If the engine is about
        to end, this waits for its end and returns None.

        Args:
            device: st_dev of the instance and the node's inode number.
        """
        for engine in self.alive():
            if engine.served is None or engine.served.device != device:
                continue
            with engine.syncing:
                connection = engine.connection()
            if connection is not None and not disconnected(connection):
                return engine.served, connection
            if connection is not None:
                os.close(connection)
                engine.unmounted = True
            engine.ended(None)
        return None

    def serve(self, wanted: Wanted, fuse: int) -> EngineDevice:
        """Serve a mount that has the device for an engine.

        Args:
            wanted: the job's request.
            fuse: an open /dev/fuse; it is closed after an error, which ends the mount.
        Raises:
            OSError: ENXIO (the device has been removed), EBUSY (another engine writes a part of it,
                or its image is mounted by another sandbox).
        """
        connection = Connection(fuse)
        filesystem, node = self._device(wanted.instance, wanted.ino)
        assert node.device is not None
        device, use = node.device, None
        lock = ImageLock.take(device, 0, device.capacity, write=not wanted.read_only)
        try:
            if not wanted.read_only:
                use = filesystem.drive(partial(device.mounted, wanted.start, wanted.end))
                filesystem.drop_pages(device)  # stores made since the job's request
            served = EngineDevice(filesystem, node, use, lock)
            served.serve_in_thread(connection)
        except OSError:
            lock.release()
            if use is not None:
                device.unmounted(use)
            raise
        return served

    def write_back(self, instance: int, ino: int) -> None:
        """Write the dirty pages of a device, its disk and the partitions to the image.

        Args:
            instance, ino: st_dev of the instance and the node's inode number.
        Raises:
            OSError: ENXIO if the device has been removed; an error of the image.
        """
        filesystem, node = self._device(instance, ino)
        assert node.device is not None
        backing = node.device.disk.backing
        filesystem.drop_pages(node.device)
        if isinstance(backing, BackingFile):
            backing.check_stored()

    def _device(self, instance: int, ino: int) -> tuple[LoopFilesystem, Node]:
        filesystem = self.instances.find(instance)
        node = filesystem.nodes.of_inode(ino) if filesystem is not None else None
        if filesystem is None or node is None or node.device is None:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return filesystem, node

    def lend(self, wanted: Wanted) -> Loan | None:
        """Lend the backing file of a device to a job that becomes its engine and uses all of it.

        Returns:
            what the job is to receive; None if the device must be served instead (:meth:`serve`).
        Raises:
            OSError: ENXIO (the device has been removed), EBUSY (another opener has claimed it or
                writes a part of it, or its image is mounted by another sandbox), EACCES (it is
                write-protected); an error of the image when dirty pages are written.
        """
        filesystem, node = self._device(wanted.instance, wanted.ino)
        assert node.device is not None
        device, use, lock = node.device, None, None
        if not may_be_lent(device):
            return None
        opener = open_lent(filesystem, device, read_only=wanted.read_only)
        try:
            self.write_back(wanted.instance, wanted.ino)
            lock = ImageLock.take(device, 0, device.capacity, write=not wanted.read_only)
            if not wanted.read_only:
                use = filesystem.drive(partial(device.mounted, 0, device.capacity))
                filesystem.drop_pages(device)  # stores made in the meantime
            return LentDevice(filesystem, node, use, lock, opener).lend_in_thread()
        except OSError:
            if use is not None:
                device.unmounted(use)
            if lock is not None:
                lock.release()
            filesystem.drive(lambda: device.disk.release(opener))
            raise

    @contextmanager
    def lent_for_writing(self, engine: Engine) -> Iterator[None]:
        """Lend for writing, if the body raises no exception, what an engine was lent for reading.

        Raises:
            OSError: EACCES (the device is write-protected), EBUSY (another engine writes a part of
                it, or its image is mounted elsewhere); an error of the image when dirty pages are
                written.
        """
        loan = engine.loan
        if loan is None or engine.served is None or loan.writes:
            yield
            return
        self.write_back(*engine.served.device)
        loan.begin_writing()
        try:
            yield
        except BaseException:
            loan.end_writing()
            raise

    def add(self, fds: list[int], served: Served, source: HeldDevice | None) -> None:
        """Add an engine that serves a device.

        Args:
            fds: its pidfd, and its user namespace if the process is inaccessible; then owned by the
                engine's object.
        """
        pidfd, *userns = fds
        device = served.superblock
        engine = Engine(pidfd, device, device, served, source, *userns)
        if source is not None and served.fstype in EXT_TYPES:
            engine.label = Tuning(source) if isinstance(source, LentDevice) else Label(source)
            source.exempt(engine.label.write)
        if isinstance(source, LentDevice):
            source.superblock = device
        with self._lock:
            self._lost.discard(engine.device)
            self._engines.append(engine)
            self.magic[device] = OF_TYPE[served.fstype]

    def claim_as(self, instance: int, ino: int, process: int) -> Callable[[], bool]:
        """Claim a device for a process that has it open and mounts it. Return a function that
        returns whether the device is still open.

        Args:
            instance, ino: st_dev of the instance and the node's inode number.
        Raises:
            OSError: EBUSY if another opener has claimed it.
        """
        filesystem, node = self._device(instance, ino)
        assert node.device is not None
        device, openers = node.device, filesystem.claim_as(node.device, process)
        return lambda: not openers.isdisjoint(device.openers.copy())

    def add_own(self, server: OwnServer) -> None:
        with self._lock:
            self._engines.append(server)

    def add_kernels(self, mount: KernelMount) -> None:
        with self._lock:
            self._engines.append(mount)

    def finish(self, slow: Callable[[Sequence[Engine]], None]) -> None:
        """Wait until the engines have written everything and ended.

        To be called when all processes of the sandbox have ended, and so all its mounts. But an
        engine cannot end as long as an image on its filesystem is in use.

        Args:
            slow: is called with the engines that have not ended after some seconds.
        """
        self.instances.detach_unused()
        engines, end = self.alive(), monotonic() + PATIENCE
        late = [each for each in engines if not each.ended(max(0, int(1000 * (end - monotonic()))))]
        if late:
            slow(late)
        for engine in late:
            engine.ended(None)

    def ended(self, timeout: float) -> bool:
        """Return whether all engines have ended, after waiting at most ``timeout`` seconds."""
        end = monotonic() + timeout
        return all(e.ended(max(0, int(1000 * (end - monotonic())))) for e in self.alive())

    def give_up(self) -> None:
        """Kill the engines; their unwritten data is lost."""
        for engine in self.alive():
            engine.kill()


@contextmanager
def caller_descriptors(call: Waiting, start: int | None = None) -> Iterator[tuple[int, ...]]:
    """Open the descriptors of a caller that :class:`loopfs.engines.caller.Caller` needs: pidfd,
    root, working directory, /proc/TGID, /proc/TGID/task/TID.

    Args:
        start: the caller's descriptor that replaces the working directory.
    Raises:
        OSError: EINTR if the caller has ended, so that its process id may have been reused.
    """
    process = call.process
    path = os.O_PATH | os.O_CLOEXEC
    fds = [process.pidfd()]
    try:
        fds.append(os.open(process.path("root"), path))
        if start is None:
            fds.append(os.open(process.path("cwd"), path))
        else:
            fds.append(process.descriptor(start))
        fds.append(os.open(f"/proc/{process.tgid}", path))
        fds.append(os.open(f"/proc/{process.tgid}/task/{process.tid}", path))
        if not call.alive():
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        yield tuple(fds)
    finally:
        close_all(fds)
