"""Cover the lists of block devices in the sandbox's /sys and /proc by the views."""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.sandbox.proc import PARTITIONS
from loopfs.uapi import mount as uapi

# The directories of /sys that list block devices.
PLACES = ("block", "class/block", "dev/block", "devices/virtual/block")
DEVICES = "devices/virtual/block"
# The view of DEVICES without the host's mounts in it: a tree with locked mounts cannot be bound in
# a descendant user namespace.
DEVICES_ALONE = "/dev/.loopfs/block"
MOST_HOSTS = 64  # the maximum number of the host's devices whose directories are mounted
MAX_LOOP = "module/loop/parameters/max_loop"  # a file; exists if the host has the loop driver


def mount_views() -> dict[str, tuple[int, int]]:
    """Mount a view on each existing place; return its st_dev and its /dev/fuse."""
    places = {place: ("sysfs", f"/sys/{place}", stat.S_IFDIR) for place in PLACES}
    places[MAX_LOOP] = "sysfs", f"/sys/{MAX_LOOP}", stat.S_IFREG
    places[PARTITIONS] = "proc", PARTITIONS, stat.S_IFREG
    flags = uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
    fuses = {}
    for place, (source, path, kind) in places.items():
        if not os.path.exists(path):
            continue
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = "user_id=0,group_id=0,allow_other"
        if place != MAX_LOOP:  # it checks permissions itself
            options += ",default_permissions"
        data = f"fd={fuse},rootmode={kind:o},{options}"
        syscalls.mount(source, path, f"fuse.{source}", flags, data)
        fuses[place] = syscalls.statx_dev(uapi.AT_FDCWD, path), fuse
    return fuses


def keep_hosts(*, loops: bool) -> dict[str, int]:
    """Clone the directories of the host's devices that will be covered: names, and detached mounts.
    Attributes in them are read from the kernel, which is much faster than through the view.

    Args:
        loops: include those of loop devices.
    """
    try:
        names = sorted(os.listdir(f"/sys/{DEVICES}"))
    except FileNotFoundError:
        return {}
    flags = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    kept: dict[str, int] = {}
    for name in names:
        if (name.startswith("loop") and not loops) or not _is_plain(name):
            continue
        if len(kept) == MOST_HOSTS:
            break
        with suppress(OSError):  # it is gone, or has locked mounts: the view shows it
            kept[name] = syscalls.open_tree(uapi.AT_FDCWD, f"/sys/{DEVICES}/{name}", flags)
    return kept


def _is_plain(name: str) -> bool:
    return name.replace("-", "").replace("_", "").isalnum()  # can be part of messages.SERVE


def place_hosts(kept: dict[str, int]) -> None:
    """Mount them in the view, which must be served, as must /dev.

    Args:
        kept: see :func:`keep_hosts`; closed.
    """
    if not kept:
        return
    flags = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    alone = syscalls.open_tree(uapi.AT_FDCWD, f"/sys/{DEVICES}", flags)
    place = os.open(DEVICES_ALONE, os.O_PATH | os.O_CLOEXEC)
    syscalls.move_mount(alone, place)
    close_all([place, alone])
    for name, tree in kept.items():
        place = os.open(f"/sys/{DEVICES}/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        syscalls.move_mount(tree, place)
        close_all([place, tree])


def described(views: dict[str, tuple[int, int]], own: bool) -> str:
    """Encode the views for messages.MOUNTED: words PLACE=ST_DEV; if /sys is the sandbox's own, it
    is the first, with an empty PLACE."""
    numbers = {place: number for place, (number, _) in views.items()}
    if own:
        numbers = {"": syscalls.statx_dev(uapi.AT_FDCWD, "/sys")} | numbers
    return " ".join(f"{place}={number}" for place, number in numbers.items())


def understood(words: str) -> tuple[int | None, dict[str, int]]:
    """Decode :func:`described`: st_dev of /sys, if it is the sandbox's own, and of each view."""
    pairs = (word.rpartition("=") for word in words.split())
    numbers = {place: int(number) for place, _, number in pairs}
    return numbers.pop("", None), numbers
