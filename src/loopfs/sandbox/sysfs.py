"""The sandbox's /sys and /proc: their lists of block devices are covered."""

from __future__ import annotations

import os
import stat

from loopfs import syscalls
from loopfs.uapi import mount as uapi

# The directories, in /sys, that name block devices.
PLACES = ("block", "class/block", "dev/block", "devices/virtual/block")
PARTITIONS = "/proc/partitions"
WHOLE_PROC = "/dev/.loopfs/proc"  # as LXC has in /dev/.lxc, for the same reason


def mount_views() -> dict[str, int]:
    """Cover each of them that is there; returns what it is to be served through."""
    places = {place: ("sysfs", f"/sys/{place}", stat.S_IFDIR) for place in PLACES}
    places[PARTITIONS] = "proc", PARTITIONS, stat.S_IFREG
    flags = uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
    fuses = {}
    for place, (source, path, kind) in places.items():
        if not os.path.exists(path):
            continue
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = "user_id=0,group_id=0,allow_other,default_permissions"
        data = f"fd={fuse},rootmode={kind:o},{options}"
        syscalls.mount(source, path, f"fuse.{source}", flags, data)
        fuses[place] = fuse
    return fuses


def mount_proc() -> None:
    """Mount a /proc of this pid namespace, with the list of block devices that the old one has.

    In a container whose /proc is covered the kernel refuses: the sandbox goes on with the old one.
    """
    flags = uapi.MS_NOSUID | uapi.MS_NODEV | uapi.MS_NOEXEC
    clone = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    covered = _device(PARTITIONS) not in (None, _device("/proc"))
    view = syscalls.open_tree(uapi.AT_FDCWD, PARTITIONS, clone) if covered else None
    try:
        # Only who sees all of some /proc may mount one in a user namespace of theirs.
        os.makedirs(WHOLE_PROC, 0o700)
        for path in (WHOLE_PROC, "/proc"):
            syscalls.mount("proc", path, "proc", flags, None)
    except PermissionError:
        return
    if view is not None:
        place = os.open(PARTITIONS, os.O_PATH | os.O_CLOEXEC)
        syscalls.move_mount(view, place)


def _device(path: str) -> int | None:
    try:
        return syscalls.statx_dev(uapi.AT_FDCWD, path)
    except FileNotFoundError:
        return None
