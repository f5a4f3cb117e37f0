"""The sandbox's /sys: a sysfs of its own, in which nothing is locked.

What was mounted below /sys when the sandbox was made is locked to it (mount_namespaces(7)), and a
tree with locked mounts can be neither bound nor unmounted. So a new sysfs is mounted over it, of a
network namespace that the sandbox's user namespace owns: only then the kernel allows it. It is the
same as the old one but for the network interfaces, whose directories are bound over it from there.
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
WHOLE_SYSFS = "/dev/.loopfs/sys"  # as WHOLE_PROC, for the same reason
CLASSES = ("net", "ieee80211")  # whose devices belong to network namespaces
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
_LASTING = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC  # as MOUNT_ATTR_*


def mounted_below() -> list[str]:
    """Where something is mounted below /sys. Asks the /proc that shows us."""
    with open("/proc/self/mountinfo", "rb") as table:
        mounts = mountinfo.parse(table)
    return [mount.place for mount in mounts if mount.place.startswith(f"{SYS}/")]


def replace(below: Iterable[str]) -> bool:
    """Mount it, with what the old one has mounted below it, in a network namespace that is ours
    from then on. False where the kernel refuses: parts of /sys are covered, as in some containers,
    or there are no more network namespaces.

    Args:
        below: what :func:`mounted_below` has found.
    """
    try:
        attributes = os.statvfs(SYS).f_flag & _LASTING
        syscalls.unshare(CLONE_NEWNET)
        tree = new_sysfs(attributes)
    except OSError:
        return False
    kept: dict[str, int] = {}  # later than the tree, as the mount table has them in that order
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
    """A detached mount of the sysfs of our network namespace, with MOUNT_ATTR_* ``attributes``.

    Raises:
        OSError: EPERM: our user namespace does not own it, or all sysfs that is mounted here is
            covered in part.
    """
    context = syscalls.fsopen("sysfs")
    try:
        syscalls.fsconfig(context, uapi.FSCONFIG_SET_STRING, "source", "sysfs")
        syscalls.fsconfig(context, uapi.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, attributes)
    finally:
        os.close(context)


def network_directories() -> list[str]:
    """The directories of /sys whose entries are network interfaces of one namespace."""
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
    """Mount a detached ``clone`` on ``path`` below the mount ``tree``, if that is there."""
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
            if problem.errno != errno.EINVAL:  # it has locked mounts, which must come along
                return  # it is closed to us


def mount_whole_sysfs() -> None:
    """Mount one of which nothing is covered: only who sees all of some sysfs may mount one in a
    user namespace of theirs. To be called when there is a /dev."""
    try:
        tree = syscalls.open_tree(uapi.AT_FDCWD, SYS, _CLONE)
    except OSError:
        return  # it has locked mounts: the kernel has refused a sysfs of our own
    place = os.open(WHOLE_SYSFS, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(tree, place)
    close_all([place, tree])
