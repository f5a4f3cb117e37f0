"""A mount with a confined engine (:mod:`loopfs.engines.confinement`), made by two processes.

The job becomes the engine: it confines itself, and then reads the filesystem. Before, it has forked
the mounter, which does not trust it; that mounts the engine's filesystem in the caller's namespaces
and answers the supervisor.
"""

from __future__ import annotations

import errno
import os
import sys
import threading

from loopfs import syscalls
from loopfs.channel import Channel, close_all_but
from loopfs.engines import confinement
from loopfs.engines.caller import guard, guard_with
from loopfs.engines.engine import Serve
from loopfs.engines.helper import answer
from loopfs.engines.inside import Inside
from loopfs.engines.lent import Lent
from loopfs.errors import LoopfsError, Unsupported, call_of, errno_of
from loopfs.filesystems.threads import start
from loopfs.lean import TYPE_CHECKING, Callable, NoReturn, signal
from loopfs.text import to_bytes, to_str

if TYPE_CHECKING:
    from loopfs.engines.mount_job import Mount

_PREPARED = b"prepared"
_MOUNTED = b"mounted"
_PLAIN, _SAID, _UNSUPPORTED = b"0", b"1", b"2"  # the kinds of failures, which precede the errno
_SENTENCE = 1000  # maximum length in bytes


def mount(
    request: Mount,
    name: str,
    prepare: Callable[[], Serve],
    on: tuple[Lent, int],
    mount_served: Callable[[int], bool],
) -> None:
    """Mount a device and serve it until it is unmounted. Returns in the mounter, after the mount.

    Args:
        name: the name of the engine.
        prepare: reads the filesystem.
        on: the device and the /dev/fuse to be served.
        mount_served: called inside, mounts the filesystem of the process with an id; returns
            False if the caller has ended.
    Raises:
        OSError: as ``prepare`` and mount(2).
    """
    lent, connection = on
    ours, mounters = Channel.pair()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no process waits for the mounter
    engine = os.getpid()
    if os.fork() != 0:
        mounters.close()
        _be_engine(name, prepare, lent, connection, ours)
    ours.close()
    guard_with(engine)
    inside = Inside(request.caller)
    try:
        with inside.watching():
            await_prepared(mounters)
        waited_for = inside.call(lambda: mount_served(engine))
    finally:
        inside.end()
    if waited_for:
        mounters.send(_MOUNTED)
        close_all_but(request.channel.fileno(), mounters.fileno())
        if request.place is not None:
            answer(request.channel, 0)  # after closing what kept the mounts busy


def await_prepared(channel: Channel) -> None:
    """Wait until the engine has read the filesystem. Raises OSError: the failure that it reports.
    The engine is not trusted, so its message is checked."""
    said = channel.receive().data
    if said == _PREPARED:
        return
    kind, _, rest = said.partition(b" ")
    code, _, sentence = rest.partition(b" ")
    number = int(code) if code.isdigit() and len(code) <= len("511") else 0
    failure = OSError(number, os.strerror(number))
    number = errno_of(failure)
    if kind == _UNSUPPORTED:
        raise Unsupported(number, to_str(sentence[:_SENTENCE]))
    if kind == _SAID:
        raise LoopfsError(number, to_str(sentence[:_SENTENCE]))
    raise OSError(number, os.strerror(number))


def _be_engine(
    name: str, prepare: Callable[[], Serve], lent: Lent, connection: int, channel: Channel
) -> NoReturn:
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        kept = connection, channel.fileno(), *lent.descriptors
        close_all_but(*kept, *confinement.descriptors())
        syscalls.set_name(name)
        guard()
        problem = _confined()
        mounted = threading.Event()
        start("mounter", _end_without, channel, mounted)
        serve = None
        if problem is None:
            serve = prepared(prepare, channel)
        else:
            tell(problem, channel)
        mounted.wait()  # forever, if nothing is to be mounted
        assert serve is not None
        lent.follow_in_thread(connection)
        serve(connection)
        lent.done()
        status = 0
    except BaseException:  # no exception may return into the job's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _confined() -> LoopfsError | None:
    """Confine this process; return the reason if that is not possible, else None."""
    try:
        confinement.confine()
    except OSError as problem:
        why = f"it cannot be confined ({call_of(problem)}: {problem.strerror})"
        return LoopfsError(problem.errno or errno.EPERM, why)
    return None


def _end_without(channel: Channel, mounted: threading.Event) -> None:
    """End this process if the mounter ends without having mounted."""
    if channel.receive().data != _MOUNTED:
        os._exit(1)
    channel.close()
    mounted.set()


def prepared(prepare: Callable[[], Serve], channel: Channel) -> Serve | None:
    """Read the filesystem and report the result; return None if it failed."""
    try:
        serve = prepare()
    except (OSError, MemoryError) as problem:
        tell(problem, channel)
        return None
    channel.send(_PREPARED)
    return serve


def tell(problem: OSError | MemoryError, channel: Channel) -> None:
    """Report a failure: nothing will be mounted."""
    kind, sentence = _PLAIN, b""
    if isinstance(problem, LoopfsError):
        kind = _UNSUPPORTED if isinstance(problem, Unsupported) else _SAID
        sentence = to_bytes(str(problem.strerror))
    channel.send(b" ".join((kind, b"%d" % errno_of(problem), sentence)))
