"""The helper: a process that enters the caller's namespaces for the supervisor.

setns(2) into a user namespace requires a single thread, and running code after a fork of a
multithreaded process is unsafe. So the helper is forked before a thread is started. It only waits
for requests, and forks a process for each job. Each job has its own channel to the supervisor.
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

WRITE_BACK = 1002  # a job's request: write the dirty pages of a device to the image
SERVE = 1001  # a job's request: serve a mount; the job will answer once more
DRAIN = 1005  # a job's request: wait until an engine has answered its queued requests
LEND = 1004  # a job's request: lend the backing file of a device, since the job becomes its engine
TURN = 1003  # a job's request: wait for the turn to mount a device, and return its engine
UNSUPPORTED = 1006  # a job's answer, with errno and message: another engine may be able to mount it
GOODBYE = b"goodbye"  # the supervisor's message that it ends normally
ABORT = b"abort"  # the supervisor's message that it ends at once, whatever is in progress
KILLED = (
    b"loopfs: the supervisor was killed, which ended the sandbox;"
    b" what had been synced is in the images\n"
)
NOT_OURS = 1000  # a job's answer, larger than any errno: the call is left to the kernel


class Helper:
    """The supervisor's end of the channel to the helper."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sending = threading.Lock()

    @classmethod
    def start(cls, prepare: Callable[[], None] | None = None, killed: bytes = KILLED) -> Helper:
        """Fork the helper; the calling process must have a single thread. Raises SetupError.

        Args:
            prepare: called first in the helper.
            killed: the message that it prints if the supervisor is killed.
        """
        ours, helpers = Channel.pair()
        if fork() == 0:
            try:
                ours.close()
                if prepare is not None:
                    prepare()
                last = _serve(helpers)
                if not last:
                    os.write(2, killed)  # on the supervisor's standard error, which it shares
                if last != GOODBYE:
                    _kill_children()
            except BaseException:  # no exception may return into the supervisor's code
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(0)
        helpers.close()
        return cls(ours)

    def begin(self, job: str, arguments: tuple[object, ...], fds: tuple[int, ...]) -> Channel:
        """Start a job; return the channel on which it answers.

        Args:
            job: a name of :data:`loopfs.engines.jobs.JOBS`.
            arguments: strings, numbers and tuples of them.
            fds: descriptors to pass.
        Raises:
            OSError: EIO if the helper has ended; EMFILE, ENOMEM and other errors of sending. If the
                helper cannot fork, the job's answer is the error.
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
        """Tell the helper that the supervisor ends normally, so that it prints no message."""
        try:
            self._channel.send(word)
        except (BrokenPipeError, ConnectionResetError):
            return  # the helper was killed

    def fstat(self, fd: int) -> FileFacts:
        """Return the status of a file as seen by root of the sandbox's user namespace, which has
        access to the FUSE mounts in it.

        Raises:
            OSError: as fstat(2); EIO if the helper has ended.
        """
        from loopfs.filesystems.backing import FileFacts

        return FileFacts(*self._ask("fstat", fd))

    def read_table(self, fd: int, offset: int, size: int, block_size: int) -> list[Found]:
        """Call :func:`loopfs.filesystems.blkid.read_table` as root of the sandbox's user
        namespace."""
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
        """Call :func:`loopfs.filesystems.links.change` as the process that has mounted the
        instance.

        Args:
            fds: its user namespace, and the directory of the links.
            linker: its :class:`loopfs.engines.credentials.Credentials` there.
        Raises:
            OSError: EIO if the helper has ended.
        """
        with self.begin("link", (linker, place, action, name), fds) as channel:
            code, _ = result(channel.receive())
        if code:
            raise OSError(code, os.strerror(code))

    def write_pages(self) -> None:
        """Call sync(2) in a job, since it can block as long as any filesystem does."""
        with self.begin("write_pages", (), ()) as channel:
            channel.receive()

    def _ask(self, job: str, fd: int, *arguments: int) -> tuple[Any, ...]:
        """Return the answer of a job that examines one file in our user namespace, the
        sandbox's."""
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
    """Return the contents of a job's answer: an errno, or 0 and a value."""
    if not message.data:
        return errno.EIO, None  # the job has died
    code, value = marshal.loads(message.data)
    return code, value


def ended(channel: Channel) -> Message:
    """Wait for a job's only answer and for its end, after which it keeps no directory busy."""
    message = channel.receive()
    channel.receive()
    return message


def answer(channel: Channel, code: int, value: object = None, fds: tuple[int, ...] = ()) -> None:
    """Send a job's answer."""
    channel.send(marshal.dumps((code, value)), fds)  # type: ignore[arg-type]


def _kill_children() -> None:
    """Kill jobs and engines: their devices do not exist any more, and one might never end."""
    with open("/proc/thread-self/children", encoding="ascii") as file:
        for pid in file.read().split():
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                continue  # it has just ended


def _serve(channel: Channel) -> bytes:
    """Fork for each job; return the supervisor's last message when it has ended."""
    # An engine outlives the job that starts it and then becomes our child, which is not waited
    # for.
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
            continue  # this closes the job's channel, so the caller gets EIO
        if message.data in (b"", GOODBYE, ABORT):
            return message.data
        try:
            mounts = _begin(channel, message) == "mount" or mounts
        except Exception as problem:  # only one caller's request fails
            _refuse(message, problem)
        close_all(message.fds)
        idle = idle and _SOON


def _is_asked(channel: Channel, within: int) -> bool:
    """Return whether a message arrives within a number of milliseconds."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    return bool(poller.poll(within))


def _import_while_idle(channel: Channel, idle: int) -> bool:
    """Import the modules of jobs that mount and unmount, since each job is forked from here. Stop
    if a message arrives, the first within ``idle`` milliseconds. Return whether all are
    imported."""
    if _is_asked(channel, idle):
        return False
    for name in _OF_JOBS:
        __import__(name)
        if _is_asked(channel, 0):
            return False
    from loopfs.fat.options import Options

    Options()  # which loads its character sets
    gc.collect()
    gc.freeze()  # prevents jobs from writing to the pages that they share with the helper
    return True


_IDLE = 50  # milliseconds: a short command may have ended by then, and needs no imports
_SOON = 5  # milliseconds after a job
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
    """Fork for a job; return its name. Raises OSError EAGAIN, ENOMEM; any exception for a bad
    message."""
    name, perform = _job_of(message)

    def work() -> None:
        channel.close()
        perform()

    _start(work)
    return name


def _job_of(message: Message) -> tuple[str, Callable[[], None]]:
    """Return a job's name and a function that performs it. Raises any exception for a bad
    message."""
    from loopfs.engines import jobs  # imported late, only if there is a job

    name, arguments = marshal.loads(message.data)
    job = jobs.find(name)  # in the helper, so that its imports are kept for the next job
    return name, lambda: jobs.perform(job, arguments, message.fds)


def _start(work: Callable[[], None]) -> None:
    """Fork and call ``work`` in the child, which ends with us. Raises OSError EAGAIN, ENOMEM."""
    helper = os.getpid()
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            syscalls.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == helper:
                work()
        except BaseException:  # no exception may return into the helper's code
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)


def _leave_to_spare(channel: Channel) -> bytes:
    """Let a spare job receive the next message, which it can begin without a fork. The helper uses
    no CPU time until then.

    Returns:
        _TAKEN if it has a job; GOODBYE or ABORT if that was received; nothing if it was killed or
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
    """Receive one message for the helper, which waits on ``helper``, and carry it out."""
    from loopfs.engines import jobs

    jobs.rehearse()
    message = None
    while message is None:
        try:
            message = channel.receive()
        except OSError as problem:  # as in the helper
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
        sys.excepthook(*sys.exc_info())  # a bug in loopfs
    try:
        job = Channel.of_descriptor(os.dup(message.fds[0]))
        answer(job, errno_of(problem))
    except (OSError, IndexError):  # the caller does not wait any more
        return
