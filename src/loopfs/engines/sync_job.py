"""The job that makes an engine write its data to the image, and reports every error.

Data of a program is in the pages of the mount (written through a mapping), in the engine's memory
and in the pages of the engine's device; these are written in this order. A separate process does
this, because closing a file of a FUSE mount waits for the mount's server, which in turn waits for
the supervisor.
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

DRAINED_WITHIN = 30.0  # seconds, for an engine that is never idle
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
    """Carry out fsync(2), fdatasync(2) or syncfs(2) of a caller's descriptor ``number``, or sync(2)
    of a mount.

    Answers with the result of the call, ENOTCONN if the engine has ended; NOT_OURS if the
    descriptor now refers to another file or cannot be duplicated. DRAIN can be sent before.

    Args:
        fds: a pidfd of the engine, its user namespace, a duplicate of its /dev/fuse; a pidfd of
            the caller, except for sync(2).
        pid: the engine's process id.
        fstype, device: type and device number (st_dev) of its filesystem.
        by_itself: whether the engine itself syncs its device, and cannot be inspected.
    """
    _, namespace, connection, *caller = fds
    # Use the lowest free number, below the caller's file, because a killed process closes it first.
    # The engine may have been killed too: as long as its connection is open anywhere, closing a
    # file of its mount waits for an answer. So no such file may be closed here before it.
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
    if root is None:  # the kernel's syncfs(2) of the remaining mount would return 0
        answer(channel, errno.ENOTCONN)
        return
    drain = partial(_have_drained, channel) if by_itself else partial(_drain, pid)
    code = _write_all(None if by_itself else pid, call, root, own, drain)
    # Before the answer, after which the caller expects its last umount to end the engine.
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
    """Close a descriptor; an error of the caller's file is reported through the caller's own."""
    try:
        os.close(fd)
    except OSError:
        return


def _root(connection: int, fstype: str) -> int | None:
    """Return the root of a private mount of an engine's filesystem, which is writable even if the
    caller's mount is not; None if the engine has ended. The connection is closed."""
    try:
        if disconnected(connection):
            return None
        context = fuse_context(connection, "loopfs", fstype)
    except OSError:
        if disconnected(connection):  # in the meantime
            return None
        raise
    finally:
        os.close(connection)  # before any request to the engine
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
    """Return 0, or the errno of the first step that failed. All steps are made even after an error,
    so that the kernel reports each of its errors to the description that is to receive it.

    Args:
        pid: the engine, if its device is synced from outside.
        drain: returns when the engine has answered all requests queued before.
    """
    codes = []

    def attempt(step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except (FileNotFoundError, ProcessLookupError):  # the engine has ended
            codes.append(errno.ENOTCONN)
        except OSError as problem:
            codes.append(problem.errno or errno.EIO)

    if call in ("syncfs", "sync"):
        attempt(syscalls.syncfs, root)  # it neither waits nor reports errors (FUSE of Linux 6.18)
        attempt(drain)
        attempt(os.fsync, root)  # makes engines write their memory, except fuse2fs
    else:
        attempt(os.fsync if call == "fsync" else os.fdatasync, own)
    if pid is not None and _program(pid) == fuse2fs.PROGRAM:
        attempt(fuse2fs_flush.flush, root, own)  # it also syncs its device
    elif pid is not None:
        attempt(_sync_device, pid)
    if call == "syncfs":
        attempt(syscalls.syncfs, own)
    return codes[0] if codes else 0


def _program(pid: int) -> str:
    """Return the name of the engine's program."""
    with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
        return file.read().rstrip("\n")


# --- requests queued for the engine --------------------------------------------------


def _have_drained(channel: Channel) -> None:
    """As :func:`_drain`, for an engine that only the supervisor can ask."""
    answer(channel, DRAIN)
    channel.receive()


def _drain(pid: int) -> None:
    """Return when an engine has answered all requests that were queued before.

    Under constant load the queue is never empty. Requests are processed in the order of their
    arrival, so after some time those have been answered.
    """
    end = monotonic() + DRAINED_WITHIN
    idle = 0
    while idle < 2 and monotonic() < end:
        idle = idle + 1 if is_idle(pid) else 0
        sleep(_PAUSE)


def is_idle(pid: int) -> bool:
    """Return whether every thread of a process waits for a FUSE request or for another thread.

    A thread that waits for a request is woken when there is one. So the queue is empty then, and
    all requests have been answered.
    """
    return all(_waits(pid, int(tid)) for tid in os.listdir(f"/proc/{pid}/task"))


def _waits(pid: int, tid: int) -> bool:
    try:
        with open(f"/proc/{pid}/task/{tid}/syscall", "rb", buffering=0) as file:
            fields = file.read(256).split()
    except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
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

    A separate open file description is used, so that the engine's own still reports the errors.
    """
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        try:
            info = syscalls.descriptor_info(pid, int(name))
            regular = stat.S_ISREG(os.stat(path).st_mode)
        except FileNotFoundError:
            continue  # closed in the meantime
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
