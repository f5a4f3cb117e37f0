"""The engines that run, as the supervisor knows them."""

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

PATIENCE = 5.0  # seconds that engines may write without a word of it
_LOOK = 0.002  # seconds


class Engine:
    """A running engine: its pidfd, which is closed with it, and st_dev of what it serves.

    ``superblock`` is the device number in mountinfo. What another mount of the same can be made
    from is ``served``. ``userns`` is its user namespace, of an engine that cannot be looked into,
    and is closed with it.
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
        self.unmounted = False  # the last mount of it is known to be gone
        self.syncing = threading.Lock()  # held while a job has a mount of what it serves

    def __del__(self) -> None:
        os.close(self.pidfd)  # not before: another thread may wait for it
        if self._userns is not None:
            os.close(self._userns)

    def ended(self, timeout_ms: int | None = 0) -> bool:
        """It has exited, or does within ``timeout_ms`` (None: however long it takes), and its
        device is closed."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        if not poller.poll(timeout_ms):
            return False
        timeout = None if timeout_ms is None else timeout_ms / 1000
        return self._source is None or self._source.gone.wait(timeout)

    def name(self) -> str:
        """What it is called."""
        try:
            with open(f"/proc/{self.pid}/comm", "rb") as file:
                name = shown(to_str(file.read().removesuffix(b"\n")))
            return f"{name} (process {self.pid})"
        except FileNotFoundError:  # it has just ended
            return f"process {self.pid}"

    def kill(self) -> None:
        """What it has not written is lost."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def umounted(self, process: int) -> None:
        """A process has unmounted it: return once everything is written, if it is to end."""
        with self.syncing:
            last = self.disconnected()
        if last:
            if self.loan is None:
                self.ended(None)
            else:  # it has closed all when it says that it has ended
                self.loan.gone.wait()
            wait_for_closes(PATIENCE)  # the image may lie on what is unmounted next
            if self._source is not None:
                self._source.freed_by_umount(process)

    def settle(self, concerns: Callable[[LoopDevice], bool]) -> None:
        """Return once it has ended if it is to, since its last mount is gone without an umount2(2):
        with a namespace, or when a file of a mount that was detached was closed.

        Args:
            concerns: whether it matters, by the disk that it has.
        """
        # While a job has a mount of it, it is not to end.
        if self._source is None or not concerns(self._source.disk) or self.syncing.locked():
            return
        if self.disconnected():
            self.unmounted = True
            self.ended(None)

    @property
    def loan(self) -> LentDevice | None:
        """What it has its device from, if it was lent."""
        return self._source if isinstance(self._source, LentDevice) else None

    def remounted(self, *, read_only: bool) -> None:
        """What it serves was remounted."""
        assert self.served is not None
        self.served = self.served._replace(read_only=read_only)

    @property
    def lent(self) -> LentDevice | None:
        """What our own ext4 has its device from."""
        own = self.served is not None and self.served.fstype in EXT_TYPES
        return self._source if own and isinstance(self._source, LentDevice) else None

    @property
    def writes(self) -> bool:
        """Its filesystem can be written."""
        return self.served is not None and not self.served.read_only

    @property
    def error(self) -> int:
        """The errno of every sync, once something that it had written could not be stored; or 0."""
        return self._source.error if self._source is not None else 0

    def sync(self, helper: Helper, call: str, process: Process | None, fd: int) -> int:
        """Have in the image, synced, what programs have written to its filesystem.

        Args:
            call: fsync, fdatasync or syncfs of a descriptor of ``process``, or sync.
        Returns:
            What the call returns: 0 or an errno, EIO when the helper is gone, ENOTCONN when the
            engine has ended; NOT_OURS when it is the kernel's to carry out.
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
                    with suppress(BrokenPipeError):  # it was killed
                        channel.send(b"drained")
                    code, _ = result(channel.receive())
        return self.error or code

    @property
    def syncs_by_itself(self) -> bool:
        """What the kernel asks it to sync (fsync(2), of any descriptor) it does sync."""
        return isinstance(self._source, LentDevice)

    def connection(self) -> int | None:
        """A duplicate of the /dev/fuse that it serves, to be closed soon: it keeps the mount from
        noticing the engine's end. None when it has let go of it.

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
        """The last mount of its filesystem is gone, so it is about to end."""
        fd = self.connection()
        if fd is None:
            return True
        try:
            return disconnected(fd)
        finally:
            os.close(fd)

    def user_namespace(self) -> int:
        """A descriptor of the user namespace of who has mounted it.

        Raises:
            OSError: it has ended.
        """
        if self._userns is not None:
            return os.dup(self._userns)
        return os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)

    def id_map(self, kind: str) -> str:
        """The text of uid_map or gid_map of its user namespace, as we see the outer ids.

        Raises:
            OSError: it has ended.
        """
        namespace = self.user_namespace()
        try:
            if os.path.samestat(os.fstat(namespace), os.stat("/proc/self/ns/user")):
                return f"0 0 {UINT_MAX}\n"  # the kernel would tell of our parent's ids
        finally:
            os.close(namespace)
        with open(f"/proc/{self.pid}/{kind}_map", encoding="utf-8") as file:
            return file.read()


class KernelMount(Engine):
    """The process that keeps a mount of the kernel's own.

    Args:
        loop: the number of its device.
        let_go: called once it has ended: what was cached of our device is old.
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
    """A program of the sandbox's that serves a filesystem from a device which it has opened itself.

    It has ended when what the process that mounted had open of the device is closed: another one
    may serve.

    Args:
        device: st_dev of what it serves.
        openers: tells whether it is still open.
        process: who has mounted it.
    """

    def __init__(self, device: int, openers: Callable[[], bool], process: Process) -> None:
        super().__init__(process.pidfd(), device, device)
        self._openers = openers

    def ended(self, timeout_ms: int | None = 0) -> bool:
        end = monotonic() + (PATIENCE if timeout_ms is None else timeout_ms / 1000)
        while self._openers():  # FUSE does not say when a server has closed its device
            if monotonic() >= end:
                return False
            sleep(_LOOK)
        return True

    def umounted(self, process: int) -> None:
        number = f" {os.major(self.device)}:{os.minor(self.device)} "
        with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="replace") as file:
            if not any(number in line for line in file):  # else it is mounted elsewhere, too
                self.ended(None)

    def kill(self) -> None:
        """It ends with the sandbox."""
