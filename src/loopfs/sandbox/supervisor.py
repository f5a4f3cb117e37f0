"""The supervisor: serves a sandbox's instance and its trapped system calls."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from functools import partial
from time import monotonic

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines.helper import ABORT, Helper
from loopfs.errors import SetupError, no_room, of_start
from loopfs.filesystems.threads import start
from loopfs.lean import TYPE_CHECKING, Callable, NamedTuple, NoReturn, Sequence, signal
from loopfs.limits import raise_limits
from loopfs.sandbox import messages
from loopfs.sandbox.ending import ENDERS, PATIENCE, Command, remaining
from loopfs.sandbox.run import FORWARDED
from loopfs.settings import Settings
from loopfs.uapi.fuse import FUSE_ROOT_ID

if TYPE_CHECKING:
    from _socket import socket
    from signal import struct_siginfo

    from loopfs.driver.bdev import BlockDevice
    from loopfs.engines.running import Engine
    from loopfs.filesystems.loopfs import LoopFilesystem
    from loopfs.filesystems.sysfs import SysfsDirectory
    from loopfs.fuse.session import Session
    from loopfs.intercept import notify
    from loopfs.intercept.log import Log

SI_KERNEL = 0x80  # from the terminal: the command, in our process group, has received it too
ABORT_WITHIN = 2  # seconds
SWITCH_INTERVAL = 0.0005  # seconds: a serving thread should not wait long for a computing one


class About(NamedTuple):
    """A sandbox: its command, its user namespace (inode number), and its listening socket for
    requests from outside."""

    argv: Sequence[str]
    userns: int
    listener: socket


class Supervisor:
    """The supervisor of one sandbox.

    Args:
        helper: acts in the callers' namespaces.
        channel: to the child and to process 1.
        child: its pid.
        about: the sandbox.
        settings: of the sandbox.
        log: records each trapped call, and the start and end of the command.
    """

    def __init__(
        self,
        helper: Helper,
        channel: Channel,
        child: int,
        about: About,
        settings: Settings,
        log: Log | None,
    ) -> None:
        self._helper = helper
        self._channel = channel
        self._child = child
        self._about = about
        self._settings = settings
        self._log = log
        self._command: Command | None = None
        # nohup(1) ignores SIGHUP: then one sent by the kernel must not end the sandbox.
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        self._enders = ENDERS - ignored
        self._failure: SetupError | None = None
        self._instance: int | None = None  # the /dev/fuse of the sandbox's /dev

    def begin(self) -> None:
        """Begin to serve the sandbox. Raises OSError: no sandbox can be made."""
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._mounted = threading.Event()
        self._serving = threading.Event()
        self._told = threading.Event()  # the message of process 1 has arrived
        try:  # the thread imports its modules while the child continues
            start("fuse", self._serve_instance)
        except OSError:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
            raise no_room() from None
        made = messages.expect(self._channel, messages.FUSE, messages.MOUNTED)
        if made.data == messages.FUSE:
            self._instance = made.fds[0]
            made = messages.expect(self._channel, messages.MOUNTED)
        self._mounts_made = made
        if made.fds:
            self._mounted.set()
        else:
            self._about.listener.close()  # the outer sandbox answers for this one
            if chosen := self._settings.for_the_outer_one():
                raise SetupError(
                    0, f"{chosen} can only be given to the outer sandbox, which serves this one"
                )
        self._begin("converse", self._converse)

    def dismiss(self) -> None:
        """Dismiss the helper."""
        self._helper.dismiss()

    def wait(self) -> int:
        """Serve the sandbox to its end; return the command's exit status. Raises SetupError."""
        try:
            status = self._wait()
        finally:
            if self._serving.is_set():
                abort_connections()
        if self._log is not None:
            self._log.end(status)
        return status

    def _begin(self, name: str, target: Callable[..., None], *args: object) -> None:
        """Start a thread that the sandbox needs."""
        try:
            start(name, target, *args)
        except OSError:
            self._fail(no_room())

    def _fail(self, problem: SetupError) -> None:
        """End the sandbox at once: it cannot be served."""
        self._failure = problem
        self._told.set()
        with suppress(ProcessLookupError):  # it has already ended
            os.kill(self._child, signal.SIGKILL)

    def _serve_instance(self) -> None:
        filesystem = None
        try:
            filesystem = self._prepare()
        except OSError as problem:
            self._fail(of_start(problem))
        except Exception as problem:  # a bug of ours
            sys.excepthook(*sys.exc_info())
            self._fail(SetupError(0, f"the sandbox cannot be served: {problem}"))
        if filesystem is not None:
            self._mounts.instances.serve(filesystem)

    def _prepare(self) -> LoopFilesystem | None:
        """Make the objects that serve the sandbox; return the first instance, to be served."""
        from loopfs.driver.minors import Minors
        from loopfs.driver.ucounts import Ucounts
        from loopfs.engines.copies import Copies, Place
        from loopfs.engines.mounts import Mounts
        from loopfs.filesystems.devtmpfs import DevFilesystem
        from loopfs.filesystems.instances import Instances, Owner
        from loopfs.filesystems.max_loop import PLACE as MAX_LOOP
        from loopfs.filesystems.max_loop import MaxLoopFile
        from loopfs.filesystems.procfs import PATH as PARTITIONS
        from loopfs.filesystems.procfs import PartitionsFile
        from loopfs.filesystems.shares import Shares
        from loopfs.filesystems.sysfs import DEVICES, SysfsDirectory
        from loopfs.fuse.session import Session
        from loopfs.process import Process
        from loopfs.sandbox.sysfs import understood
        from loopfs.uapi.magic import PROC_SUPER_MAGIC, SYSFS_MAGIC

        number_from = self._settings.number_from
        after_the_hosts = number_from is None
        room = raise_limits()
        self._mounted.wait()
        root, *views = self._mounts_made.fds
        _, kept, hosts, words = self._mounts_made.data.decode().split(" ", 3)
        first = first_number(hosts.split(",")) if number_from is None else number_from
        minors = Minors(first)
        instances = Instances(
            minors,
            self._helper.fstat,
            self._helper.read_table,
            Shares(room),
            Ucounts(*self._settings.devices()),
        )
        own_sysfs, numbers = understood(words)
        magic = {
            n: PROC_SUPER_MAGIC if p == PARTITIONS else SYSFS_MAGIC for p, n in numbers.items()
        }
        self._dev, bare = Place.of(root), self._settings.bare
        dev, instance = (self._dev, None) if bare else (None, self._dev)
        copies = Copies(magic, own_sysfs, dev, instance)
        self._mounts = Mounts(self._helper, instances, copies)
        filesystem = None
        if self._instance is not None:
            filesystem = instances.add(
                self._instance,
                syscalls.statx_dev(root),
                Owner((self._about.userns,), Process(os.getpid()).id_map),
                make=partial(DevFilesystem, kept.split(",") if kept else []),
            )
        os.close(root)  # it would keep the instance mounted
        self._serving.set()
        self._begin("control", self._control)
        for place, view in zip(numbers, views, strict=True):
            if place == PARTITIONS:
                session = Session(view, PartitionsFile(instances, hosts_loops=after_the_hosts))
            elif place == MAX_LOOP:
                shares, numbers_lock = instances.shares, instances.numbers
                session = Session(view, MaxLoopFile(instances.ucounts, numbers_lock, shares))
            else:
                names = hosts.split(",") if hosts and place == DEVICES else ()
                directory = SysfsDirectory(
                    place, instances, hosts_loops=after_the_hosts, mounted_on=names
                )
                session = Session(view, directory, watched=True)
                instances.on_removal.append(partial(forget, session, directory))
            self._begin(place, session.serve)
        return filesystem

    def _control(self) -> None:
        """Answer `loopfs ls` and `detach`; modules are imported at the first request."""
        import select

        poller = select.poll()
        poller.register(self._about.listener, select.POLLIN)
        poller.poll()
        from loopfs.sandbox.control import Control

        control = Control(self._mounts, self._about.argv)
        control.serve(self._about.listener.detach())

    def _converse(self) -> None:
        """Receive the one message of the process that becomes the command. After it no process has
        the other end, and no second message is read."""
        message = self._channel.receive()
        self._channel.close()
        self._failure = self._failure or messages.failure(message)
        self._told.set()
        if message.data != messages.LISTENER:
            return  # it cannot be run, and the sandbox ends
        self._command = Command(message.pid)
        if self._log is not None:
            self._log.start(message.pid)
        for listener in message.fds:
            self._begin("notify", self._intercept, listener)

    def _intercept(self, listener: int) -> None:
        from loopfs.intercept import notify

        handlers: dict[str, notify.Handler] = {}

        def handle(call: notify.Call) -> None:
            if call.name not in handlers:
                is_fstat = call.name in notify.FSTAT_CALLS
                if is_fstat and not self._serving.is_set():
                    call.proceed()  # no process can have a device open yet
                    return
                self._serving.wait()
                handlers.update(self._fstat_handlers() if is_fstat else self._mount_handlers())
            handlers[call.name](call)

        make = notify.Call if self._log is None else self._log.call
        notify.serve(listener, handle, make)

    def _fstat_handlers(self) -> dict[str, notify.Handler]:
        from loopfs.intercept.fstat import FstatHandler
        from loopfs.intercept.notify import FSTAT_CALLS

        return dict.fromkeys(FSTAT_CALLS, FstatHandler(self._mounts))

    def _mount_handlers(self) -> dict[str, notify.Handler]:
        from loopfs.engines.policy import Policy
        from loopfs.intercept.fs_context import ContextHandlers
        from loopfs.intercept.ioctl import IoctlHandler
        from loopfs.intercept.mknod import MknodHandler
        from loopfs.intercept.mount import MountHandler
        from loopfs.intercept.netlink import SocketHandler
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
            "ioctl": IoctlHandler(self._mounts),
            "socket": SocketHandler(self._mounts),
            "statfs": statfs,
            "fstatfs": statfs,
            **dict.fromkeys(("mknod", "mknodat"), MknodHandler(self._mounts, self._dev)),
            **dict.fromkeys(SYNC_CALLS, SyncHandler(self._mounts)),
        }

    def _wait(self) -> int:
        waited = FORWARDED | {signal.SIGCHLD}
        deadline: float | None = None  # when the last signal should have had its effect
        told = False
        while True:
            info = _next_signal(waited, deadline)
            if info is None:
                deadline = None
                if told := self._hangs():
                    self._tell_of_hanging()
            elif info.si_signo == signal.SIGCHLD:
                pid, status = os.waitpid(self._child, os.WNOHANG)
                if pid:
                    self._told.wait()
                    if self._failure is not None:
                        raise self._failure
                    if self._serving.is_set():
                        self._finish()
                    _drop_signals()
                    return messages.exit_status(status)
            else:
                if info.si_signo in self._enders:
                    if told and self._hangs():
                        self._abort(info.si_signo)
                    deadline = deadline or monotonic() + PATIENCE
                # SIGHUP is sent to the session leader only, which can be this process.
                if info.si_code != SI_KERNEL or info.si_signo == signal.SIGHUP:
                    self._forward(info.si_signo)

    def _finish(self) -> None:
        """Wait for the engines, or until a signal; then data that is not yet written is lost."""
        try:
            self._mounts.finish(self._tell_of_slow)
        except _Interrupted as interrupted:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._enders)
            self._mounts.give_up()
            if not self._mounts.ended(PATIENCE):
                self._abort(interrupted.number)

    def _tell_of_slow(self, engines: Sequence[Engine]) -> None:
        """Report the engines that we wait for, and let a signal end the wait.

        Before that, signals do not end it: a signal that was sent to end the command must not lose
        data that the command has written.
        """
        _drop_signals()
        for number in self._enders:
            signal.signal(number, _interrupt)
        names = ", ".join(engine.name() for engine in engines)
        _say(
            f"still waiting for {names} to write what was mounted;"
            " interrupt (SIGINT, SIGTERM, SIGHUP) to end now and lose unwritten data"
        )
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._enders)

    def _forward(self, number: int) -> None:
        if self._command is not None:
            self._command.send(number)
        else:  # the command does not run yet
            os.kill(self._child, signal.SIGKILL)

    def _hangs(self) -> bool:
        """Whether the processes that a signal should have ended still exist and do not react."""
        return self._command is None or self._command.hangs()

    def _tell_of_hanging(self) -> None:
        _say(
            f"still waiting for {remaining(self._child)} to end; interrupt once more"
            " (SIGINT, SIGTERM, SIGHUP) to end the sandbox at once and lose unwritten data"
        )

    def _abort(self, number: int) -> NoReturn:
        """Exit at once, and abort the FUSE connections, so that no process waits for an answer."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.alarm(ABORT_WITHIN)  # even if one of these hangs
        status = 128 + number
        try:
            _say("ended while a process was blocked: data that was not yet written is lost")
            os.kill(self._child, signal.SIGKILL)
            self._helper.dismiss(ABORT)
            if self._serving.is_set():
                self._mounts.give_up()
                abort_connections()
            if self._log is not None:
                self._log.end(status)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)


class _Interrupted(Exception):
    """A signal that ends the wait for engines; ``number`` is the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _interrupt(number: int, _: object) -> NoReturn:
    raise _Interrupted(number)


def _next_signal(waited: frozenset[int], deadline: float | None) -> struct_siginfo | None:
    """Return the next of the ``waited`` signals; None if none arrives before the deadline."""
    if deadline is None:
        return signal.sigwaitinfo(waited)
    return signal.sigtimedwait(waited, max(0.0, deadline - monotonic()))


def _say(sentence: str) -> None:
    print(f"loopfs: {sentence}", file=sys.stderr, flush=True)


def abort_connections() -> None:
    """Abort every FUSE connection: our exit must not wait for an answer of our own."""
    from loopfs.fuse.connection import abort_all

    abort_all()


def _drop_signals() -> None:
    """Drop pending signals for the command, which has ended."""
    while signal.sigtimedwait(FORWARDED, 0):
        pass


def forget(session: Session, directory: SysfsDirectory, device: BlockDevice) -> None:
    """Drop the name of a removed device from the kernel's cache of a directory of /sys."""
    session.forget_name(FUSE_ROOT_ID, directory.name_of(device).encode())


def first_number(mounted: Sequence[str] = ()) -> int:
    """Return the first number of our devices, which follows those of the host's loop devices.

    Args:
        mounted: devices of the host whose directories were mounted in the view of /sys at the
            start; the host may have removed some, and added others, since.
    """
    from loopfs.driver.minors import longest_gap

    try:
        names = [*os.listdir("/sys/block"), *mounted]
    except FileNotFoundError:
        return 0
    return longest_gap(int(n[4:]) for n in names if n[:4] == "loop" and n[4:].isdigit())
