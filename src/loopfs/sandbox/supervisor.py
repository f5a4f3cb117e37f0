"""The supervisor: serves a sandbox's instance and its trapped system calls."""

from __future__ import annotations

import os
import sys
import threading
from functools import partial

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines.helper import Helper
from loopfs.errors import SetupError
from loopfs.lean import TYPE_CHECKING, Sequence, signal
from loopfs.sandbox import messages
from loopfs.sandbox.run import FORWARDED
from loopfs.settings import Settings
from loopfs.uapi.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from loopfs.driver.bdev import BlockDevice
    from loopfs.engines.mounts import Engine
    from loopfs.filesystems.sysfs import SysfsDirectory
    from loopfs.fuse.session import Session
    from loopfs.intercept import notify
    from loopfs.intercept.log import Log

SI_KERNEL = 0x80  # from the terminal: the command, in our process group, got it too
SWITCH_INTERVAL = 0.0005  # seconds: a thread that serves should not wait for one that computes


class Supervisor:
    """Lives as long as the command.

    Args:
        helper: acts in the callers' namespaces.
        channel: to the child and to process 1.
        child: its pid.
        userns: the user namespace it has made (its inode number).
        settings: what was chosen for it.
        log: is told of each trapped call, and of the command's start and end.
    """

    def __init__(
        self,
        helper: Helper,
        channel: Channel,
        child: int,
        userns: int,
        settings: Settings,
        log: Log | None,
    ) -> None:
        self._helper = helper
        self._channel = channel
        self._child = child
        self._userns = userns
        self._settings = settings
        self._log = log
        self._command: int | None = None
        self._instance = threading.Thread(target=self._serve_instance, name="fuse", daemon=True)

    def supervise(self) -> int:
        """Serve the sandbox; return the command's exit status."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._mounted = threading.Event()
        self._serving = threading.Event()
        self._instance.start()  # imports what it needs while the child goes on
        self._mounts_made = messages.expect(self._channel, messages.MOUNTED.encode())
        if self._mounts_made.fds:
            self._mounted.set()
        elif chosen := self._settings.for_the_outer_one():
            raise SetupError(0, f"{chosen} is for the sandbox around this one, which serves it")
        threading.Thread(target=self._converse, daemon=True).start()
        status = self._wait()
        if self._log is not None:
            self._log.end(status)
        return status

    def _serve_instance(self) -> None:
        from loopfs.driver.minors import Minors
        from loopfs.engines.mounts import Mounts
        from loopfs.filesystems import links
        from loopfs.filesystems.instances import Instances, Owner
        from loopfs.filesystems.procfs import PATH as PARTITIONS
        from loopfs.filesystems.procfs import PartitionsFile
        from loopfs.filesystems.shares import Shares
        from loopfs.filesystems.sysfs import SysfsDirectory
        from loopfs.fuse.session import Session
        from loopfs.process import Process

        number_from = self._settings.number_from
        after_the_hosts = number_from is None
        minors = Minors(host_numbers_end() if number_from is None else number_from)
        room = raise_descriptor_limit()
        self._mounted.wait()
        fuse, dev, root, *views = self._mounts_made.fds
        instances = Instances(
            minors,
            self._helper.fstat,
            self._helper.read_table,
            Shares(room),
        )
        self._mounts = Mounts(self._helper, instances)
        filesystem = None
        if not self._settings.bare:
            filesystem = instances.add(
                fuse,
                syscalls.statx_dev(root),
                Owner(self._userns, Process(os.getpid()).id_map),
                lambda action, name: links.change(dev, "loopfs", action, name),
            )
        os.close(root)  # it would keep the instance mounted
        self._serving.set()
        places = self._mounts_made.data.decode().split()[1:]
        for place, view in zip(places, views, strict=True):
            if place == PARTITIONS:
                session = Session(view, PartitionsFile(instances, hosts_loops=after_the_hosts))
            else:
                directory = SysfsDirectory(place, instances, hosts_loops=after_the_hosts)
                session = Session(view, directory)
                instances.on_removal.append(partial(_forget, session, directory))
            threading.Thread(target=session.serve, name=place, daemon=True).start()
        if filesystem is not None:
            instances.serve(filesystem)

    def _converse(self) -> None:
        """What becomes the command has one thing to say, before it does. Nobody has the other end
        from then on, and we have no ear for a second message."""
        message = self._channel.receive()
        self._channel.close()
        if message.data != messages.LISTENER:
            return  # it cannot be run
        self._command = message.pid
        if self._log is not None:
            self._log.start(message.pid)
        for listener in message.fds:
            threading.Thread(target=self._intercept, args=(listener,), daemon=True).start()

    def _intercept(self, listener: int) -> None:
        from loopfs.intercept import notify

        handlers: dict[str, notify.Handler] = {}

        def handle(call: notify.Call) -> None:
            if call.name not in handlers:
                is_fstat = call.name in notify.FSTAT_CALLS
                if is_fstat and not self._serving.is_set():
                    call.proceed()  # nobody can have a device open yet
                    return
                self._serving.wait()
                handlers.update(self._fstat_handlers() if is_fstat else self._mount_handlers())
            handlers[call.name](call)

        make = notify.Call if self._log is None else self._log.call
        notify.serve(listener, handle, make)

    def _fstat_handlers(self) -> dict[str, notify.Handler]:
        from loopfs.intercept.fstat import FstatHandler
        from loopfs.intercept.notify import FSTAT_CALLS

        return dict.fromkeys(FSTAT_CALLS, FstatHandler(self._mounts.instances))

    def _mount_handlers(self) -> dict[str, notify.Handler]:
        from loopfs.engines.policy import Policy
        from loopfs.intercept.fs_context import ContextHandlers
        from loopfs.intercept.fslabel import FsLabelHandler
        from loopfs.intercept.mount import MountHandler
        from loopfs.intercept.statfs import StatfsHandler
        from loopfs.intercept.sync import SYNC_CALLS, SyncHandler
        from loopfs.intercept.umount import UmountHandler

        policy = Policy(self._settings.engines)
        umount, statfs = UmountHandler(self._mounts), StatfsHandler(self._mounts)
        return {
            **ContextHandlers(self._mounts, policy).handlers(),
            "mount": MountHandler(self._mounts, policy),
            "umount": umount,
            "umount2": umount,
            "ioctl": FsLabelHandler(self._mounts),
            "statfs": statfs,
            "fstatfs": statfs,
            **dict.fromkeys(SYNC_CALLS, SyncHandler(self._mounts)),
        }

    def _wait(self) -> int:
        waited = FORWARDED | {signal.SIGCHLD}
        while True:
            info = signal.sigwaitinfo(waited)
            if info.si_signo == signal.SIGCHLD:
                pid, status = os.waitpid(self._child, os.WNOHANG)
                if pid:
                    if self._serving.is_set():
                        self._mounts.finish(self._tell_of_slow)
                    _drop_signals()
                    return messages.exit_status(status)
            elif info.si_code != SI_KERNEL or info.si_signo == signal.SIGHUP:
                # A hangup is sent to the session's leader alone, and that can be us.
                self._forward(info.si_signo)

    def _tell_of_slow(self, engines: Sequence[Engine]) -> None:
        """Say what we wait for, and let who is tired of it end it.

        Not before: a signal that was to end the command must not cost what it has written.
        """
        _drop_signals()
        enders = signal.SIGINT, signal.SIGTERM
        for number in enders:
            signal.signal(number, lambda *_: self._mounts.give_up())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, enders)
        names = ", ".join(engine.name() for engine in engines)
        print(
            f"loopfs: still waiting for {names} to write what was mounted;"
            " interrupt (SIGINT, SIGTERM) to lose what is not yet written",
            file=sys.stderr,
            flush=True,
        )

    def _forward(self, number: int) -> None:
        target = self._command
        try:
            if target is None:  # nothing runs yet that could want to know
                os.kill(self._child, signal.SIGKILL)
            else:
                os.kill(target, number)
        except ProcessLookupError:
            return  # it has just ended


def _drop_signals() -> None:
    """Drop those that were to be passed on to a command that has ended."""
    while signal.sigtimedwait(FORWARDED, 0):
        pass


def _forget(session: Session, directory: SysfsDirectory, device: BlockDevice) -> None:
    session.forget_name(FUSE_ROOT_ID, directory.name_of(device).encode())


def raise_descriptor_limit() -> int:
    """A bound device costs a descriptor; the workload, forked before, keeps its own limit.

    Returns:
        how many descriptors we may have.
    """
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most if most != resource.RLIM_INFINITY else sys.maxsize


def host_numbers_end() -> int:
    """The first number after those of the loop devices that the host has."""
    try:
        names = os.listdir("/sys/block")
    except FileNotFoundError:
        return 0
    numbers = [int(name[4:]) for name in names if name[:4] == "loop" and name[4:].isdigit()]
    return max(numbers, default=-1) + 1
