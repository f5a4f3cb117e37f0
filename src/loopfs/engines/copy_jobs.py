"""Jobs for copies of /sys and /dev in other places: in a chroot, for a nested user namespace."""

from __future__ import annotations

import errno
import os
import stat

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import paths
from loopfs.engines.caller import Caller
from loopfs.engines.copies import SYSFS_ROOT_INO
from loopfs.engines.helper import NOT_OURS, answer
from loopfs.engines.jobs import Job, apply_flags
from loopfs.engines.umount_copy import PART_TYPES, mount_table
from loopfs.sandbox.own_sysfs import CLASSES, SYS, attach, new_sysfs
from loopfs.sandbox.sysfs import DEVICES, DEVICES_ALONE
from loopfs.uapi import mount as uapi
from loopfs.uapi.magic import SYSFS_MAGIC, TMPFS_MAGIC
from loopfs.uapi.sched import CLONE_NEWNET

DEV = "/dev"
_DEVICES = f"{SYS}/{DEVICES}"
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC


def _sysfs(channel: Channel, fds: list[int], source: str | None, target: str, flags: int) -> None:
    """Mount a sysfs that is like the sandbox's: a new mount of it, or a bind mount of ``source``.

    Answers with its st_dev.
    """
    own = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    net = os.open("ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fds[4])
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        bound = None if source is None else paths.resolve(source, caller.proc)
        place = _directory(target, caller)
    if bound is not None and not is_sysfs(bound):
        answer(channel, NOT_OURS)
        return
    caller.enter_mounts()
    if same := os.fstat(net).st_ino == os.stat("ns/net", dir_fd=own).st_ino:
        tree = _clone_of(bound)
    else:
        syscalls.setns(net, CLONE_NEWNET)
        tree = None
    if tree is None:
        if same:
            syscalls.unshare(CLONE_NEWNET)
        tree = new_sysfs()
    parts = _clones(own)  # after the tree: the mount table then lists them in that order
    if not same:
        parts = {path: clone for path, clone in parts.items() if not _is_of_network(path)}
    apply_flags(tree, flags)
    number = syscalls.statx_dev(tree)
    with caller.rights():
        syscalls.move_mount(tree, place)
        for path, clone in parts.items():
            attach(tree, path, clone)
    answer(channel, 0, number)


def _clone_of(source: int | None) -> int | None:
    """Clone a sysfs; None: the namespace's /sys. Return None if there are locked mounts in it, or
    it is not a sysfs."""
    try:
        place = os.open(SYS, os.O_PATH | os.O_CLOEXEC) if source is None else source
    except FileNotFoundError:
        return None
    return _clone_unless_locked(place) if is_sysfs(place) else None


def _clone_unless_locked(place: int) -> int | None:
    """Clone a mount; return None if there are locked mounts in it."""
    try:
        return syscalls.open_tree(place, "", _CLONE | uapi.AT_EMPTY_PATH)
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        return None


def _directory(target: str, caller: Caller) -> int:
    """Resolve a mount point with the caller's rights. Raises OSError ENOTDIR, and as open(2)."""
    place = paths.resolve(target, caller.proc)
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    return place


def _is_of_network(path: str) -> bool:
    names = path.split("/")
    return names[-1] in CLASSES


def is_sysfs(place: int) -> bool:
    """Return whether an O_PATH descriptor refers to the root of a sysfs."""
    if syscalls.filesystem_type(place) != SYSFS_MAGIC:
        return False
    return os.fstat(place).st_ino == SYSFS_ROOT_INO


def _dress(channel: Channel, fds: list[int], target: str) -> None:
    """Carry out move_mount(2) of an empty clone of a sysfs, and mount in it what the sandbox has
    mounted in its own."""
    own = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    *callers, tree = fds
    caller = Caller(callers)
    caller.enter()
    with caller.rights():
        place = paths.resolve(target, caller.proc)
        syscalls.move_mount(tree, place)
    caller.enter_mounts()
    with caller.rights():
        for path, clone in _clones(own).items():
            attach(tree, path, clone)
    answer(channel, 0)


def _dev(channel: Channel, fds: list[int], target: str, flags: int) -> None:
    """Mount the /dev of the caller's namespace again; with the mounts in it if it is a tmpfs, or if
    they are locked there.

    Answers with st_dev of the tmpfs, else 0, and whether there are mounts in it.
    """
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        place = _directory(target, caller)
    caller.enter_mounts()
    dev = os.open(DEV, os.O_PATH | os.O_CLOEXEC)
    if syscalls.mount_id(dev) == syscalls.mount_id(uapi.AT_FDCWD, "/"):
        answer(channel, NOT_OURS)
        return
    is_tmpfs = syscalls.filesystem_type(dev) == TMPFS_MAGIC
    single = None if is_tmpfs else _clone_unless_locked(dev)
    if single is None:
        tree = syscalls.open_tree(dev, "", _CLONE | uapi.AT_EMPTY_PATH | uapi.AT_RECURSIVE)
    else:
        tree = single
    apply_flags(tree, flags)
    with caller.rights():
        syscalls.move_mount(tree, place)
    answer(channel, 0, (syscalls.statx_dev(tree) if is_tmpfs else 0, single is None))


def _clones(own: int) -> dict[str, int]:
    """Return clones of the mounts in the sandbox's /sys, by their paths in it.

    Args:
        own: our directory in a /proc in which we are visible. We are in the namespace's root.
    """
    mounts = mount_table(own)
    try:
        above = syscalls.mount_id(uapi.AT_FDCWD, SYS)
    except FileNotFoundError:
        return {}
    parts = [
        mount.place for mount in mounts if mount.parent == above and mount.fstype in PART_TYPES
    ]
    alone = {mount.place for mount in mounts} & {DEVICES_ALONE}
    return {
        place[len(SYS) + 1 :]: syscalls.open_tree(
            uapi.AT_FDCWD, DEVICES_ALONE if alone and place == _DEVICES else place, _CLONE
        )
        for place in parts
    }


JOBS: dict[str, Job] = {"sysfs": _sysfs, "dress": _dress, "dev": _dev}
