"""The kernel as an engine: for a supervisor that is root of the machine, if the policy
allows it.

The image is bound to a loop device of the host, which is not shown to the workload, and mounted in
a separate mount namespace. The mount is then moved to the caller's namespace. It is nosuid and
nodev there, and stays so: a mount that is copied into a less privileged namespace has locked flags.

The process that does this has the sandbox's device open exclusively, and ends when the kernel
has released its own loop device. So the mount is tracked like that of any engine.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from loopfs import syscalls
from loopfs.channel import Channel, close_all
from loopfs.engines import paths
from loopfs.engines.caller import Caller, guard_with, visible
from loopfs.engines.device import find_device
from loopfs.engines.helper import NOT_OURS, answer
from loopfs.engines.jobs import Job
from loopfs.engines.stage import MOUNTPOINT
from loopfs.text import to_str
from loopfs.uapi import loop as uapi_loop
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS

INTERVAL = 0.01  # seconds between checks whether the kernel has released the device
TRIES = 100  # for a free device, which others may take first
_FORCED = uapi.MS_NOSUID | uapi.MS_NODEV


def _claim(
    channel: Channel,
    fds: list[int],
    instances: tuple[int, ...],
    source: str,
    target: str,
    read_only: bool,
) -> None:
    """Open a device exclusively, and the target, by the caller's paths.

    Answers with the instance, the node's inode number and the name to show.
    """
    own_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        node = find_device(source, caller.proc, instances, own_fds, or_file=True)
        if node is None:
            answer(channel, NOT_OURS)
            return
        place = paths.resolve(target, caller.proc)
        shown = node.shown(source)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    with visible():
        device = node.open(read_only, claim=True)
    answer(channel, 0, (node.instance, node.ino, shown), (device, place))


def _kernel_mount(
    channel: Channel,
    fds: list[int],
    fstype: str,
    flags: int,
    data: str,
    shown: str,
    offset: int,
    size: int,
) -> None:
    """Mount a part of a backing file; end when the kernel has released it."""
    *callers, place, _, backing, _ = fds  # the device and the lock are only kept open
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount("none", "/", None, uapi.MS_REC | uapi.MS_PRIVATE, None)
    number, loop = _bind(shown, backing, offset, size, read_only=bool(flags & uapi.MS_RDONLY))
    bound = os.open(f"/sys/block/loop{number}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    syscalls.mount(shown, MOUNTPOINT, fstype, flags | _FORCED, data)
    os.close(loop)
    numbers = (syscalls.statx_dev(uapi.AT_FDCWD, MOUNTPOINT), _superblock(), number)
    own = os.pidfd_open(os.getpid())
    mounter = os.getpid()
    mover = os.fork()
    if mover == 0:
        try:
            guard_with(mounter)
            _move(channel, callers, place, own, numbers)
        except OSError as problem:
            answer(channel, problem.errno or errno.EIO)
        finally:
            os._exit(0)
    close_all([*callers, place, backing])
    os.waitpid(mover, 0)
    syscalls.umount2(MOUNTPOINT, uapi.MNT_DETACH)
    channel.close()
    while _is_bound(bound):
        time.sleep(INTERVAL)


def _bind(shown: str, backing: int, offset: int, size: int, *, read_only: bool) -> tuple[int, int]:
    """Bind a free loop device with the node ``shown``; return its number and a descriptor."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    syscalls.mount("stage", "/dev", "tmpfs", uapi.MS_NOSUID, "size=64k,mode=0700")
    os.makedirs(os.path.dirname(shown), exist_ok=True)
    os.mkdir(MOUNTPOINT)
    flags = uapi_loop.LO_FLAGS_AUTOCLEAR | (uapi_loop.LO_FLAGS_READ_ONLY if read_only else 0)
    info = uapi_loop.LoopInfo64(offset=offset, sizelimit=size, flags=flags)
    config = uapi_loop.LoopConfig(fd=backing, info=info).pack()
    for _ in range(TRIES):
        number = fcntl.ioctl(control, uapi_loop.LOOP_CTL_GET_FREE)
        os.mknod(shown, stat.S_IFBLK | 0o600, os.makedev(uapi_loop.LOOP_MAJOR, number))
        loop = os.open(shown, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            fcntl.ioctl(loop, uapi_loop.LOOP_CONFIGURE, config)
        except OSError as problem:
            if problem.errno != errno.EBUSY:
                raise
            os.close(loop)
            os.unlink(shown)
        else:
            return number, loop
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _move(
    channel: Channel,
    callers: list[int],
    place: int,
    mounter: int,
    numbers: tuple[int, int, int],
) -> None:
    """Move the mount to the caller's namespace. Answers with st_dev, superblock and loop device."""
    caller = Caller(callers)
    syscalls.unshare(CLONE_NEWNS)
    clone = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    tree = syscalls.open_tree(uapi.AT_FDCWD, MOUNTPOINT, clone)
    answer(channel, 0, numbers, (mounter,))
    if not channel.receive().data:  # the caller has ended
        return
    caller.enter()
    with caller.rights():
        syscalls.move_mount(tree, place)
    os.close(tree)  # the descriptor would keep the mount busy
    answer(channel, 0)


def _superblock() -> int:
    """Return the device number in mountinfo, which can differ from st_dev (btrfs)."""
    with open("/proc/self/mountinfo", "rb") as file:
        lines = [line.split() for line in file]
    (number,) = (line[2] for line in lines if to_str(line[4]) == MOUNTPOINT)
    return os.makedev(*map(int, number.split(b":")))


def _is_bound(directory: int) -> bool:
    """Return whether a loop device, given by its directory in /sys, has a backing file."""
    try:
        os.stat("loop/backing_file", dir_fd=directory)
    except FileNotFoundError:
        return False
    return True


JOBS: dict[str, Job] = {"claim": _claim, "kernel_mount": _kernel_mount}
