"""A volume as a read-only FUSE filesystem."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import BinaryIO, ParamSpec, TypeVar

from loopfs.engines.embedded.volume import File, Volume
from loopfs.fuse.operations import Buffer, Entry, Operations, Statfs
from loopfs.fuse.session import Request
from loopfs.uapi.fuse import FOPEN_KEEP_CACHE, FUSE_ROOT_ID, Attr, encode_dev

VALID = 3600  # seconds for which the kernel may cache names: nothing changes

P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def _input() -> Iterator[None]:
    """Convert any exception of a parser to EIO."""
    try:
        yield
    except Exception:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) from None


def _reading(method: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _input():
            return method(*args, **kwargs)

    return wrapped


class ReadOnlyFilesystem(Operations):
    """A read-only filesystem. A file gets a permanent node id at its first lookup."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._files: dict[int, File] = {FUSE_ROOT_ID: volume.root}
        self._nodeids: dict[object, int] = {volume.root.key: FUSE_ROOT_ID}
        self._ids = count(FUSE_ROOT_ID + 1)
        self._names: dict[int, dict[bytes, tuple[bytes, File]]] = {}
        self._handles = count(1)
        self._open: dict[int, BinaryIO] = {}

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        found = self._children(parent).get(self._volume.fold(name))
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        nodeid = self._nodeid(found[1])
        return Entry(nodeid, self.getattr(nodeid), VALID)

    @_reading
    def _children(self, nodeid: int) -> dict[bytes, tuple[bytes, File]]:
        if nodeid not in self._names:
            fold, names = self._volume.fold, self._files[nodeid].names()
            self._names[nodeid] = {fold(name): (name, file) for name, file in names}
        return self._names[nodeid]

    @_reading
    def _nodeid(self, file: File) -> int:
        key = file.key
        if key not in self._nodeids:
            self._nodeids[key] = nodeid = next(self._ids)
            self._files[nodeid] = file
        return self._nodeids[key]

    @_reading
    def getattr(self, nodeid: int) -> Attr:
        inode = self._files[nodeid].inode()
        return Attr(
            inode.ino,
            inode.size,
            inode.mode,
            inode.nlink,
            inode.uid,
            inode.gid,
            encode_dev(os.major(inode.rdev), os.minor(inode.rdev)),
            inode.times,
            blocks=-(-inode.size // 512),
        )

    def readdir(self, request: Request, nodeid: int, handle: int) -> list[tuple[bytes, int, int]]:
        return [self._dirent(name, file) for name, file in self._children(nodeid).values()]

    @_reading
    def _dirent(self, name: bytes, file: File) -> tuple[bytes, int, int]:
        inode = file.inode()
        return name, inode.ino, stat.S_IFMT(inode.mode)

    @_reading
    def readlink(self, nodeid: int) -> bytes:
        return self._files[nodeid].target()

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        handle = next(self._handles)
        with _input():
            self._open[handle] = self._files[nodeid].open()
        return handle, FOPEN_KEEP_CACHE

    @_reading
    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        stream = self._open[handle]
        stream.seek(offset)
        return stream.read(size)

    def release(self, request: Request, handle: int) -> None:
        self._open.pop(handle).close()
        request.reply()

    def statfs(self) -> Statfs:
        block_size = self._volume.block_size
        return Statfs(block_size, 255, self._volume.size // block_size)
