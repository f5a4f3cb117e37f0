"""Jobs for mounts of type loop that must run in the caller's namespaces."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import confinement, paths
from loopfs.engines.caller import Caller, enter_as, rights_of, visible
from loopfs.engines.credentials import Credentials
from loopfs.engines.helper import NOT_OURS, answer
from loopfs.engines.jobs import Job, apply_flags
from loopfs.engines.superblock import fuse_context, set_sb_flags
from loopfs.filesystems import links
from loopfs.uapi import mount as uapi
from loopfs.uapi.loop import LOOP_CTL_ADD

LOOP = "loop"


def _instance(
    channel: Channel,
    fds: list[int],
    source: str,
    sb_flags: int,
    target: str | None,
    flags: int,
    refused: int,
    with_links: bool,
) -> None:
    """Create a superblock that the caller's user namespace owns.

    Answers with its device number, its /dev/fuse and the context that created it. If a target is
    given, it is mounted there after the supervisor has begun to serve it; with ``with_links`` the
    answer has the arguments of :func:`_link`. ``refused`` is the errno with which the call fails if
    the target exists, or 0.
    """
    caller = Caller(fds)
    # The superblock of a /dev/fuse can be mounted only in the user namespace that has opened it.
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    caller.enter()
    with caller.rights():
        place = None if target is None else paths.resolve(target, caller.proc)
    if refused:
        raise OSError(refused, os.strerror(refused))
    if place is not None:
        confinement.check_place(place)
    context = fuse_context(fuse, source, LOOP, sb_flags)
    tree = syscalls.fsmount(context, 0)
    os.close(context)
    number = syscalls.statx_dev(tree)
    if place is None:
        answer(channel, 0, (number, "", ()), (fuse, fuse_context(fuse, source, LOOP)))
        return
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    apply_flags(tree, flags)
    if with_links:
        assert target is not None
        with caller.rights():
            directory, name = paths.resolve_parent(target, caller.proc, follow=True)
        linker = tuple(caller.credentials)
        answer(channel, 0, (number, name, linker), (fuse, caller.userns, directory))
    else:
        answer(channel, 0, (number, "", ()), (fuse,))
    if channel.receive().data:
        with caller.rights():
            syscalls.move_mount(tree, place)
        os.close(tree)  # the descriptor would keep the mount busy
        answer(channel, 0)


def _link(
    channel: Channel,
    fds: list[int],
    linker: tuple[object, ...],
    place: str,
    action: str,
    name: str,
) -> None:
    """Call :func:`loopfs.filesystems.links.change` with the :class:`Credentials` ``linker``."""
    userns, directory = fds
    bearer = Credentials._make(linker)
    enter_as(userns, bearer)
    with rights_of(bearer), suppress(PermissionError):  # no permission: there are no links then
        links.change(directory, place, action, name)
    answer(channel, 0)


def _place(channel: Channel, fds: list[int], target: str) -> None:
    """Carry out move_mount(2) of a descriptor. Answers with the arguments of :func:`_link`."""
    *callers, tree = fds
    caller = Caller(callers)
    caller.enter()
    with caller.rights():
        place = paths.resolve(target, caller.proc)
        directory, name = paths.resolve_parent(target, caller.proc)
        syscalls.move_mount(tree, place)
    os.close(tree)
    answer(channel, 0, (name, tuple(caller.credentials)), (caller.userns, directory))


def _remount(
    channel: Channel,
    fds: list[int],
    instances: tuple[int, ...],
    engines: tuple[int, ...],
    dev: int,
    target: str,
    flags: int,
    refused: int,
) -> None:
    """Carry out mount(2) with MS_REMOUNT of an instance, or of a filesystem of our own engines.

    Answers with its device number; for an engine also before the remount, which is then made only
    if there is a reply.

    Args:
        dev: st_dev of /dev. On a read-only devtmpfs devices can be written: there only the mount
            becomes read-only, not the superblock, which has other mounts.
        refused: the errno of its options, or 0.
    """
    own_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        place = paths.resolve(target, caller.proc)
    number = syscalls.statx_dev(place)
    if number in engines:
        answer(channel, 0, number)
        if not channel.receive().data:
            return
    elif number not in instances:
        answer(channel, NOT_OURS)
        return
    elif refused:
        raise OSError(refused, os.strerror(refused))
    if number == dev and flags & uapi.MS_RDONLY:
        flags |= uapi.MS_BIND
    os.fchdir(own_fds)
    with caller.rights():
        syscalls.mount("loop", str(place), None, flags, None)
    os.close(place)
    answer(channel, 0, number)


def _pick(
    channel: Channel,
    fds: list[int],
    devices: tuple[int, ...],
    path: str,
    follow: bool,
) -> None:
    """Carry out fspick(2) of one of ``devices``. Answers with its number and the kernel's context.

    A relative path is resolved from the working directory; an empty path is that directory.
    """
    caller = Caller(fds)
    if path:
        caller.enter()
        resolve = paths.resolve if follow else _unfollowed
        with caller.rights():
            place = resolve(path, caller.proc)
    else:
        caller.enter_mounts()
        place = fds[2]
    number = syscalls.statx_dev(place)
    if number not in devices:
        answer(channel, NOT_OURS)
        return
    with caller.rights():
        context = syscalls.fspick(place)
    os.close(place)
    answer(channel, 0, number, (context,))


def _unfollowed(path: str, proc: paths.CallerProc) -> int:
    directory, name = paths.resolve_parent(path, proc, follow=False)
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=directory) if name else directory


def _reconfigure(channel: Channel, fds: list[int], flags: int, mask: int) -> None:
    """Carry out FSCONFIG_CMD_RECONFIGURE of a context; the kernel checks the permission."""
    *callers, context = fds
    caller = Caller(callers)
    caller.enter_mounts()
    with caller.rights():
        set_sb_flags(context, flags, mask)
        syscalls.fsconfig(context, uapi.FSCONFIG_CMD_RECONFIGURE)
    answer(channel, 0)


def _device_at(channel: Channel, fds: list[int], path: str) -> None:
    """Answer with the device number of the filesystem that a path leads to, and its file."""
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        place = paths.resolve(path, caller.proc)
    answer(channel, 0, syscalls.statx_dev(place), (place,))


def _mknod(channel: Channel, fds: list[int], path: str, mode: int, dev: tuple[int, int]) -> None:
    """Carry out mknod(2) of a device, which the kernel would refuse.

    Answers with st_dev of the directory, whether that is /dev, and our process id. If there is a
    reply, a FIFO is created with the caller's rights and umask; before, the engine that serves the
    directory was informed that this process's FIFO is to be a device. In /dev a loop device is
    created, whose number is in the reply.

    Args:
        mode: its permissions.
        dev: st_dev and inode number of /dev.
    """
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        directory, name = paths.resolve_parent(path, caller.proc, follow=False)
        place = syscalls.statx_dev(directory), os.fstat(directory).st_ino
    if not name or path.endswith("/"):
        answer(channel, NOT_OURS)  # EEXIST, ENOENT
        return
    in_dev = place == tuple(dev)
    answer(channel, 0, (place[0], in_dev, os.getpid()))
    reply = channel.receive().data
    if not reply:
        return
    os.umask(caller.umask)
    with caller.rights():
        if not in_dev:
            os.mknod(name, stat.S_IFIFO | mode, dir_fd=directory)
        elif not _add_loop(directory, name, int(reply)):
            answer(channel, NOT_OURS)
            return
    answer(channel, 0)


def _add_loop(directory: int, name: str, number: int) -> bool:
    """Create a loop device by the name of its node in /dev; False: the kernel is to refuse it."""
    if name != f"loop{number}" or _is_there(directory, name):
        return False  # EPERM, EEXIST
    with visible():
        try:
            control = os.open("loop-control", os.O_RDWR | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return False
        fcntl.ioctl(control, LOOP_CTL_ADD, number)
    return True


def _is_there(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


JOBS: dict[str, Job] = {
    "mknod": _mknod,
    "instance": _instance,
    "link": _link,
    "place": _place,
    "remount": _remount,
    "pick": _pick,
    "reconfigure": _reconfigure,
    "device_at": _device_at,
}
