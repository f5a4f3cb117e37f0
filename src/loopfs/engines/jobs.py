"""What the helper does in the caller's namespaces, each job in a separate process.

A job exits when it is done, so it does not close its descriptors.
"""

from __future__ import annotations

import errno
import os
import sys
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from contextlib import suppress

from loopfs import syscalls
from loopfs.channel import Channel, close_all, close_all_but
from loopfs.engines import confinement, credentials, paths
from loopfs.engines.caller import Caller, enter_user, guard_with
from loopfs.engines.helper import NOT_OURS, UNSUPPORTED, answer
from loopfs.errors import LoopfsError, Unsupported, errno_of
from loopfs.filesystems.backing import facts
from loopfs.lean import TYPE_CHECKING, Any, NoReturn
from loopfs.limits import raise_limits
from loopfs.uapi import mount as uapi

if TYPE_CHECKING:
    from loopfs.engines.umount_copy import Umount

Job = Callable[..., None]


def perform(job: Job, arguments: tuple[object, ...], fds: list[int]) -> NoReturn:
    """Carry out a job and exit. The first descriptor is the channel for the answer."""
    channel = Channel.of_descriptor(fds[0])
    guard_with(os.getppid())
    raise_limits()
    try:
        job(channel, fds[1:], *arguments)
    except Unsupported as problem:
        close_all_but(fds[0])
        answer(channel, UNSUPPORTED, (problem.code, problem.strerror))
    except OSError as problem:
        close_all_but(fds[0])  # what it failed to mount must not be busy when the caller continues
        sentence = problem.strerror if isinstance(problem, LoopfsError) else None
        answer(channel, errno_of(problem), sentence)
    except BaseException as problem:  # no exception may return into the helper's code
        sys.excepthook(*sys.exc_info())
        answer(channel, errno_of(problem))
    finally:
        os._exit(0)


def rehearse() -> None:
    """Do what every job does, without an effect, so that the memory pages that it changes are
    already private when a job begins. Errors are ignored: a job reports them."""
    with suppress(OSError, RuntimeError):  # the latter: no thread can be started
        _rehearse()


def _rehearse() -> None:
    own = os.open("/proc/thread-self", os.O_PATH | os.O_CLOEXEC)
    ours, other = Channel.pair()
    with ours, other:
        answer(ours, 0, (), (own,))
        close_all(other.receive().fds)
    raise_limits()
    credentials.of(own, lambda: None).take_on_again()
    guard_with(os.getppid())
    place = paths.resolve("/proc/self", paths.CallerProc(own, own))
    syscalls.mount_id(place)
    syscalls.statx_dev(place)
    close_all([own, place])
    _have_had_a_thread()


def _have_had_a_thread() -> None:
    running = allocate_lock()
    running.acquire()
    start_new_thread(running.release, ())
    with running:
        while len(os.listdir("/proc/self/task")) > 1:  # for setns(2)
            os.sched_yield()


def find(name: str) -> Job:
    """Return the job with a name."""
    if name in JOBS:
        return JOBS[name]
    from loopfs.engines import mount_job

    if name in mount_job.JOBS:
        return mount_job.JOBS[name]
    from loopfs.engines import fuseblk_job

    if name in fuseblk_job.JOBS:
        return fuseblk_job.JOBS[name]
    from loopfs.engines import instance_jobs

    if name in instance_jobs.JOBS:
        return instance_jobs.JOBS[name]
    from loopfs.engines import copy_jobs

    if name in copy_jobs.JOBS:
        return copy_jobs.JOBS[name]
    from loopfs.engines import sync_job

    if name in sync_job.JOBS:
        return sync_job.JOBS[name]
    from loopfs.engines import overlay_job

    if name in overlay_job.JOBS:
        return overlay_job.JOBS[name]
    from loopfs.engines import container_jobs

    if name in container_jobs.JOBS:
        return container_jobs.JOBS[name]
    from loopfs.engines import kernel

    return kernel.JOBS[name]


def _fstat(channel: Channel, fds: list[int]) -> None:
    userns, fd = fds
    enter_user(userns)
    answer(channel, 0, tuple(facts(os.fstat(fd))))


def _read_table(channel: Channel, fds: list[int], offset: int, size: int, block_size: int) -> None:
    from loopfs.filesystems.blkid import load, read_table

    load()
    userns, fd = fds
    enter_user(userns)

    def read() -> list[Any]:
        return [tuple(found) for found in read_table(fd, offset, size, block_size)]

    table = confinement.confined(read) if confinement.is_wanted() else read()
    assert isinstance(table, list)
    answer(channel, 0, tuple((int(n), int(b), int(s), str(name)) for n, b, s, name in table))


_ATTRIBUTES = {
    uapi.MS_RDONLY: uapi.MOUNT_ATTR_RDONLY,
    uapi.MS_NOSUID: uapi.MOUNT_ATTR_NOSUID,
    uapi.MS_NODEV: uapi.MOUNT_ATTR_NODEV,
    uapi.MS_NOEXEC: uapi.MOUNT_ATTR_NOEXEC,
    uapi.MS_NODIRATIME: uapi.MOUNT_ATTR_NODIRATIME,
    uapi.MS_NOSYMFOLLOW: uapi.MOUNT_ATTR_NOSYMFOLLOW,
}


def apply_flags(tree: int, flags: int) -> None:
    """Set the per-mount flags of mount(2) on a mount."""
    attributes = sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)
    clear = 0
    if flags & uapi.MS_NOATIME:
        attributes |= uapi.MOUNT_ATTR_NOATIME
        clear = uapi.MOUNT_ATTR__ATIME
    elif flags & uapi.MS_STRICTATIME:
        attributes |= uapi.MOUNT_ATTR_STRICTATIME
        clear = uapi.MOUNT_ATTR__ATIME
    if attributes:
        syscalls.mount_setattr(tree, attributes, clear)


def _umount(
    channel: Channel,
    fds: list[int],
    target: str,
    flags: int,
    devices: tuple[int, ...],
    others: tuple[tuple[int, ...], tuple[int, ...], bool],
    whatever: bool,
) -> None:
    """Carry out umount2(2) of one of our mounts. Answers with its device number.

    Args:
        devices: device numbers of our mounts.
        whatever: also unmount any other mount, in which one of ours may be.
        others: the arguments of :class:`loopfs.engines.umount_copy.Umount`.
    """
    from loopfs.engines.umount_copy import Umount

    umount = Umount(os.open("/proc/self", os.O_PATH | os.O_CLOEXEC), *others)
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        number = _umount_at(target, flags, devices, caller.proc, umount, whatever)
    if number is None:
        answer(channel, NOT_OURS)
    else:
        answer(channel, 0, number)


def _umount_at(
    target: str,
    flags: int,
    devices: tuple[int, ...],
    proc: paths.CallerProc,
    umount: Umount,
    whatever: bool,
) -> int | None:
    follow = not flags & uapi.UMOUNT_NOFOLLOW
    # A descriptor of the mount itself would keep it busy.
    try:
        directory, name = paths.resolve_parent(target, proc, follow)
    except PermissionError:
        directory, name = paths.resolve_parent(_from_cwd(target), proc, follow)
    if not name:
        return None
    number = syscalls.statx_dev(directory, name)
    if number in devices:
        # FUSE would abort the connection, even if the mount is busy; disk filesystems ignore it.
        flags &= ~uapi.MNT_FORCE
    elif not umount.concerns(number):
        if not whatever:
            return None
        os.fchdir(directory)
        syscalls.umount2(name, flags | uapi.UMOUNT_NOFOLLOW)
        return number
    os.fchdir(directory)
    umount(name, flags | uapi.UMOUNT_NOFOLLOW)
    return number


def _from_cwd(target: str) -> str:
    """Return a path below the working directory relative to it: umount(8) makes it absolute, and
    a directory above may be inaccessible to the caller.

    Raises:
        PermissionError: it is not below the working directory.
    """
    start = os.path.join(os.getcwd(), "")
    if not target.startswith(start) or target == start:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return target.removeprefix(start)


JOBS: dict[str, Job] = {
    "fstat": _fstat,
    "read_table": _read_table,
    "umount": _umount,
}
