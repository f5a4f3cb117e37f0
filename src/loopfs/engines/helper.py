"""The helper: a process that enters the caller's namespaces for the supervisor.

setns(2) into a user namespace needs a single thread, and a fork of a threaded process is
no place to run code. So the helper is forked before there is a thread, does nothing but
wait, and forks once more for each job. A job gets a channel of its own to the supervisor.
"""

from __future__ import annotations

import errno
import gc
import marshal
import os
import select
import sys
import threading

from loopfs import syscalls
from loopfs.channel import Channel, Message, close_all
from loopfs.errors import errno_of, fork
from loopfs.lean import TYPE_CHECKING, Any, Callable, signal

if TYPE_CHECKING:
    from loopfs.driver.partition import Found
    from loopfs.filesystems.backing import FileFacts

WRITE_BACK = 1002  # so a job asks that the image has what is dirty of a device, and waits
SERVE = 1001  # so a job asks the supervisor to serve a mount, and will answer once more
DRAIN = 1005  # so a job asks that an engine have answered what is queued for it; and waits
LEND = 1004  # so a job asks for the file of a device, to become its engine; and waits
TURN = 1003  # so a job asks for its turn to mount a device, and what is served of it; and waits
UNSUPPORTED = 1006  # a job's answer, with errno and sentence: another engine may mount it
GOODBYE = b"goodbye"  # so the supervisor says that it ends by itself
ABORT = b"abort"  # and so that it ends at once, whatever is under way
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
    def start(cls, prepare: Callable[[], None] | None = None, killed: bytes = KILLED) -> Helper:
        """Fork the helper; the calling process must have a single thread. Raises SetupError.

        Args:
            prepare: called in the helper first.
            killed: what it says when the supervisor was killed.
        """
        ours, helpers = Channel.pair()
        if fork() == 0:
            try:
                ours.close()
                if prepare is not None:
                    prepare()
                last = _serve(helpers)
                if not last:
                    os.write(2, killed)  # the supervisor's own, as it has no other use for us
                if last != GOODBYE:
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
        Raises:
            OSError: EIO when the helper is gone; EMFILE, ENOMEM and what else sending says. What
                it says when it cannot fork is the job's answer.
        """
        data = marshal.dumps((job, arguments))  # type: ignore[arg-type]
        ours, jobs = Channel.pair()
        with jobs:
            try:
                with self._sending:
                    self._channel.send(data, (jobs.fileno(), *fds))
            except OSError as problem:
                ours.close()
                if problem.errno in (errno.EPIPE, errno.ECONNRESET):
                    raise OSError(errno.EIO, "the helper is gone") from None
                raise
        return ours

    def dismiss(self, word: bytes = GOODBYE) -> None:
        """Tell it that our end is no accident, of which it would speak."""
        try:
            self._channel.send(word)
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
        with self.begin("link", (linker, place, action, name), fds) as channel:
            code, _ = result(channel.receive())
        if code:
            raise OSError(code, os.strerror(code))

    def write_pages(self) -> None:
        """sync(2), in a process that may wait for whatever stops a filesystem."""
        with self.begin("write_pages", (), ()) as channel:
            channel.receive()

    def _ask(self, job: str, fd: int, *arguments: int) -> tuple[Any, ...]:
        """The answer of a job that looks at one file in our user namespace, the sandbox's."""
        userns = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            channel = self.begin(job, arguments, (userns, fd))
        finally:
            os.close(userns)
        with channel:
            code, values = result(channel.receive())
        if code:
            raise OSError(code, os.strerror(code))
        assert isinstance(values, tuple)
        return values


def result(message: Message) -> tuple[int, object]:
    """A job's answer: an errno, or 0 and a value."""
    if not message.data:
        return errno.EIO, None  # it died
    code, value = marshal.loads(message.data)
    return code, value


def ended(channel: Channel) -> Message:
    """A job's only answer, once it has ended: no directory that it was in is busy by it."""
    message = channel.receive()
    channel.receive()
    return message


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


def _serve(channel: Channel) -> bytes:
    """Fork for each job; returns the supervisor's last message when it has ended."""
    # Engines outlive the job that starts them and become our children: nobody waits
    # for those.
    syscalls.set_dumpable(False)
    syscalls.become_subreaper()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    idle: int | None = _IDLE
    mounts = False
    while True:
        if idle is not None and _import_while_idle(channel, idle):
            idle = None
        if mounts and idle is None and not _is_asked(channel, _SOON):
            word = _leave_to_spare(channel)
            if word in (GOODBYE, ABORT):
                return word
            mounts = word == _TAKEN
            continue
        try:
            message = channel.receive()
        except OSError as problem:
            if problem.errno not in _OF_ONE_MESSAGE:
                raise
            continue  # its job's channel is closed with it, which is EIO to who waits for that
        if message.data in (b"", GOODBYE, ABORT):
            return message.data
        try:
            mounts = _begin(channel, message) == "mount" or mounts
        except Exception as problem:  # it fails one caller's request only
            _refuse(message, problem)
        close_all(message.fds)
        idle = idle and _SOON


def _is_asked(channel: Channel, within: int) -> bool:
    """Something is to be done, or is within so many milliseconds."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    return bool(poller.poll(within))


def _import_while_idle(channel: Channel, idle: int) -> bool:
    """Import what the jobs that mount and unmount need, of which each is a fork, unless there is
    something to do within ``idle`` milliseconds. Whether it is done."""
    if _is_asked(channel, idle):
        return False
    for name in _OF_JOBS:
        __import__(name)
        if _is_asked(channel, 0):
            return False
    from loopfs.fat.options import Options

    Options()  # so that its character sets are there
    gc.collect()
    gc.freeze()  # so that no job writes to the pages of what it has in common with all others
    return True


_IDLE = 50  # milliseconds, in which a command may have ended that needs nothing of it
_SOON = 5  # milliseconds, after a job
_OF_JOBS = (
    "resource",
    "loopfs.engines.jobs",
    "loopfs.engines.mount_job",
    "loopfs.engines.umount_copy",
    "loopfs.engines.forked",
    "loopfs.fuse.server",
    "loopfs.ext4.filesystem",
    "loopfs.ext4.mount",
    "loopfs.ext4.options",
    "loopfs.fat.filesystem",
    "loopfs.fat.options",
    "loopfs.fat.volume",
    "encodings.cp437",
    "encodings.utf_16_le",
    "loopfs.iso9660.filesystem",
    "loopfs.iso9660.options",
    "loopfs.iso9660.volume",
    "loopfs.udf.filesystem",
    "loopfs.udf.options",
    "loopfs.udf.volume",
)
_OF_ONE_MESSAGE = (errno.EMFILE, errno.EMSGSIZE, errno.ENOMEM, errno.ENOBUFS, errno.EINTR)


def _begin(channel: Channel, message: Message) -> str:
    """Fork for a job; returns its name. Raises OSError EAGAIN, ENOMEM; and what is wrong with the
    message."""
    name, perform = _job_of(message)

    def work() -> None:
        channel.close()
        perform()

    _start(work)
    return name


def _job_of(message: Message) -> tuple[str, Callable[[], None]]:
    """A job's name and what performs it. Raises what is wrong with the message."""
    from loopfs.engines import jobs  # the first time only, and only if it comes to it

    name, arguments = marshal.loads(message.data)
    job = jobs.find(name)  # so that what it imports is there for the next one
    return name, lambda: jobs.perform(job, arguments, message.fds)


def _start(work: Callable[[], None]) -> None:
    """Fork for ``work``, which ends with us. Raises OSError EAGAIN, ENOMEM."""
    helper = os.getpid()
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == helper:
                work()
        except BaseException:  # nothing may return into the helper's code
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)


def _leave_to_spare(channel: Channel) -> bytes:
    """Have a spare job receive what is asked next, which begins without a fork then. It does
    not take any of our time meanwhile.

    Returns:
        _TAKEN when it has a job; GOODBYE or ABORT if that came; nothing if it was killed, or
        cannot be forked.
    """
    try:
        ours, its = os.pipe2(os.O_CLOEXEC)
    except OSError:
        return b""
    with open(ours, "rb", buffering=0) as end:
        try:
            _start(lambda: _be_spare(channel, its))
        except OSError:
            return b""
        finally:
            os.close(its)
        return end.read() or b""


def _be_spare(channel: Channel, helper: int) -> None:
    """Receive one message for the helper, which reads ``helper`` meanwhile, and do what it asks."""
    from loopfs.engines import jobs

    jobs.rehearse()
    message = None
    while message is None:
        try:
            message = channel.receive()
        except OSError as problem:  # as the helper does
            if problem.errno not in _OF_ONE_MESSAGE:
                raise
    channel.close()
    ends = message.data in (b"", GOODBYE, ABORT)
    os.write(helper, message.data if ends else _TAKEN)
    os.close(helper)
    if ends:
        return
    try:
        _, perform = _job_of(message)
    except Exception as problem:
        _refuse(message, problem)
        return
    perform()


_TAKEN = b"taken"


def _refuse(message: Message, problem: Exception) -> None:
    """Answer for a job that could not begin."""
    if not isinstance(problem, OSError | MemoryError):
        sys.excepthook(*sys.exc_info())  # a bug of ours
    try:
        job = Channel.of_descriptor(os.dup(message.fds[0]))
        answer(job, errno_of(problem))
    except (OSError, IndexError):  # who would be told does not listen any more
        return
