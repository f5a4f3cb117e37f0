"""The interface between a parser and the embedded engine."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

Times = tuple[int, int, int]  # access, modification, change: nanoseconds since the epoch


class Inode(NamedTuple):
    """The attributes of a file; ``size`` is in bytes, ``rdev`` as returned by makedev(3)."""

    ino: int
    mode: int
    size: int
    times: Times
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    rdev: int = 0


class File(Protocol):
    """A file of any type. Any exception of a method becomes EIO."""

    @property
    def key(self) -> object:
        """A key that is the same for all names of the file, and differs from that of others."""

    def inode(self) -> Inode: ...

    def names(self) -> Iterator[tuple[bytes, File]]:
        """Iterate over the entries of a directory, without "." and ".."."""

    def target(self) -> bytes:
        """Return the target of a symbolic link."""

    def open(self) -> BinaryIO:
        """Open the data of a regular file."""


def _as_it_is(name: bytes) -> bytes:
    return name


class Volume(NamedTuple):
    """A filesystem: its root, its size and its block size in bytes.

    ``fold`` maps all names of a file, for example in upper and lower case, to the same key.
    """

    root: File
    size: int
    block_size: int
    fold: Callable[[bytes], bytes] = _as_it_is


class Ownership(NamedTuple):
    """Owner and modes on a filesystem without them: uid=, gid=, umask=, fmask= and dmask=."""

    uid: int = 0
    gid: int = 0
    fmask: int = 0o022
    dmask: int = 0o022

    @classmethod
    def of_options(cls, options: list[str]) -> Ownership:
        """Return those of mount options. Raises ValueError if a value is not a number."""
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
