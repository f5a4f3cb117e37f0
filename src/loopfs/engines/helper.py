"""The helper: a process that enters the caller's namespaces for the supervisor.

setns(2) into a user namespace needs a single thread, and a fork of a threaded process is
no place to run code. So the helper is forked before there is a thread, does nothing but
wait, and forks once more for each job. A job gets a channel of its own to the supervisor.
"""

from __future__ import annotations

import marshal
import os
import sys
import threading

from loopfs import syscalls
from loopfs.channel import Channel, Message, close_all
from loopfs.lean import TYPE_CHECKING, Any, signal

if TYPE_CHECKING:
    from loopfs.driver.partition import Found
    from loopfs.filesystems.backing import FileFacts

WRITE_BACK = 1002  # so a job asks that the image has what is dirty of a device, and waits
SERVE = 1001  # so a job asks the supervisor to serve a mount, and will answer once more
GOODBYE = b"goodbye"  # so the supervisor says that it ends by itself
KILLED = (
    b"loopfs: the supervisor was killed, which ended the sandbox;"
    b" what had been synced is in the images\n"
)
NOT_OURS = 1000  # a job's answer, beyond all errnos: the call is the kernel's to carry out


class Helper:
    """The supervisor's end."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sending = threading.Lock()

    @classmethod
    def start(cls) -> Helper:
        """Fork the helper; the calling process must have a single thread."""
        ours, helpers = Channel.pair()
        if os.fork() == 0:
            try:
                ours.close()
                if not _serve(helpers):
                    os.write(2, KILLED)  # the supervisor's own, as it has no other use for us
                    _kill_children()
            except BaseException:  # nothing may return into the supervisor's code
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(0)
        helpers.close()
        return cls(ours)

    def begin(self, job: str, arguments: tuple[object, ...], fds: tuple[int, ...]) -> Channel:
        """Start a job; returns the channel on which it answers.

        Args:
            job: a name of :data:`loopfs.engines.jobs.JOBS`.
            arguments: strings, numbers and tuples of them.
            fds: descriptors to pass.
        """
        ours, jobs = Channel.pair()
        with self._sending:
            data = marshal.dumps((job, arguments))  # type: ignore[arg-type]
            self._channel.send(data, (jobs.fileno(), *fds))
        jobs.close()
        return ours

    def dismiss(self) -> None:
        """Tell it that our end is no accident, of which it would speak."""
        try:
            self._channel.send(GOODBYE)
        except (BrokenPipeError, ConnectionResetError):
            return  # it was killed

    def fstat(self, fd: int) -> FileFacts:
        """fstat(2) as root of the sandbox's user namespace, which may look at its FUSE mounts.

        Raises:
            OSError: what fstat says; EIO when the helper is gone.
        """
        from loopfs.filesystems.backing import FileFacts

        return FileFacts(*self._ask("fstat", fd))

    def read_table(self, fd: int, offset: int, size: int, block_size: int) -> list[Found]:
        """:func:`loopfs.filesystems.blkid.read_table` as root of the sandbox's user namespace."""
        from loopfs.driver.partition import Found

        table = self._ask("read_table", fd, offset, size, block_size)
        return [Found(*entry) for entry in table]

    def link(
        self,
        fds: tuple[int, ...],
        linker: tuple[object, ...],
        place: str,
        action: str,
        name: str,
    ) -> None:
        """:func:`loopfs.filesystems.links.change` as who has mounted the instance.

        Args:
            fds: his user namespace, and the directory of the links.
            linker: his :class:`loopfs.engines.credentials.Credentials` there.
        Raises:
            OSError: EIO when the helper is gone.
        """
        channel = self.begin("link", (linker, place, action, name), fds)
        code, _ = result(channel.receive())
        channel.close()
        if code:
            raise OSError(code, os.strerror(code))

    def write_pages(self) -> None:
        """sync(2), in a process that may wait for whatever stops a filesystem."""
        channel = self.begin("write_pages", (), ())
        channel.receive()
        channel.close()

    def _ask(self, job: str, fd: int, *arguments: int) -> tuple[Any, ...]:
        """The answer of a job that looks at one file in our user namespace, the sandbox's."""
        userns = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            channel = self.begin(job, arguments, (userns, fd))
        finally:
            os.close(userns)
        code, values = result(channel.receive())
        channel.close()
        if code:
            raise OSError(code, os.strerror(code))
        assert isinstance(values, tuple)
        return values


def result(message: Message) -> tuple[int, object]:
    """A job's answer: an errno, or 0 and a value."""
    if not message.data:
        return 5, None  # EIO: it died
    code, value = marshal.loads(message.data)
    return code, value


def answer(channel: Channel, code: int, value: object = None, fds: tuple[int, ...] = ()) -> None:
    """Send a job's answer."""
    channel.send(marshal.dumps((code, value)), fds)  # type: ignore[arg-type]


def _kill_children() -> None:
    """Kill jobs and engines: the devices of these are gone, and one that hangs would stay."""
    with open("/proc/thread-self/children", encoding="ascii") as file:
        for pid in file.read().split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has just ended


def _serve(channel: Channel) -> bool:
    """Fork for each job; returns, with the supervisor's end, whether it has said goodbye."""
    # Engines outlive the job that starts them and become our children: nobody waits
    # for those.
    syscalls.set_dumpable(False)
    syscalls.become_subreaper()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    while True:
        message = channel.receive()
        if message.data in (b"", GOODBYE):
            return bool(message.data)
        from loopfs.engines import jobs  # the first time only, and only if it comes to it

        name, arguments = marshal.loads(message.data)
        job = jobs.find(name)  # so that what it imports is there for the next one
        helper = os.getpid()
        if os.fork() == 0:
            channel.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() != helper:
                os._exit(1)
            jobs.perform(job, arguments, message.fds)
        close_all(message.fds)
