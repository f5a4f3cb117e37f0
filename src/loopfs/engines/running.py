"""The running engines, as the supervisor sees them."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.engines.engine import Served
from loopfs.engines.ext_superblock import TYPES as EXT_TYPES
from loopfs.engines.helper import DRAIN, Helper, result
from loopfs.engines.labels import Label
from loopfs.engines.superblock import connection_of, disconnected
from loopfs.filesystems.backing import wait_for_closes
from loopfs.filesystems.held_device import HeldDevice
from loopfs.filesystems.lent_device import LentDevice
from loopfs.lean import TYPE_CHECKING, signal
from loopfs.process import UINT_MAX
from loopfs.text import shown, to_str

if TYPE_CHECKING:
    from loopfs.driver.loop import LoopDevice
    from loopfs.process import Process

PATIENCE = 5.0  # seconds that engines may need to end before a message is printed
_LOOK = 0.002  # seconds


class Engine:
    """A running engine: its pidfd, which is closed with the object, and st_dev of its filesystem.

    ``superblock`` is the device number in mountinfo. ``served`` has what is needed to mount the
    superblock again. ``userns`` is the user namespace of an engine whose process is inaccessible;
    it is closed with the object.
    """

    def __init__(
        self,
        pidfd: int,
        device: int,
        superblock: int,
        served: Served | None = None,
        source: HeldDevice | None = None,
        userns: int | None = None,
    ) -> None:
        self.pidfd = pidfd
        self._userns = userns
        self.device = device
        self.superblock = superblock
        self.pid = syscalls.pidfd_pid(pidfd)
        self.served = served
        self.label: Label | None = None
        self._source = source
        self.unmounted = False  # whether its last mount is known to have ended
        self.syncing = threading.Lock()  # held while a job has a private mount of its filesystem

    def __del__(self) -> None:
        os.close(self.pidfd)  # only now, since another thread may poll it
        if self._userns is not None:
            os.close(self._userns)

    def ended(self, timeout_ms: int | None = 0) -> bool:
        """Return whether it has exited and its device is closed, waiting up to ``timeout_ms``
        (None: without limit)."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(timeout_ms):
            return False
        timeout = None if timeout_ms is None else timeout_ms / 1000
        return self._source is None or self._source.gone.wait(timeout)

    def name(self) -> str:
        """Return its name for messages."""
        try:
            with open(f"/proc/{self.pid}/comm", "rb") as file:
                name = shown(to_str(file.read().removesuffix(b"\n")))
            return f"{name} (process {self.pid})"
        except FileNotFoundError:  # it has just ended
            return f"process {self.pid}"

    def kill(self) -> None:
        """Kill it. Its unwritten data is lost."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def umounted(self, process: int) -> None:
        """Wait until everything is written, if a process has just unmounted its last mount."""
        with self.syncing:
            last = self.disconnected()
        if last:
            if self.loan is None or self.loan.nested:  # for a nested image nothing may be left open
                self.ended(None)
            else:  # it closes its files before it reports its end
                self.loan.gone.wait()
            wait_for_closes(PATIENCE)  # the image may be on the filesystem that is unmounted next
            if self._source is not None:
                self._source.freed_by_umount(process)

    def settle(self, concerns: Callable[[LoopDevice], bool]) -> None:
        """Wait for its end if its last mount has ended without umount2(2): with a namespace, or by
        the last close of a file of a detached mount.

        Args:
            concerns: returns whether this matters for a disk, that of the engine.
        """
        # A job's private mount keeps it from ending.
        if self._source is None or not concerns(self._source.disk) or self.syncing.locked():
            return
        if self.disconnected():
            self.unmounted = True
            self.ended(None)

    @property
    def loan(self) -> LentDevice | None:
        """Its lent device, if the device was lent."""
        return self._source if isinstance(self._source, LentDevice) else None

    def remounted(self, *, read_only: bool) -> None:
        """Record that its filesystem was remounted."""
        assert self.served is not None
        self.served = self.served._replace(read_only=read_only)

    @property
    def lent(self) -> LentDevice | None:
        """The lent device of our own ext4 engine."""
        own = self.served is not None and self.served.fstype in EXT_TYPES
        return self._source if own and isinstance(self._source, LentDevice) else None

    @property
    def writes(self) -> bool:
        """Whether its filesystem is writable."""
        return self.served is not None and not self.served.read_only

    @property
    def error(self) -> int:
        """The errno of every sync, if some of its data could not be written; otherwise 0."""
        return self._source.error if self._source is not None else 0

    def sync(self, helper: Helper, call: str, process: Process | None, fd: int) -> int:
        """Write to the image, and sync, what programs have written to its filesystem.

        Args:
            call: fsync, fdatasync or syncfs of a descriptor of ``process``, or sync.
        Returns:
            The result of the call: 0 or an errno, EIO if the helper has ended, ENOTCONN if the
            engine has ended; NOT_OURS if the call is left to the kernel.
        """
        assert self.served is not None
        with self.syncing:
            connection = self.connection()
            if connection is None:
                return errno.ENOTCONN
            namespace = self.pidfd if self._userns is None else self._userns
            what = (self.pid, self.served.fstype, self.device, call, fd, self.syncs_by_itself)
            fds = [connection]
            try:
                if process is not None:
                    fds.append(process.pidfd())
                channel = helper.begin("sync", what, (self.pidfd, namespace, *fds))
            except BrokenPipeError:
                return errno.EIO
            finally:
                close_all(fds)
            with channel:
                code, _ = result(channel.receive())
                if code == DRAIN and isinstance(self._source, LentDevice):
                    self._source.drain()
                    with suppress(BrokenPipeError):  # the engine was killed
                        channel.send(b"drained")
                    code, _ = result(channel.receive())
        return self.error or code

    @property
    def syncs_by_itself(self) -> bool:
        """Whether it syncs its device itself when the kernel sends a sync of any descriptor."""
        return isinstance(self._source, LentDevice)

    def connection(self) -> int | None:
        """Return a duplicate of the /dev/fuse that it serves; None if it has closed it. The
        duplicate must be closed soon: it prevents the mount from detecting the engine's end.

        Raises:
            OSError: EMFILE.
        """
        if isinstance(self._source, LentDevice):
            return self._source.connection()
        try:
            return connection_of(self.pidfd, self.pid)
        except OSError as problem:
            if problem.errno == errno.EMFILE:
                raise
            return None

    def disconnected(self) -> bool:
        """Return whether the last mount of its filesystem has ended, so that it is about to end."""
        fd = self.connection()
        if fd is None:
            return True
        try:
            return disconnected(fd)
        finally:
            os.close(fd)

    def user_namespace(self) -> int:
        """Return a descriptor of the user namespace of the process that has mounted it.

        Raises:
            OSError: the engine has ended.
        """
        if self._userns is not None:
            return os.dup(self._userns)
        return os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

    def id_map(self, kind: str) -> str:
        """Return the text of uid_map or gid_map of its user namespace; the outer ids are ours.

        Raises:
            OSError: the engine has ended.
        """
        namespace = self.user_namespace()
        try:
            if os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/user")):
                return f"0 0 {UINT_MAX}\n"  # the kernel would show the ids of our parent namespace
        finally:
            os.close(namespace)
        with open(f"/proc/{self.pid}/{kind}_map", encoding="utf-8") as file:
            return file.read()


class KernelMount(Engine):
    """The process that keeps a mount of a filesystem of the kernel.

    Args:
        loop: the number of its loop device.
        let_go: called after its end, since pages cached of our device are then outdated.
    """

    def __init__(
        self, pidfd: int, device: int, superblock: int, loop: int, let_go: Callable[[], None]
    ) -> None:
        super().__init__(pidfd, device, superblock)
        self._loop = loop
        self._let_go = let_go
        self._ending = threading.Lock()
        self._has_ended = False

    def ended(self, timeout_ms: int | None = 0) -> bool:
        if not super().ended(timeout_ms):
            return False
        with self._ending:
            if not self._has_ended:
                self._let_go()
                self._has_ended = True
        return True

    def disconnected(self) -> bool:
        return not os.path.exists(f"/sys/block/loop{self._loop}/loop/backing_file")


class OwnServer(Engine):
    """A program in the sandbox that serves a filesystem from a device that it has opened itself.

    It has ended when the files that the mounting process had open on the device are closed; another
    process may serve the filesystem.

    Args:
        device: st_dev of its filesystem.
        openers: returns whether one of these files is still open.
        process: the process that has mounted it.
    """

    def __init__(self, device: int, openers: Callable[[], bool], process: Process) -> None:
        super().__init__(process.pidfd(), device, device)
        self._openers = openers

    def ended(self, timeout_ms: int | None = 0) -> bool:
        end = monotonic() + (PATIENCE if timeout_ms is None else timeout_ms / 1000)
        while self._openers():  # FUSE does not report when a server has closed its device
            if monotonic() >= end:
                return False
            sleep(_LOOK)
        return True

    def umounted(self, process: int) -> None:
        number = f" {os.major(self.device)}:{os.minor(self.device)} "
        with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="replace") as file:
            if not any(number in line for line in file):  # otherwise it is also mounted elsewhere
                self.ended(None)

    def kill(self) -> None:
        """Do nothing: it ends with the sandbox."""
