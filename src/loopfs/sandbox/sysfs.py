"""The sandbox's /sys: its lists of block devices are covered."""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.uapi import mount as uapi

# The directories, in /sys, that name block devices.
PLACES = ("block", "class/block", "dev/block", "devices/virtual/block")


def mount_views() -> dict[str, int]:
    """Cover each directory that is there; returns what it is to be served through."""
    fuses = {}
    flags = uapi.MS_NODEV | uapi.MS_NOSUID | uapi.MS_NOEXEC
    for place in PLACES:
        if not os.path.isdir(f"/sys/{place}"):
            continue
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
        syscalls.mount("sysfs", f"/sys/{place}", "fuse.sysfs", flags, data)
        fuses[place] = fuse
    return fuses
