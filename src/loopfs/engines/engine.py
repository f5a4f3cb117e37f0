"""Engines: programs that serve the filesystem on a device through FUSE.

A program is started with the device, the mount point and the options, and serves in the foreground
until its filesystem is unmounted. :mod:`loopfs.engines.policy` chooses the engine of a type.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping

from loopfs.engines.options import is_without_effect
from loopfs.errors import LoopfsError
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.engines.lent import Lent

BLKID = "loopfs.filesystems.blkid"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Filesystems that cannot be written at all: the kernel always mounts them read-only. For all other
# types a mount fails with EACCES if writing is not possible; mount(8) then prints a warning and
# tries again read-only.
NEVER_WRITTEN = frozenset({"squashfs", "erofs"})


class NoEngine(LoopfsError):
    """No engine can mount a type. It has an errno for the workload and a message for the person."""


class Mounter(NamedTuple):
    """What a filesystem without owners takes from the process that mounts it: ids and umask; and
    the flags for access times: MS_NOATIME, MS_NODIRATIME, MS_STRICTATIME of the mount."""

    uid: int
    gid: int
    umask: int
    atime: int


class Launch(NamedTuple):
    """The parameters with which an engine is started.

    Args:
        device: a path; mountinfo shows it as the source.
        options: options of the program.
        caller: the process that mounts.
        sb_flags: MS_SYNCHRONOUS, MS_DIRSYNC of the mount.
    """

    device: str
    mountpoint: str
    fstype: str
    options: tuple[str, ...]
    read_only: bool
    caller: Mounter
    sb_flags: int = 0

    def fuse_options(self, *more: str) -> str:
        """Return the argument of -o for a program that uses libfuse."""
        words = (
            f"subtype={self.fstype}",
            "allow_other,default_permissions,suid,dev",
            "ro" if self.read_only else "rw",
        )
        return ",".join((*words, *more, *self.options))


class Served(NamedTuple):
    """The filesystem of a running engine, as reported by its job.

    Args:
        device: st_dev of the instance and the node's inode number.
        pid: the engine's process id.
        superblock: st_dev of its filesystem.
    """

    device: tuple[int, int]
    fstype: str
    read_only: bool
    pid: int
    superblock: int


class Wanted(NamedTuple):
    """A job's request to serve a device for an engine.

    Args:
        instance, ino: st_dev of the instance and the node's inode number.
        start, end: the bytes of the device that the filesystem uses.
    """

    instance: int
    ino: int
    read_only: bool
    start: int
    end: int


def find_program(name: str) -> str | None:
    """Return the path of a program on :data:`SEARCH_PATH`, or None."""
    paths = (f"{place}/{name}" for place in SEARCH_PATH.split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def program(name: str, package: str) -> Callable[[str], str | None]:
    """Return :attr:`Engine.missing` for a program on :data:`SEARCH_PATH` and its Debian package."""

    def missing(fstype: str) -> str | None:
        if find_program(name):
            return None
        return f"{name} is not installed; install the package {package}"

    return missing


Check = Callable[[int, str], None]
Extent = Callable[[int], tuple[int, int]]
Serve = Callable[[int], None]  # serves a /dev/fuse until it is unmounted


def whole(device: int) -> tuple[int, int]:
    """Return all bytes of an open device: the filesystem may use the whole device."""
    return 0, os.lseek(device, 0, os.SEEK_END)


class Engine(NamedTuple):
    """An engine.

    Args:
        name: its name in the policy.
        missing: returns for a type what to do if the engine is not installed, else None.
        types: the filesystem types that it serves.
        options: maps mount options (as documented for the driver or in mount(8)) to options of the
            program; "" for those that have no effect here. A name that ends in "=" stands for any
            value, which is passed on.
        command: returns its command line.
        check: is called with the open device and the type; raises OSError for a filesystem that
            the kernel's driver would refuse.
        writes: whether it can write.
        environment: returns variables for the program, for the open device.
        extent: returns the bytes of the open device that the filesystem uses, which no other
            process may write: the first, and the one after the last.
        prepare: returns a function that serves the filesystem from the calling process, for the
            backing file of a device. Raises OSError to refuse. None for an external program.
        modules: modules that ``check`` needs, imported before the caller's root is entered.
    """

    name: str
    missing: Callable[[str], str | None]
    types: frozenset[str]
    options: Mapping[str, str]
    command: Callable[[Launch], list[str]]
    check: Check
    writes: bool = True
    environment: Callable[[int], dict[str, str]] = lambda device: {}
    extent: Extent = whole
    prepare: Callable[[Lent, Launch], Serve] | None = None
    modules: tuple[str, ...] = (BLKID,)

    def translated(self, data: str, fstype: str = "") -> tuple[str, ...]:
        """Convert the data argument of mount(2) to options of the program.

        Raises:
            OSError: EINVAL for an option that is neither in the table nor an option of the type's
                driver that has no effect here.
        """
        dropped = self.without_effect(data, fstype)
        options = [each for each in data.split(",") if each and each not in dropped]
        return tuple(filter(None, map(self._translated, options)))

    def without_effect(self, data: str, fstype: str) -> tuple[str, ...]:
        """Return the options that only have an effect in the kernel's driver."""
        options = filter(None, data.split(","))
        return tuple(
            each for each in options if not self._knows(each) and is_without_effect(fstype, each)
        )

    def _knows(self, option: str) -> bool:
        key, equals, _ = option.partition("=")
        return option in self.options or (bool(equals) and key + equals in self.options)

    def has_option(self, key: str) -> bool:
        """Return whether the option ``key``, with any value or without, is in the table."""
        return any(option.partition("=")[0] == key for option in self.options)

    def _translated(self, option: str) -> str:
        if option == "defaults":
            return ""
        if option in self.options:
            return self.options[option]
        key, equals, value = option.partition("=")
        word = self.options.get(key + equals) if equals else None
        if word is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return word and word + value

    def read_only(self, fstype: str, asked: bool) -> bool:
        """Return whether a mount is read-only, given what was requested.

        Raises:
            OSError: EACCES if the engine cannot write, but the kernel's driver could.
        """
        if self.writes or asked or fstype in NEVER_WRITTEN:
            return asked or not self.writes
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
