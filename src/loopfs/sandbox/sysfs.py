"""The lists of block devices in the sandbox's /sys and /proc are covered."""

from __future__ import annotations

import os
import stat

from loopfs import syscalls
from loopfs.sandbox.proc import PARTITIONS
from loopfs.uapi import mount as uapi

# The directories, in /sys, that name block devices.
PLACES = ("block", "class/block", "dev/block", "devices/virtual/block")


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
