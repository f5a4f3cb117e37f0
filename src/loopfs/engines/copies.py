"""The filesystems of which the sandbox has its own version (sysfs, devtmpfs), and their copies."""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.lean import NamedTuple
from loopfs.uapi.stat import ST_VALID

SYSFS_ROOT_INO = 1  # fs/kernfs/dir.c
# f_flags of one of our views, wherever it is mounted.
VIEW_FLAGS = os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_RELATIME | ST_VALID


class Place(NamedTuple):
    """The root of a filesystem: st_dev and inode number."""

    device: int
    ino: int

    @classmethod
    def of(cls, fd: int) -> Place:
        """Return that of an open directory, without a request to its server, which may not run
        yet."""
        return cls(syscalls.statx_dev(fd), syscalls.descriptor_info(os.getpid(), fd).ino)


class Copies:
    """The state that statfs(2), mount(2) and umount(2) need for them.

    Args:
        magic: the filesystem type that statfs(2) returns for our mounts in them, by st_dev, which
            copies of a mount share.
        sysfs: st_dev of the sandbox's /sys; None if it is the caller's.
        dev: the sandbox's /dev, if it is a tmpfs with mounts in it.
        instance: the sandbox's /dev, if it is an instance.
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
        self.of_trees = False  # trees of mounts were bind-mounted; the mounts in them can be locked

    def add_sysfs(self, number: int) -> None:
        """Add the sysfs of a nested user namespace."""
        self.sysfs |= {number}

    def add_dev(self, number: int) -> None:
        """Add the /dev, with mounts in it, of a nested sandbox."""
        self.devs |= {number}

    def device_numbers(self) -> frozenset[int]:
        """Return st_dev of the mounts whose unmount includes our mounts in them."""
        return self.sysfs | self.devs
