"""A job that becomes the engine: it starts no program, copies no mounts, and accesses the image
itself as its device."""

from __future__ import annotations

import errno
import marshal
import os
import sys

from loopfs import syscalls
from loopfs.channel import Channel, close_all_but
from loopfs.engines import confinement
from loopfs.engines.caller import guard
from loopfs.engines.engine import Engine, Launch, Serve, Served, Wanted
from loopfs.engines.helper import LEND, NOT_OURS, answer
from loopfs.engines.inside import Inside
from loopfs.engines.jobs import apply_flags
from loopfs.engines.lent import Lent
from loopfs.engines.superblock import fuse_context
from loopfs.errors import LoopfsError
from loopfs.lean import TYPE_CHECKING, NoReturn
from loopfs.sandbox import landlock
from loopfs.uapi import mount as uapi

if TYPE_CHECKING:
    from loopfs.engines.mount_job import Mount


def mount(
    request: Mount,
    engine: Engine,
    options: tuple[str, ...],
    source: str,
    target: str | None,
    instances: tuple[int, ...],
) -> bool:
    """Mount a device, and serve it until it is unmounted.

    Returns:
        False if the device cannot be lent, so that a program must serve it. Otherwise the job is
        done.
    """
    # The superblock of a /dev/fuse can be mounted only in the user namespace that has opened it.
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    inside = Inside(request.caller)
    try:
        lent = inside.call(lambda: _begin(request, engine, source, target, instances))
        if isinstance(lent, bool):
            return lent
        read_only = request.read_only(engine)
        if confinement.is_wanted():
            from loopfs import nls
            from loopfs.engines import confined

            nls.load(options)
            inside.end()
            confined.mount(
                request,
                engine.name,
                lambda: _prepare(request, engine, options, read_only, lent),
                (lent, connection),
                lambda pid: _mount(request, connection, read_only, pid),
            )
            return True
        with inside.watching():
            serve = _prepare(request, engine, options, read_only, lent)
        waited_for = inside.last(lambda: _mount(request, connection, read_only, os.getpid()))
    finally:
        inside.end()
    if not waited_for:  # so it has been unmounted again
        serve(connection)
        lent.done()
        return True
    return _become(request, engine.name, serve, lent, connection)


def _begin(
    request: Mount, engine: Engine, source: str, target: str | None, instances: tuple[int, ...]
) -> Lent | bool:
    """Resolve the device and the mount point, and let the supervisor lend the device. This is one
    call into the thread, since each switch between the threads takes long.

    Returns:
        the lent device; otherwise the result of :func:`mount`.
    """
    if not request.find(source, instances):
        answer(request.channel, NOT_OURS)
        return True
    request.resolve(target)
    request.check_place()
    if request.again(engine):
        return True
    lent = _borrow(request, request.read_only(engine))
    if lent is None:
        confinement.refuse_programs()
        return False
    return lent


def _borrow(request: Mount, read_only: bool) -> Lent | None:
    """Borrow the device; return None if it cannot be lent. Raises OSError: the supervisor's
    error."""
    node = request.node
    answer(request.channel, LEND, tuple(Wanted(node.instance, node.ino, read_only, 0, 0)))
    message = request.channel.receive()
    code, where = marshal.loads(message.data or marshal.dumps((errno.EINTR, ())))
    if code:
        raise OSError(code, os.strerror(code))
    if not where:
        return None
    file, end = message.fds
    return Lent(file, Channel.of_descriptor(end), *where)


def _prepare(
    request: Mount, engine: Engine, options: tuple[str, ...], read_only: bool, lent: Lent
) -> Serve:
    """Read the filesystem; return a function that serves it. Raises OSError if that fails."""
    assert engine.prepare is not None
    mounter = request.caller.mounter(request.flags)
    launch = Launch(
        *(request.shown, "", request.fstype, options, read_only, mounter, request.sb_flags)
    )
    try:
        return engine.prepare(lent, launch)
    except LoopfsError:
        raise
    except OSError as problem:
        code, sentence = problem.errno or errno.EINVAL, problem.strerror
        if code == errno.EINVAL or not sentence:  # mount(8) may try all types, so no message
            raise
        raise LoopfsError(code, sentence) from None


def _mount(request: Mount, connection: int, read_only: bool, pid: int) -> bool:
    """Create the superblock and mount it. Return False if the caller does not wait any more; then
    it is unmounted again.

    Args:
        pid: the process that will serve it.
    """
    sb_flags = request.sb_flags | (uapi.MS_RDONLY if read_only else 0)
    context = fuse_context(connection, request.shown, request.fstype, sb_flags)
    tree = syscalls.fsmount(context, 0)
    os.close(context)
    key = request.node.instance, request.node.ino
    had = tuple(Served(key, request.fstype, read_only, pid, syscalls.statx_dev(tree)))
    fds = os.pidfd_open(pid), os.dup(request.caller.userns)
    if request.place is None:
        context = fuse_context(connection, request.shown, request.fstype)
        answer(request.channel, 0, had, (*fds, context))
        os.close(context)
        os.close(tree)
        return True
    apply_flags(tree, request.flags)
    answer(request.channel, 0, had, fds)
    if request.move_to_caller(tree):
        return True
    os.close(tree)
    return False


def _become(request: Mount, name: str, serve: Serve, lent: Lent, connection: int) -> NoReturn:
    """Serve, with only the descriptors that this needs, out of reach of other processes. If an
    image compromises this process, it has no access to others either."""
    status = 1
    try:
        os.setsid()
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        close_all_but(connection, request.channel.fileno(), *lent.descriptors)
        syscalls.set_name(name)
        guard()
        landlock.restrict()
        lent.follow_in_thread(connection)
        if request.place is not None:
            answer(request.channel, 0)  # now that nothing open keeps the caller's mounts busy
        request.channel.close()
        serve(connection)
        lent.done()
        lent.close()
        status = 0
    except BaseException:  # no exception may return into the job's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)
