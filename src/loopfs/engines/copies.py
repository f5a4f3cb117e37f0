"""The kernel's filesystems of which the sandbox has a version of its own, and copies of them."""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.lean import NamedTuple
from loopfs.uapi.stat import ST_VALID

SYSFS_ROOT_INO = 1  # fs/kernfs/dir.c
# f_flags of a view of ours, wherever it is mounted.
VIEW_FLAGS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_RELATIME | ST_VALID


class Place(NamedTuple):
    """The root of a filesystem: st_dev and inode number."""

    device: int
    ino: int

    @classmethod
    def of(cls, fd: int) -> Place:
        """Of an open directory, whose filesystem is asked nothing: nobody may serve it yet."""
        return cls(syscalls.statx_dev(fd), syscalls.descriptor_info(os.getpid(), fd).ino)


class Copies:
    """What statfs(2), mount(2) and umount(2) have to know of them.

    Args:
        magic: what statfs(2) says of what we serve in the place of a part of them: f_type by
            st_dev, which copies of a mount share.
        sysfs: st_dev of the sandbox's /sys; None where it is the caller's.
        dev: the sandbox's /dev, if it is a tmpfs with mounts in it.
        instance: the same if it is not.
    """

    def __init__(
        self,
        magic: dict[int, int] | None = None,
        sysfs: int | None = None,
        dev: Place | None = None,
        instance: Place | None = None,
    ) -> None:
        self.magic = magic or {}
        self.sysfs = frozenset(() if sysfs is None else (sysfs,))
        self.dev = dev
        self.instance = instance
        self.devs = frozenset(() if dev is None else (dev.device,))
        self.of_trees = False  # trees have been bound, and what is in them can be locked

    def add_sysfs(self, number: int) -> None:
        """There is another sysfs, of a user namespace within."""
        self.sysfs |= {number}

    def add_dev(self, number: int) -> None:
        """There is another /dev with mounts in it, of a sandbox within."""
        self.devs |= {number}

    def device_numbers(self) -> frozenset[int]:
        """st_dev of what has mounts of ours in it that its umount takes along."""
        return self.sysfs | self.devs
