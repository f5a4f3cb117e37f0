"""The sandbox's /proc: it shows its own pid namespace, and cannot be unmounted.

It covers the caller's /proc, which shows the supervisor, its jobs and its engines. Mounts are
locked when their mount namespace is copied for another user namespace (mount_namespaces(7)). So
/proc is mounted in a copy of the mounts that belongs to a user namespace below ours, which has no
other purpose, and the sandbox's mount namespace is a copy of that copy.
"""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.errors import fork
from loopfs.lean import NamedTuple
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNS, CLONE_NEWUSER

PARTITIONS = "/proc/partitions"
WHOLE_PROC = "/dev/.loopfs/proc"  # as /dev/.lxc/proc of LXC
_FLAGS = uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC


class Copy(NamedTuple):
    """Descriptors of a mount namespace that is a copy of ours, and of our working directory there.

    ``maker`` is the process that has made it, and waits to be reaped.
    """

    namespace: int
    cwd: int
    maker: int

    def close(self) -> None:
        os.close(self.namespace)
        os.close(self.cwd)


def copy_for_another() -> Copy | None:
    """Copy our mounts for a user namespace below ours.

    None if the kernel makes no more user namespaces, or if our working directory is not accessible
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
    """Mount a /proc of this pid namespace, with the view of partitions if the old one has it.

    In a container whose /proc is partly covered the kernel refuses it: the sandbox keeps the old
    one.

    Args:
        copy: the namespace in which to mount; a copy of it is entered afterwards. None: the mounts
            are not locked, so the new /proc can be unmounted.
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
    """Mount a /proc of which nothing is covered: the kernel permits a new /proc in a descendant
    user namespace only if one is completely visible. /dev must exist."""
    try:
        syscalls.mount("proc", WHOLE_PROC, "proc", _FLAGS, None)
    except PermissionError:
        return  # as above


def _device(path: str) -> int | None:
    try:
        return syscalls.statx_dev(uapi.AT_FDCWD, path)
    except FileNotFoundError:
        return None
