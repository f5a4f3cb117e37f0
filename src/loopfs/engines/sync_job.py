"""The job that has in the image what an engine serves, and tells of every error.

What a program has written is in the pages of the mount (by a mapping), in the engine's memory and
in the pages of the engine's device; they are written in this order. A process of its own does it,
for closing a file of a FUSE mount waits for the mount's server, and that one for the supervisor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from functools import partial
from time import monotonic, sleep

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import fuse2fs, fuse2fs_flush
from loopfs.engines.caller import enter_user
from loopfs.engines.helper import DRAIN, NOT_OURS, answer
from loopfs.engines.jobs import Job
from loopfs.engines.superblock import disconnected, fuse_context
from loopfs.uapi.sched import CLONE_NEWNS
from loopfs.uapi.syscalls import abis

DRAINED_WITHIN = 30.0  # seconds, of an engine that has no idle moment
_PAUSE = 0.001  # seconds
_NATIVE = abis()[0].numbers


def _sync(
    channel: Channel,
    fds: list[int],
    pid: int,
    fstype: str,
    device: int,
    call: str,
    number: int,
    by_itself: bool,
) -> None:
    """fsync(2), fdatasync(2), syncfs(2) of a caller's descriptor ``number``, or sync(2) of a mount.

    Answers with what the call returns, ENOTCONN when the engine has ended; NOT_OURS when the
    descriptor is another's meanwhile or cannot be duplicated. Before, DRAIN is an answer too.

    Args:
        fds: a pidfd of the engine, its user namespace, a duplicate of its /dev/fuse; a pidfd of
            the caller, but for sync(2).
        pid: the engine's.
        fstype, device: type and device number (st_dev) of what it serves.
        by_itself: it syncs its device when it is asked to sync, and cannot be looked into.
    """
    _, namespace, connection, *caller = fds
    # The lowest that is free, so below the caller's file: a process that is killed closes it first.
    # The engine may have been killed too, and as long as its connection is open anywhere, closing a
    # file of its mount waits for an answer. So no such file is closed here before it.
    connection = _moved_down(connection)
    try:
        own = syscalls.pidfd_getfd(caller[0], number) if caller else None
    except PermissionError:
        answer(channel, NOT_OURS)
        return
    if own is not None and syscalls.statx_dev(own) != device:
        answer(channel, NOT_OURS)
        return
    enter_user(namespace)
    syscalls.unshare(CLONE_NEWNS)
    root = _root(connection, fstype)
    if root is None:  # the kernel's syncfs(2) of what is left would be 0
        answer(channel, errno.ENOTCONN)
        return
    drain = partial(_have_drained, channel) if by_itself else partial(_drain, pid)
    code = _write_all(None if by_itself else pid, call, root, own, drain)
    # Before the answer: until then nobody expects the last umount to end the engine.
    os.close(root)
    if own is not None:
        _close(own)
    answer(channel, code)


def _moved_down(fd: int) -> int:
    other = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    low, high = sorted((fd, other))
    os.close(high)
    return low


def _close(fd: int) -> None:
    """An error of the caller's own file is reported to the caller, and stays with the file."""
    try:
        os.close(fd)
    except OSError:
        return


def _root(connection: int, fstype: str) -> int | None:
    """The root of a mount of ours of what an engine serves, for reading and writing whatever the
    caller's mount is for; None when it has ended. The connection is closed."""
    try:
        if disconnected(connection):
            return None
        context = fuse_context(connection, "loopfs", fstype)
    except OSError:
        if disconnected(connection):  # meanwhile
            return None
        raise
    finally:
        os.close(connection)  # and only then ask the engine anything
    tree = syscalls.fsmount(context, 0)
    os.close(context)
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    os.close(tree)
    return root


def _write_all(
    pid: int | None,
    call: str,
    root: int,
    own: int | None,
    drain: Callable[[], None],
) -> int:
    """0, or the errno of the first step that failed; none keeps those that follow from being made,
    so that the kernel has told each of its errors to the description that is to get it.

    Args:
        pid: of an engine whose device is synced from outside.
        drain: returns once the engine has answered what was queued before.
    """
    codes = []

    def attempt(step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except (FileNotFoundError, ProcessLookupError):  # the engine ends
            codes.append(errno.ENOTCONN)
        except OSError as problem:
            codes.append(problem.errno or errno.EIO)

    if call in ("syncfs", "sync"):
        attempt(syscalls.syncfs, root)  # which neither waits nor tells (FUSE of Linux 6.18)
        attempt(drain)
        attempt(os.fsync, root)  # for which engines write their memory; not fuse2fs
    else:
        attempt(os.fsync if call == "fsync" else os.fdatasync, own)
    if pid is not None and _program(pid) == fuse2fs.PROGRAM:
        attempt(fuse2fs_flush.flush, root, own)  # and it syncs its device
    elif pid is not None:
        attempt(_sync_device, pid)
    if call == "syncfs":
        attempt(syscalls.syncfs, own)
    return codes[0] if codes else 0


def _program(pid: int) -> str:
    """What an engine runs."""
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().rstrip("\n")


# --- what the kernel has queued for the engine ---------------------------------------


def _have_drained(channel: Channel) -> None:
    """As :func:`_drain`, of an engine that only the supervisor can ask."""
    answer(channel, DRAIN)
    channel.receive()


def _drain(pid: int) -> None:
    """Return once an engine has answered all requests that were queued before.

    Under constant load it never has answered all there are. Requests wait in the order of their
    arrival, so after a while it has answered those.
    """
    end = monotonic() + DRAINED_WITHIN
    idle = 0
    while idle < 2 and monotonic() < end:
        idle = idle + 1 if is_idle(pid) else 0
        sleep(_PAUSE)


def is_idle(pid: int) -> bool:
    """Every thread of a process waits for a FUSE request, or for another thread.

    Who waits for a request while there is one is awake, so the queue is empty then, and all are
    answered.
    """
    return all(_waits(pid, int(tid)) for tid in os.listdir(f"/proc/{pid}/task"))


def _waits(pid: int, tid: int) -> bool:
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", "rb", buffering=0) as file:
            fields = file.read(256).split()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return True
    if len(fields) < 7:
        return fields[:1] != [b"running"]
    number = int(fields[0])
    if number in (_NATIVE["read"], _NATIVE["readv"]):
        try:
            return os.readlink(f"/proc/{pid}/fd/{int(fields[1], 16)}") == "/dev/fuse"
        except FileNotFoundError:
            return False
    return number == _NATIVE["futex"]


# --- the engine's device -------------------------------------------------------------


def _sync_device(pid: int) -> None:
    """Sync the file that an engine has open for writing: its device.

    By a description of our own, so that the engine's gets its errors too.
    """
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            info = syscalls.descriptor_info(pid, int(name))
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            continue  # closed meanwhile
        if regular and info.flags & os.O_ACCMODE != os.O_RDONLY:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)


def _write_pages(channel: Channel, fds: list[int]) -> None:
    os.sync()
    answer(channel, 0)


JOBS: dict[str, Job] = {"sync": _sync, "write_pages": _write_pages}
