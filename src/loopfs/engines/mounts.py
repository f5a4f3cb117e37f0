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
    """A thread that waits for us."""

    @property
    def process(self) -> Process: ...

    def alive(self) -> bool:
        """It still waits, and no other has its process id."""


class Mounts:
    """What is mounted in one sandbox.

    Args:
        helper: acts in the callers' namespaces.
        instances: those whose devices are mounted.
        copies: the kernel's filesystems that are not as the kernel has them.
    """

    def __init__(self, helper: Helper, instances: Instances, copies: Copies | None = None) -> None:
        self.helper = helper
        self.instances = instances
        self.copies = copies or Copies()
        self.turns = Turns()
        self._engines: list[Engine] = []
        # st_dev of those that were to write what they had, and have ended with mounts left.
        self._lost: set[int] = set()
        self.magic: dict[int, int] = {}  # f_type of statfs(2), by st_dev
        self._lock = threading.Lock()
        instances.sync_mounted = self._sync_mounted
        instances.settle_mounts = self._settle

    def alive(self) -> list[Engine]:
        """The engines that have not ended; those that have are forgotten."""
        with self._lock:
            for engine in [e for e in self._engines if e.ended()]:
                self._engines.remove(engine)
                self.magic.pop(engine.device, None)
                if engine.writes and not engine.unmounted:
                    self._lost.add(engine.device)
            return list(self._engines)

    def with_characters(self, number: int) -> Engine | None:
        """The engine that serves a filesystem, if an open regular file of it may be a device.

        Args:
            number: its st_dev.
        """
        found = next((each for each in self._engines.copy() if each.device == number), None)
        lent = None if found is None else found.lent
        return found if lent is not None and lent.characters else None

    def any_characters(self) -> bool:
        """Some engine's filesystem has such a file."""
        lents = [engine.lent for engine in self._engines.copy()]
        return any(lent is not None and lent.characters for lent in lents)

    def writing(self) -> list[Engine]:
        """The engines whose filesystems can be written, in the order in which they were mounted."""
        return [engine for engine in self.alive() if engine.writes]

    def _sync_mounted(self, instance: int, ino: int) -> None:
        """As sync(2), what is mounted from one device (fs_bdev_sync)."""
        for engine in self.writing():
            if engine.served is not None and engine.served.device == (instance, ino):
                engine.sync(self.helper, "sync", None, -1)

    def _settle(self, concerns: Callable[[LoopDevice], bool]) -> None:
        for engine in self.alive():
            engine.settle(concerns)

    def lost(self, number: int | None = None) -> bool:
        """A filesystem's engine, or that of any, was killed with what it had not written yet.

        Args:
            number: st_dev of a FUSE filesystem.
        """
        lost = self._lost.difference(self.instances.device_numbers())
        return bool(lost) if number is None else number in lost

    def device_numbers(self) -> tuple[int, ...]:
        """Of all that we serve in the sandbox: instances, and filesystems on their devices."""
        engines = tuple(engine.device for engine in self.alive())
        return engines + self.instances.device_numbers()

    def served(self, device: tuple[int, int]) -> tuple[Served, int] | None:
        """What the engine of a device has, whose superblock can be mounted once more, and its
        /dev/fuse, which is the caller's to close soon. One that is to end is waited for.

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
        """Serve the mount that an engine is to have its device from.

        Args:
            wanted: what the job asks for.
            fuse: an open /dev/fuse; ours from now on.
        Raises:
            OSError: ENXIO (the device is gone), EBUSY (another engine writes a part of it, or
                its image is mounted by another sandbox); and so is what was mounted.
        """
        connection = Connection(fuse)
        filesystem, node = self._device(wanted.instance, wanted.ino)
        assert node.device is not None
        device, use = node.device, None
        lock = ImageLock.take(device, 0, device.capacity, write=not wanted.read_only)
        try:
            if not wanted.read_only:
                use = filesystem.drive(partial(device.mounted, wanted.start, wanted.end))
                filesystem.drop_pages(device)  # what was stored since the job asked
            served = EngineDevice(filesystem, node, use, lock)
            served.serve_in_thread(connection)
        except OSError:
            lock.release()
            if use is not None:
                device.unmounted(use)
            raise
        return served

    def write_back(self, instance: int, ino: int) -> None:
        """Have in the image what is dirty of a device, its disk and the partitions.

        Args:
            instance, ino: st_dev of the instance and the node's inode number.
        Raises:
            OSError: ENXIO: the device is gone; else what the image said.
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
        """Have the file of a device lent to a job that will be its engine, which uses all of it.

        Returns:
            what the job is to have; None if the device must be served instead (:meth:`serve`).
        Raises:
            OSError: ENXIO (the device is gone), EBUSY (another opener has it exclusively or writes
                a part of it, or its image is mounted by another sandbox), EACCES (it is
                write-protected); what the image says to what is dirty of it.
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
                filesystem.drop_pages(device)  # what was stored meanwhile
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
        """What was lent to an engine for reading is lent for writing, if nothing is raised within.

        Raises:
            OSError: EACCES (the device is write-protected), EBUSY (another one writes a part of it,
                or its image is mounted elsewhere); what the image says to what is dirty of it.
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
        """An engine serves a device.

        Args:
            fds: its pidfd, and its user namespace if it cannot be looked into; ours from now on.
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
        """A process that has a device open mounts it. Returns what asks whether it is still open.

        Args:
            instance, ino: st_dev of the instance and the node's inode number.
        Raises:
            OSError: EBUSY: another one has claimed it.
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
        """Return once the engines have written everything and ended.

        To be called when no process of the sandbox is left, and so none of its mounts; but
        an image may lie on a filesystem that it keeps from ending.

        Args:
            slow: is told of those that take longer than some seconds.
        """
        self.instances.detach_unused()
        engines, end = self.alive(), monotonic() + PATIENCE
        late = [each for each in engines if not each.ended(max(0, int(1000 * (end - monotonic()))))]
        if late:
            slow(late)
        for engine in late:
            engine.ended(None)

    def ended(self, timeout: float) -> bool:
        """All engines have ended, or do within so many seconds."""
        end = monotonic() + timeout
        return all(e.ended(max(0, int(1000 * (end - monotonic())))) for e in self.alive())

    def give_up(self) -> None:
        """Kill the engines: what they have not written is lost."""
        for engine in self.alive():
            engine.kill()


@contextmanager
def caller_descriptors(call: Waiting, start: int | None = None) -> Iterator[tuple[int, ...]]:
    """What a job needs of a caller (:class:`loopfs.engines.caller.Caller`): pidfd, root, working
    directory, /proc/TGID, /proc/TGID/task/TID.

    Args:
        start: its descriptor to take the place of the working directory.
    Raises:
        OSError: EINTR: the caller is gone, and another may have its process id.
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
