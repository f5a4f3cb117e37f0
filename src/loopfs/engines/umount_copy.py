"""umount2(2) of copies of /sys and /dev, and of trees of mounts."""

from __future__ import annotations

import errno
import os

from loopfs import mountinfo, syscalls
from loopfs.mountinfo import Mount
from loopfs.sandbox.own_sysfs import attach
from loopfs.uapi import mount as uapi

PART_TYPES = ("sysfs", "fuse.sysfs")  # of what the sandbox has mounted in its /sys
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC


def mount_table(own: int) -> list[Mount]:
    """The mounts of the namespace that we are in, below our root."""
    fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own)
    with open(fd, "rb") as file:
        return mountinfo.parse(file)


class Umount:
    """umount2(2) of what can have mounts in it that are no mounts to its user.

    Args:
        own: our directory in a /proc that shows us.
        sysfs, devs: st_dev of what has them.
        of_trees: and so can all others have, for trees of mounts have been bound.
    """

    def __init__(
        self, own: int, sysfs: tuple[int, ...], devs: tuple[int, ...], of_trees: bool
    ) -> None:
        self._own = own
        self._sysfs = sysfs
        self._devs = devs
        self._of_trees = of_trees

    def concerns(self, number: int) -> bool:
        """It is for us to unmount what has this st_dev."""
        return self._of_trees or number in self._devs or number in self._sysfs

    def __call__(self, name: str, flags: int) -> None:
        """Unmount what is at ``name`` in the working directory. Raises OSError as umount2(2).

        What is locked in a tree that was bound is left for the umount of the tree.
        """
        number = syscalls.statx_dev(uapi.AT_FDCWD, name)
        mount = syscalls.mount_id(uapi.AT_FDCWD, name)
        try:
            syscalls.umount2(name, flags)
            return
        except OSError as problem:
            if problem.errno == errno.EINVAL:
                here = syscalls.mount_id(uapi.AT_FDCWD, ".")
                if not os.path.islink(name) and mount != here and self._is_part(mount):
                    return
                raise
            if problem.errno != errno.EBUSY:
                raise
            busy = problem
        table = mount_table(self._own)
        inner = [each for each in table if each.parent == mount]
        inner += _devices_in(inner, table)
        parents = {each.parent for each in table if each not in inner}
        ends = parents.isdisjoint(each.mount_id for each in inner)
        are_parts = all(each.fstype in PART_TYPES for each in inner)
        locked = bool(inner) and all(_is_locked(each.place) for each in inner)
        if locked or (inner and ends and number in self._devs):
            syscalls.umount2(name, flags | uapi.MNT_DETACH)
        elif inner and ends and are_parts and number in self._sysfs:
            _umount_with(name, flags, [each.place for each in inner])
        else:
            raise busy

    def _is_part(self, mount: int) -> bool:
        """A mount is locked, in a tree that was bound: the topmost of these is not locked, and
        neither is it the root of the namespace."""
        table = {each.mount_id: each for each in mount_table(self._own)}
        first = mount
        while (each := table.get(mount)) is not None:
            if not _is_locked(each.place):
                return mount != first and each.parent in table
            mount = each.parent
        return False


def _umount_with(name: str, flags: int, inner: list[str]) -> None:
    """Unmount what is at ``name`` and has ``inner`` mounts, or nothing of it if one is busy.

    Args:
        inner: places, each before those that are in it.
    """
    taken: dict[str, int] = {}
    try:
        for place in reversed(inner):
            clone = syscalls.open_tree(uapi.AT_FDCWD, place, _CLONE)
            taken[place] = clone
            syscalls.umount2(place, uapi.UMOUNT_NOFOLLOW)
        syscalls.umount2(name, flags)
    except OSError:
        for place, clone in reversed(taken.items()):
            if not os.path.ismount(place):
                attach(uapi.AT_FDCWD, place, clone)
        raise


def _devices_in(inner: list[Mount], table: list[Mount]) -> list[Mount]:
    """What a view of ours has mounted in it: directories of the host's devices."""
    views = {each.mount_id for each in inner if each.fstype == PART_TYPES[1]}
    return [each for each in table if each.parent in views and each.fstype == PART_TYPES[0]]


def _is_locked(path: str) -> bool:
    """MNT_LOCKED, of which the kernel speaks before it looks whether a mount has expired.

    Who looks at the mount removes its mark, so that it does not expire because of us.
    """
    _look_at(path)
    try:
        syscalls.umount2(path, uapi.MNT_EXPIRE | uapi.UMOUNT_NOFOLLOW)
    except OSError as problem:
        if problem.errno != errno.EAGAIN:  # there is no mark
            return problem.errno == errno.EINVAL
    _look_at(path)
    return False


def _look_at(path: str) -> None:
    os.close(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
