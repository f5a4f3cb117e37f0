"""What a parser has to tell of a filesystem."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

Times = tuple[int, int, int]  # access, modification, change: nanoseconds since the epoch


class Inode(NamedTuple):
    """The attributes of a file; ``size`` in bytes, ``rdev`` as makedev(3) gives it."""

    ino: int
    mode: int
    size: int
    times: Times
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0


class File(Protocol):
    """A file of any kind. Whatever a method raises, the caller is told EIO."""

    @property
    def key(self) -> object:
        """The same for all names of the file, and for no other."""

    def inode(self) -> Inode: ...

    def names(self) -> Iterator[tuple[bytes, File]]:
        """What a directory holds, without "." and ".."."""

    def target(self) -> bytes:
        """Where a symbolic link leads."""

    def open(self) -> BinaryIO:
        """The data of a regular file."""


def _as_it_is(name: bytes) -> bytes:
    return name


class Volume(NamedTuple):
    """A filesystem: its root, its size and that of its blocks in bytes.

    ``fold`` makes names alike that mean the same file.
    """

    root: File
    size: int
    block_size: int
    fold: Callable[[bytes], bytes] = _as_it_is


class Ownership(NamedTuple):
    """Of filesystems that know none: the options uid=, gid=, umask=, fmask= and dmask=."""

    uid: int = 0
    gid: int = 0
    fmask: int = 0o022
    dmask: int = 0o022

    @classmethod
    def of_options(cls, options: list[str]) -> Ownership:
        """Raises ValueError for what is no number."""
        values = dict(option.split("=", 1) for option in options if "=" in option)
        umask = values.get("umask", "022")
        return cls(
            int(values.get("uid", "0")),
            int(values.get("gid", "0")),
            int(values.get("fmask", umask), 8),
            int(values.get("dmask", umask), 8),
        )

    def directory(self, ino: int, size: int, times: Times) -> Inode:
        mode = stat.S_IFDIR | 0o777 & ~self.dmask
        return Inode(ino, mode, size, times, uid=self.uid, gid=self.gid)

    def regular(self, ino: int, size: int, times: Times, *, writable: bool = True) -> Inode:
        mode = stat.S_IFREG | (0o777 if writable else 0o555) & ~self.fmask
        return Inode(ino, mode, size, times, uid=self.uid, gid=self.gid)
