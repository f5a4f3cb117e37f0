"""The sandbox's /proc: of its own pid namespace, and what it covers cannot be uncovered.

Below it is the caller's /proc, with the supervisor, its jobs and its engines in it. A mount is
locked to what it covers when its mount namespace is copied for another user namespace
(mount_namespaces(7)). So /proc is mounted in a copy of the mounts that belongs to a user namespace
within ours, where only this is done, and the sandbox lives in a copy of that copy.
"""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.errors import fork
from loopfs.lean import NamedTuple
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWUSER

PARTITIONS = "/proc/partitions"
WHOLE_PROC = "/dev/.loopfs/proc"  # as LXC has in /dev/.lxc, for the same reason
_FLAGS = uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC


class Copy(NamedTuple):
    """A mount namespace that is a copy of ours, and our working directory there: descriptors.

    ``maker`` is the process that has made it, and has nothing more to do.
    """

    namespace: int
    cwd: int
    maker: int

    def close(self) -> None:
        os.close(self.namespace)
        os.close(self.cwd)


def copy_for_another() -> Copy | None:
    """Copy our mounts for a user namespace within ours.

    None where the kernel makes no more user namespaces, or our working directory is closed to us
    and could not be entered again.
    """
    try:
        os.chdir(".")
    except PermissionError:
        return None
    ready, readys = os.pipe()
    done, dones = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            for fd in (ready, dones):
                os.close(fd)
            syscalls.unshare(CLONE_NEWUSER | CLONE_NEWNS)
            os.write(readys, b".")
            os.read(done, 1)
        finally:  # nothing may return into the child's code
            os._exit(0)
    for fd in (readys, done):
        os.close(fd)
    try:
        if not os.read(ready, 1):
            return None
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        cwd = os.open(f"/proc/{pid}/cwd", os.O_PATH | os.O_CLOEXEC)
        return Copy(namespace, cwd, pid)
    finally:
        for fd in (ready, dones):
            os.close(fd)


def mount_proc(copy: Copy | None) -> None:
    """Mount a /proc of this pid namespace, with the list of block devices that the old one has.

    In a container whose /proc is covered the kernel refuses: the sandbox goes on with the old one.

    Args:
        copy: where to begin; we are in a copy of that afterwards. None: the old /proc can be
            uncovered.
    """
    if copy is not None:
        syscalls.setns(copy.namespace, CLONE_NEWNS)
        os.fchdir(copy.cwd)
        copy.close()
    clone = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    covered = _device(PARTITIONS) not in (None, _device("/proc"))
    view = syscalls.open_tree(uapi.AT_FDCWD, PARTITIONS, clone) if covered else None
    try:
        syscalls.mount("proc", "/proc", "proc", _FLAGS, None)
    except PermissionError:
        pass
    else:
        if view is not None:
            place = os.open(PARTITIONS, os.O_PATH | os.O_CLOEXEC)
            syscalls.move_mount(view, place)
            os.close(place)
    if view is not None:
        os.close(view)
    if copy is not None:
        syscalls.unshare(CLONE_NEWNS)


def mount_whole_proc() -> None:
    """Mount one of which nothing is covered: only who sees all of some /proc may mount one in a
    user namespace of theirs. To be called when there is a /dev."""
    try:
        syscalls.mount("proc", WHOLE_PROC, "proc", _FLAGS, None)
    except PermissionError:
        return  # as above


def _device(path: str) -> int | None:
    try:
        return syscalls.statx_dev(uapi.AT_FDCWD, path)
    except FileNotFoundError:
        return None
