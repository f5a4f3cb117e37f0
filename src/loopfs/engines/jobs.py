"""What the helper does in the caller's namespaces, one job for each process.

A job runs alone in its process and ends with it, so it closes nothing behind itself.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import fusermount, paths
from loopfs.engines.device import DeviceNode, find_device
from loopfs.engines.engine import SEARCH_PATH, Launch, Served
from loopfs.engines.helper import NOT_OURS, answer
from loopfs.engines.policy import BY_NAME
from loopfs.engines.programs import check_type
from loopfs.engines.superblock import connection_of, fuse_context, live_connection_of
from loopfs.filesystems.backing import facts
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, PR_SET_DUMPABLE

Job = Callable[..., None]

_NODES = ("null", "fuse")  # what an engine needs
MOUNTPOINT = "/dev/filesystem"
_PROGRAMS = "/dev/programs"
_FUSERMOUNTS = ("/usr/bin/fusermount", "/bin/fusermount")
SHOWABLE = re.compile(r"/dev/(?!null|fuse|filesystem|programs)[\w-]+(/[\w-]+)*")


def perform(name: str, arguments: tuple[object, ...], fds: list[int]) -> NoReturn:
    """Do the job and exit. The first descriptor is the channel to answer on."""
    channel = Channel.of_descriptor(fds[0])
    try:
        _job(name)(channel, fds[1:], *arguments)
    except OSError as problem:
        answer(channel, problem.errno or errno.EIO)
    except BaseException:  # nothing may return into the helper's code
        sys.excepthook(*sys.exc_info())
        answer(channel, errno.EIO)
    finally:
        os._exit(0)


def _job(name: str) -> Job:
    if name in JOBS:
        return JOBS[name]
    from loopfs.engines import instance_jobs

    if name in instance_jobs.JOBS:
        return instance_jobs.JOBS[name]
    from loopfs.engines import kernel

    return kernel.JOBS[name]


def _fstat(channel: Channel, fds: list[int]) -> None:
    pidfd, fd = fds
    enter_user(pidfd)
    answer(channel, 0, tuple(facts(os.fstat(fd))))


def _read_table(channel: Channel, fds: list[int], offset: int, size: int, block_size: int) -> None:
    from loopfs.filesystems.blkid import read_table

    pidfd, fd = fds
    enter_user(pidfd)
    table = read_table(fd, offset, size, block_size)
    answer(channel, 0, tuple(tuple(found) for found in table))


def enter_user(fd: int) -> None:
    """Enter a user namespace, by its file or by a pidfd, as its root: what we were may have no id
    there, and then nothing can be made or even looked at on a FUSE mount."""
    syscalls.setns(fd, CLONE_NEWUSER)
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # it has no root
            raise
    syscalls.prctl(PR_SET_DUMPABLE, 1)  # the supervisor must see which calls we make


def enter(pidfd: int, root: int, cwd: int) -> None:
    """Take on the caller's mount namespace, root and working directory."""
    syscalls.setns(pidfd, CLONE_NEWNS)
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(cwd)


def _mount(
    channel: Channel,
    fds: list[int],
    instances: tuple[int, ...],
    source: str,
    target: str | None,
    fstype: str,
    flags: int,
    engine_name: str,
    options: tuple[str, ...],
    refused: int,
    served: tuple[tuple[object, ...], ...],
) -> None:
    """Mount a device at ``target``; without one, answer with a context for fsmount(2).

    ``served`` are what the engines that run have (:class:`Served`): such a device is mounted
    once more from its superblock, as by the kernel, and never given to a second engine.

    ``refused`` is the errno for a device of ours that is not to be mounted, or 0. Then the
    answer says whether it could have been, by what it holds.
    """
    pidfd, root, cwd, process, thread = fds
    proc = paths.CallerProc(process, thread)
    enter_user(pidfd)
    # A copy of the host's mounts, owned by the caller's user namespace, is where the
    # engine lives: it has the host's programs and libraries whatever root the caller is in. It
    # alone is in its pid namespace, and outlives the sandbox's until it has written everything.
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWPID)
    syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_PRIVATE, None)
    stage = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    own_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    enter(pidfd, root, cwd)
    node = find_device(source, proc, instances, own_fds)
    if node is None:
        answer(channel, NOT_OURS)
        return
    if refused:
        answer(channel, refused, _holds(node, fstype))
        return
    engine = BY_NAME[engine_name]
    place = None
    if target is not None:
        place = paths.resolve(target, proc)
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    read_only = engine.read_only(fstype, bool(flags & uapi.MS_RDONLY))
    shown = source if SHOWABLE.fullmatch(source) else f"/dev/{node.name}"
    for engine_of in map(Served._make, served):
        if engine_of.device == (node.instance, node.ino):
            syscalls.setns(stage, CLONE_NEWNS)
            context = _context_of(engine_of, fstype, read_only, shown)
            if context is None:
                enter(pidfd, root, cwd)
                break
            if place is None:
                answer(channel, 0, None, (context,))
                return
            tree = syscalls.fsmount(context, 0)
            apply_flags(tree, flags)
            answer(channel, 0)
            _move_to_caller(channel, tree, pidfd, root, cwd, place)
            return
    device = node.open(read_only)
    engine.check(device, fstype)
    opened = _tree_of(device)
    syscalls.setns(stage, CLONE_NEWNS)
    mountpoint = _build_stage(shown, device, opened, fstype)
    bare = syscalls.statx_dev(uapi.AT_FDCWD, mountpoint)  # before an engine can have mounted there
    server = _start(engine.command(Launch(shown, mountpoint, fstype, options, read_only)), device)
    server_fd = os.pidfd_open(server)
    if not _wait_for_mount(mountpoint, bare, server_fd, pidfd):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if place is None:
        number = syscalls.statx_dev(uapi.AT_FDCWD, mountpoint)
        had = tuple(Served((node.instance, node.ino), fstype, read_only, server, number))
        if read_only:  # of the superblock, which an engine need not have told the kernel
            remount = uapi.MS_REMOUNT | uapi.MS_RDONLY
            syscalls.mount("none", mountpoint, None, remount, None)
        context = fuse_context(connection_of(server_fd, server), shown, fstype)
        syscalls.umount2(mountpoint, uapi.MNT_DETACH)
        answer(channel, 0, had, (server_fd, context))
        return
    tree = syscalls.open_tree(
        uapi.AT_FDCWD, mountpoint, uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    )
    syscalls.umount2(mountpoint, uapi.MNT_DETACH)
    apply_flags(tree, flags)
    number = syscalls.statx_dev(tree)
    had = tuple(Served((node.instance, node.ino), fstype, read_only, server, number))
    answer(channel, 0, had, (server_fd,))
    _move_to_caller(channel, tree, pidfd, root, cwd, place)


def _move_to_caller(
    channel: Channel, tree: int, pidfd: int, root: int, cwd: int, place: int
) -> None:
    """Mount ``tree``, if the caller still waits. Dropping the last tree ends its engine."""
    if channel.receive().data:
        enter(pidfd, root, cwd)
        syscalls.move_mount(tree, place)
        answer(channel, 0)


def _context_of(served: Served, fstype: str, read_only: bool, shown: str) -> int | None:
    """A context with the superblock of an engine that runs, with its /proc around us.

    Returns:
        None when the superblock is gone and the engine about to end.
    Raises:
        OSError: EBUSY for what the kernel does not mount twice: as another type, for reading
            and for writing; and from another user namespace, for only the one that opened
            /dev/fuse may mount what it serves.
    """
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    try:
        connection = live_connection_of(served.pid)
        if connection is None:
            return None
        if (served.fstype, served.read_only) != (fstype, read_only):
            raise busy
        return fuse_context(connection, shown, fstype)
    except OSError as problem:
        if problem.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
            raise
        raise busy from None


def _holds(node: DeviceNode, fstype: str) -> bool:
    try:
        check_type(node.open(read_only=True), fstype)
    except OSError:
        return False
    return True


def _tree_of(device: int) -> int | None:
    """The open device as a mount of one file, which can be opened wherever it is put.

    None where the kernel does not allow that: it is open through another namespace's mount.
    """
    flags = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC | uapi.AT_EMPTY_PATH
    try:
        return syscalls.open_tree(device, "", flags)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        return None


def _build_stage(shown: str, device: int, opened: int | None, fstype: str) -> str:
    """Give the engine a /dev where ``shown`` is its device; returns where it shall mount.

    An engine tells the kernel the name by which it opened its device, and mountinfo shows
    that. Some want to know where symbolic links lead, so it is none if that can be done.
    """
    clone = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    nodes = {name: syscalls.open_tree(uapi.AT_FDCWD, f"/dev/{name}", clone) for name in _NODES}
    syscalls.mount("stage", "/dev", "tmpfs", uapi.MS_NOSUID, "size=64k,mode=0755")
    for name, tree in nodes.items():
        place = os.open(f"/dev/{name}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        syscalls.move_mount(tree, place)
    os.makedirs(os.path.dirname(shown), exist_ok=True)
    if opened is None:
        os.symlink(f"/proc/self/fd/{device}", shown)
    else:
        place = os.open(shown, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        syscalls.move_mount(opened, place)
    os.mkdir(MOUNTPOINT)
    _write_fusermount(fstype)
    os.chdir("/")
    return MOUNTPOINT


def _write_fusermount(fstype: str) -> None:
    """Have engines find our fusermount, as libfuse looks for it: in its place, and on PATH."""
    os.mkdir(_PROGRAMS)
    path = f"{_PROGRAMS}/fusermount"
    with open(path, "x", encoding="utf-8") as file:
        file.write(fusermount.script(fstype))
    os.chmod(path, 0o755)
    for place in _FUSERMOUNTS:
        with suppress(FileNotFoundError):
            syscalls.mount(path, place, None, uapi.MS_BIND, None)


def _start(command: list[str], device: int) -> int:
    """Start the engine with nothing of ours but the device."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, device)
        os.closerange(device + 1, 4096)
        os.set_inheritable(device, True)
        environment = {"PATH": f"{_PROGRAMS}:{SEARCH_PATH}", "LC_ALL": "C.UTF-8"}
        os.execvpe(command[0], command, environment)
    finally:
        os._exit(127)


def _wait_for_mount(mountpoint: str, bare: int, server: int, caller: int) -> bool:
    """Wait until something is mounted, or the server (a pidfd) has given up, or the caller has.

    Args:
        bare: the device number that the mount point has while nothing is mounted there.
    """
    with open("/proc/self/mountinfo", "rb", buffering=0) as mounts:
        poller = select.poll()
        poller.register(mounts, select.POLLPRI)
        poller.register(server, select.POLLIN)
        poller.register(caller, select.POLLIN)
        while syscalls.statx_dev(uapi.AT_FDCWD, mountpoint) == bare:
            if any(fd != mounts.fileno() for fd, _ in poller.poll()):
                signal.pidfd_send_signal(server, signal.SIGKILL)
                return False
    return True


_ATTRIBUTES = {
    uapi.MS_RDONLY: uapi.MOUNT_ATTR_RDONLY,
    uapi.MS_NOSUID: uapi.MOUNT_ATTR_NOSUID,
    uapi.MS_NODEV: uapi.MOUNT_ATTR_NODEV,
    uapi.MS_NOEXEC: uapi.MOUNT_ATTR_NOEXEC,
    uapi.MS_NODIRATIME: uapi.MOUNT_ATTR_NODIRATIME,
    uapi.MS_NOSYMFOLLOW: uapi.MOUNT_ATTR_NOSYMFOLLOW,
}


def apply_flags(tree: int, flags: int) -> None:
    """Give the mount the per-mount flags of mount(2)."""
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
    channel: Channel, fds: list[int], target: str, flags: int, devices: tuple[int, ...]
) -> None:
    """umount2(2) of one of our mounts; answers with its device number."""
    pidfd, root, cwd, process, thread = fds
    enter_user(pidfd)
    enter(pidfd, root, cwd)
    follow = not flags & uapi.UMOUNT_NOFOLLOW
    # A descriptor of the place itself would keep it busy.
    directory, name = paths.resolve_parent(target, paths.CallerProc(process, thread), follow)
    if not name:
        answer(channel, NOT_OURS)
        return
    number = syscalls.statx_dev(directory, name)
    if number not in devices:
        answer(channel, NOT_OURS)
        return
    os.fchdir(directory)
    syscalls.umount2(name, flags | uapi.UMOUNT_NOFOLLOW)
    answer(channel, 0, number)


def _umount_all(channel: Channel, fds: list[int], devices: tuple[int, ...]) -> None:
    """Unmount the filesystems ``devices`` wherever they are in a process's namespace."""
    (pidfd, mountinfo) = fds
    with open(mountinfo, "rb", buffering=0) as file:
        lines = file.readall().splitlines()
    enter_user(pidfd)
    syscalls.setns(pidfd, CLONE_NEWNS)
    for line in reversed(lines):
        fields = line.split()
        major, minor = map(int, fields[2].split(b":"))
        if os.makedev(major, minor) in devices:
            place = fields[4].decode("unicode_escape").encode("latin-1")
            syscalls.umount2(os.fsdecode(place), uapi.MNT_DETACH)
    answer(channel, 0)


JOBS: dict[str, Job] = {
    "fstat": _fstat,
    "read_table": _read_table,
    "mount": _mount,
    "umount": _umount,
    "umount_all": _umount_all,
}
