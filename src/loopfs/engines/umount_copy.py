"""umount2(2) of copies of /sys and /dev, and of trees of mounts."""

from __future__ import annotations

import errno
import os

from loopfs import mountinfo, syscalls
from loopfs.mountinfo import Mount
from loopfs.sandbox.own_sysfs import attach
from loopfs.uapi import mount as uapi

PART_TYPES = ("sysfs", "fuse.sysfs")  # of the sandbox's mounts in its /sys
_CLONE = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC


def mount_table(own: int) -> list[Mount]:
    """Return the mounts of our mount namespace, below our root."""
    fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own)
    with open(fd, "rb") as file:
        return mountinfo.parse(file)


class Umount:
    """umount2(2) of a mount that can have mounts in it that its user does not know of.

    Args:
        own: our directory in a /proc in which we are visible.
        sysfs, devs: st_dev of the mounts that have them.
        of_trees: trees of mounts were bind-mounted, so that any mount can have them.
    """

    def __init__(
        self, own: int, sysfs: tuple[int, ...], devs: tuple[int, ...], of_trees: bool
    ) -> None:
        self._own = own
        self._sysfs = sysfs
        self._devs = devs
        self._of_trees = of_trees

    def concerns(self, number: int) -> bool:
        """Return whether a mount with this st_dev is to be unmounted by us."""
        return self._of_trees or number in self._devs or number in self._sysfs

    def __call__(self, name: str, flags: int) -> None:
        """Unmount what is at ``name`` in the working directory. Raises OSError as umount2(2).

        A locked mount in a tree that was bind-mounted is ignored until the tree is unmounted.
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
        """Return whether a mount is locked in a tree that was bind-mounted: the topmost mount of
        such a tree is not locked, and is not the root of the namespace either."""
        table = {each.mount_id: each for each in mount_table(self._own)}
        first = mount
        while (each := table.get(mount)) is not None:
            if not _is_locked(each.place):
                return mount != first and each.parent in table
            mount = each.parent
        return False


def _umount_with(name: str, flags: int, inner: list[str]) -> None:
    """Unmount what is at ``name`` and the ``inner`` mounts in it; nothing if one is busy.

    Args:
        inner: paths, each before those below it.
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
    """Return the mounts in our views: directories of the host's devices."""
    views = {each.mount_id for each in inner if each.fstype == PART_TYPES[1]}
    return [each for each in table if each.parent in views and each.fstype == PART_TYPES[0]]


def _is_locked(path: str) -> bool:
    """Return whether a mount is locked (MNT_LOCKED), which the kernel checks before its expiry
    mark.

    An access to the mount removes its mark, so that it does not expire because of this check.
    """
    _look_at(path)
    try:
        syscalls.umount2(path, uapi.MNT_EXPIRE | uapi.UMOUNT_NOFOLLOW)
    except OSError as problem:
        if problem.errno != errno.EAGAIN:  # EAGAIN: it had no mark
            return problem.errno == errno.EINVAL
    _look_at(path)
    return False


def _look_at(path: str) -> None:
    os.close(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
