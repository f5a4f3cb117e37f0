"""Engines: programs that serve the filesystem on a device through FUSE.

A program is told the device, where to mount and the options, and serves in the foreground
until its filesystem is unmounted. Which one serves what is said by
:mod:`loopfs.engines.policy`.
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

# Filesystems that never can be written: the kernel mounts them for reading whatever is asked.
# Of all others it is EACCES, on which mount(8) warns and tries again for reading.
NEVER_WRITTEN = frozenset({"squashfs", "erofs"})


class NoEngine(LoopfsError):
    """Nothing here mounts a type: the errno for the workload, the sentence for the person."""


class Mounter(NamedTuple):
    """What a filesystem without owners takes from who mounts it: ids and umask; and what
    reading changes: MS_NOATIME, MS_NODIRATIME, MS_STRICTATIME of the mount."""

    uid: int
    gid: int
    umask: int
    atime: int


class Launch(NamedTuple):
    """What an engine is started for.

    Args:
        device: a path; mountinfo shows it as the source.
        options: those of the program.
        caller: who mounts.
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
        """The argument of -o for a program that uses libfuse."""
        words = (
            f"subtype={self.fstype}",
            "allow_other,default_permissions,suid,dev",
            "ro" if self.read_only else "rw",
        )
        return ",".join((*words, *more, *self.options))


class Served(NamedTuple):
    """What a running engine has, as its job tells it.

    Args:
        device: st_dev of the instance and the node's inode number.
        pid: its own.
        superblock: st_dev of its filesystem.
    """

    device: tuple[int, int]
    fstype: str
    read_only: bool
    pid: int
    superblock: int


class Wanted(NamedTuple):
    """What a job asks the supervisor to serve: a device for an engine.

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
    """Where a program lies on :data:`SEARCH_PATH`."""
    paths = (f"{place}/{name}" for place in SEARCH_PATH.split(":"))
    return next((path for path in paths if os.access(path, os.X_OK)), None)


def program(name: str, package: str) -> Callable[[str], str | None]:
    """:attr:`Engine.missing` of a program on :data:`SEARCH_PATH`, which a package of Debian has."""

    def missing(fstype: str) -> str | None:
        if find_program(name):
            return None
        return f"{name} is not installed; install the package {package}"

    return missing


Check = Callable[[int, str], None]
Extent = Callable[[int], tuple[int, int]]
Serve = Callable[[int], None]  # until nothing of it is mounted; what is given is a /dev/fuse


def whole(device: int) -> tuple[int, int]:
    """The bytes of an open device, from the first to the last: a filesystem may use all."""
    return 0, os.lseek(device, 0, os.SEEK_END)


class Engine(NamedTuple):
    """One of them.

    Args:
        name: how the policy calls it.
        missing: for a type, what to do where it is not installed; else None.
        types: the filesystem types that it serves.
        options: of the filesystem (as its driver or mount(8) documents them), and what the
            program has for them: "" for those that change nothing here. A name that ends in
            "=" stands for any value, which is passed on.
        command: its command line.
        check: given the open device and the type, refuses (OSError) what the kernel's driver
            would refuse.
        writes: it can.
        environment: given the open device, variables for the program.
        extent: given the open device, the bytes of it that the filesystem uses, which nobody
            else may write: the first, and the one after the last.
        prepare: given the file of a device, what is to serve it from the process that asks, without
            a program. Raises OSError for what it refuses. None for a program of others.
        modules: what ``check`` needs, which is imported before the caller's root is entered.
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
        """The data argument of mount(2) as the program's options.

        Raises:
            OSError: EINVAL for an option that is neither in the table nor one of the type's
                driver that changes nothing.
        """
        dropped = self.without_effect(data, fstype)
        options = [each for each in data.split(",") if each and each not in dropped]
        return tuple(filter(None, map(self._translated, options)))

    def without_effect(self, data: str, fstype: str) -> tuple[str, ...]:
        """Of those options which only the type's driver in the kernel has a use for."""
        options = filter(None, data.split(","))
        return tuple(
            each for each in options if not self._knows(each) and is_without_effect(fstype, each)
        )

    def _knows(self, option: str) -> bool:
        key, equals, _ = option.partition("=")
        return option in self.options or (bool(equals) and key + equals in self.options)

    def has_option(self, key: str) -> bool:
        """Some value of the option ``key``, or none, is in the table."""
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
        """Whether it mounts for reading, given what was asked for.

        Raises:
            OSError: EACCES: it cannot write, and the type's driver could.
        """
        if self.writes or asked or fstype in NEVER_WRITTEN:
            return asked or not self.writes
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
