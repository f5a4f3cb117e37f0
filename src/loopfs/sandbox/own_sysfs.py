"""The sandbox's /sys: a sysfs of its own, in which no mount is locked.

Mounts below the caller's /sys are locked (mount_namespaces(7)), and a tree with locked mounts can
be neither bound nor unmounted. So a new sysfs is mounted over it, of a network namespace that the
sandbox's user namespace owns: the kernel permits no other. It shows the same as the old one, except
for network interfaces, whose directories are bound from the old one.
"""

from __future__ import annotations

import errno
import os

from loopfs import mountinfo, syscalls
from loopfs.channel import close_all
from loopfs.lean import Iterable
from loopfs.uapi import mount as uapi
from loopfs.uapi.sched import CLONE_NEWNET

SYS = "/sys"
WHOLE_SYSFS = "/dev/.loopfs/sys"  # like proc.WHOLE_PROC
CLASSES = ("net", "ieee80211")  # whose devices belong to network namespaces
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
_LASTING = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC  # as MOUNT_ATTR_*


def mounted_below() -> list[str]:
    """Return the mount points below /sys. It needs a /proc that shows this process."""
    with open("/proc/self/mountinfo", "rb") as table:
        mounts = mountinfo.parse(table)
    return [mount.place for mount in mounts if mount.place.startswith(f"{SYS}/")]


def replace(below: Iterable[str]) -> bool:
    """Mount a new sysfs on /sys, with the mounts below the old one, and enter a new network
    namespace. Return False if the kernel refuses: parts of /sys are covered, as in some containers,
    or the limit of network namespaces is reached.

    Args:
        below: the result of :func:`mounted_below`.
    """
    try:
        attributes = os.statvfs(SYS).f_flag & _LASTING
        syscalls.unshare(CLONE_NEWNET)
        tree = new_sysfs(attributes)
    except OSError:
        return False
    kept: dict[str, int] = {}  # cloned after the tree, so they follow it in the mount table
    for place in below:
        if not any(place.startswith(f"{other}/") for other in kept):
            _keep(kept, place)
    for place in network_directories():
        _keep(kept, place)
    root = os.open(SYS, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(tree, root)
    for path, clone in kept.items():
        attach(tree, path[len(SYS) + 1 :], clone)
    close_all([root, tree, *kept.values()])
    return True


def new_sysfs(attributes: int = 0) -> int:
    """Return a detached mount of the sysfs of our network namespace.

    Args:
        attributes: MOUNT_ATTR_*.
    Raises:
        OSError: EPERM: our user namespace does not own the network namespace, or every sysfs that
            is mounted here is partly covered.
    """
    context = syscalls.fsopen("sysfs")
    try:
        syscalls.fsconfig(context, uapi.FSCONFIG_SET_STRING, "source", "sysfs")
        syscalls.fsconfig(context, uapi.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def network_directories() -> list[str]:
    """Return the directories of /sys whose entries are the interfaces of a network namespace."""
    found = []
    for name in CLASSES:
        directory = f"{SYS}/class/{name}"
        try:
            entries = os.listdir(directory)
        except FileNotFoundError:
            continue
        found.append(directory)
        for entry in entries:
            try:
                link = os.readlink(f"{directory}/{entry}")
            except OSError:
                continue  # an attribute of the class, or it has just gone
            of_device = os.path.normpath(f"{directory}/{link}/..")
            if of_device not in found:
                found.append(of_device)
    return found


def attach(tree: int, path: str, clone: int) -> None:
    """Mount a detached ``clone`` on ``path`` below the mount ``tree``, if the path exists."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=tree)
    except FileNotFoundError:
        return
    try:
        syscalls.move_mount(clone, place)
    finally:
        os.close(place)


def _keep(kept: dict[str, int], place: str) -> None:
    for flags in (_CLONE, _CLONE | uapi.AT_RECURSIVE):
        try:
            kept[place] = syscalls.open_tree(uapi.AT_FDCWD, place, flags)
            return
        except OSError as problem:
            if problem.errno != errno.EINVAL:  # EINVAL: locked mounts, which must be cloned too
                return  # not accessible


def mount_whole_sysfs() -> None:
    """Mount a sysfs of which nothing is covered: the kernel permits a new sysfs in a descendant
    user namespace only if one is completely visible. /dev must exist."""
    try:
        tree = syscalls.open_tree(uapi.AT_FDCWD, SYS, _CLONE)
    except OSError:
        return  # it has locked mounts: the kernel has refused a sysfs of our own
    place = os.open(WHOLE_SYSFS, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(tree, place)
    close_all([place, tree])
