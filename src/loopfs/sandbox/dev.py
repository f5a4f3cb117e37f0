"""The sandbox's /dev: the first instance, with harmless nodes of the host mounted in it.

With --bare, and in a sandbox inside a sandbox, it is a tmpfs.
"""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.errors import SetupError
from loopfs.lean import Mapping
from loopfs.sandbox.own_sysfs import WHOLE_SYSFS
from loopfs.sandbox.proc import WHOLE_PROC
from loopfs.sandbox.sysfs import DEVICES_ALONE
from loopfs.uapi import mount as uapi

INSTANCE = "/dev/loopfs"
NODES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "kvm", "net/tun")
TREES = ("shm", "mqueue", "hugepages")
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
CONTROL_LINK = "loop-control", "loopfs/loop-control"
TTY_GID = 5  # group tty, in every distribution
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC


def keep(terminal: str | None) -> dict[str, int]:
    """Clone the nodes of the host's /dev that ours will have: names, and detached mounts.

    Args:
        terminal: the path of the terminal that becomes /dev/console.
    """
    paths = {name: f"/dev/{name}" for name in NODES + TREES}
    if terminal is not None:
        paths["console"] = terminal
    return {name: tree for name, path in paths.items() if (tree := _clone(path)) is not None}


def build(kept: Mapping[str, int]) -> None:
    """Replace /dev of this mount namespace by a tmpfs.

    Args:
        kept: see :func:`keep`; closed.
    Raises:
        OSError: the kernel refused a mount.
    """
    flags = uapi.MS_NOSUID | uapi.MS_STRICTATIME
    syscalls.mount("dev", "/dev", "tmpfs", flags, "mode=0755,size=1m")
    for name, tree in kept.items():
        _make_place(name)
        _place(name, tree)
    for place in ("/dev/pts", WHOLE_PROC, WHOLE_SYSFS, DEVICES_ALONE):
        os.makedirs(place)
    _mount_terminals()
    for name, target in LINKS.items():
        os.symlink(target, f"/dev/{name}")


def mount_instance(fuse: int) -> None:
    """Mount an instance on /dev, which is served through ``fuse``.

    The mount is nodev: its block special files must never open a device of the host.
    """
    flags = uapi.MS_NODEV | uapi.MS_NOSUID
    data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    syscalls.mount("dev", "/dev", "fuse.devtmpfs", flags, data)


def furnish(kept: Mapping[str, int]) -> None:
    """Mount the host's nodes, and the terminals, in /dev as soon as it is served.

    Args:
        kept: see :func:`keep`; closed.
    Raises:
        OSError: the kernel refused a mount, or the instance is not served.
    """
    for name, tree in kept.items():
        _place(name, tree)
    syscalls.mount(INSTANCE, INSTANCE, None, uapi.MS_BIND, None)  # stays when /dev is read-only
    _mount_terminals()
    for place in (WHOLE_PROC, WHOLE_SYSFS):
        os.stat(place)  # process 1, which serves these lookups, finds the names cached


def _clone(path: str) -> int | None:
    try:
        return syscalls.open_tree(uapi.AT_FDCWD, path, _CLONE | uapi.AT_RECURSIVE)
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.EACCES):
            raise
        return None


def _mount_terminals() -> None:
    """Mount a devpts of its own, where terminals can be made; the host's ptmx can be opened only
    in the mount namespace of the host's devpts."""
    flags = uapi.MS_NOSUID | uapi.MS_NOEXEC
    options = "newinstance,ptmxmode=0666,mode=0620"
    try:
        syscalls.mount("devpts", "/dev/pts", "devpts", flags, f"{options},gid={TTY_GID}")
    except OSError as problem:
        if problem.errno != errno.EINVAL:  # the sandbox has no such group
            raise
        syscalls.mount("devpts", "/dev/pts", "devpts", flags, options)


def terminal() -> str | None:
    """Return the path of our terminal. It needs a /proc that shows this process."""
    for fd in (0, 1, 2):
        try:
            return os.ttyname(fd)
        except OSError:
            continue  # closed, or no terminal
    return None


def mount_nested_instance() -> None:
    """Mount an instance on /dev/loopfs, with links to its nodes in /dev, in a sandbox inside a
    sandbox: the outer supervisor serves it."""
    os.mkdir(INSTANCE, 0o755)
    name, target = CONTROL_LINK
    os.symlink(target, f"/dev/{name}")
    flags = uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
    try:
        syscalls.mount("loop", INSTANCE, "loop", flags, "links")
    except OSError as problem:
        raise SetupError(
            problem.errno or 0,
            f"the outer sandbox makes no loop devices for this one ({problem.strerror})",
        ) from None


def _make_place(name: str) -> None:
    path = f"/dev/{name}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if name in TREES:
        os.mkdir(path)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC | os.O_WRONLY, 0o666))


def _place(name: str, tree: int) -> None:
    place = os.open(f"/dev/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    syscalls.move_mount(tree, place)
    os.close(place)
    os.close(tree)
