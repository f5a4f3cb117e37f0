"""Making fuse2fs write its cached blocks.

libext2fs 1.47 caches some blocks. fuse2fs writes all of them and syncs its device only when a file
that is open for writing is synced: not for a directory, nor for a file that is open read-only; and
it is not informed of a sync of the whole filesystem (op_fsync). There is no option to change that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque

from loopfs.channel import close_all

_LOOKED_AT = 1000  # maximum number of directory entries to examine
_WAITING = 50  # maximum number of open directories
_NEW = ".loopfs-sync-%d"
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_THIS_ONE = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,  # a lease
        errno.ELOOP,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,  # chattr +i
        errno.EROFS,  # the caller's mount
        errno.ETXTBSY,
    }
)


def flush(root: int, own: int | None) -> None:
    """Make a fuse2fs write everything to its device and sync it.

    Args:
        root: a descriptor of the filesystem's root, on a writable mount.
        own: an open file or directory in it, the first candidate to open.
    Raises:
        OSError: an error of fuse2fs; ENOSPC if there is no file, and no room for one.
    """
    file = _open_some_file(root, own)
    name = None
    if file is None:
        name = _NEW % os.getpid()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = os.open(name, flags, 0o600, dir_fd=root)
        except OSError as problem:
            if problem.errno != errno.EROFS:
                raise
            return  # an error is recorded in the superblock: fuse2fs does not write then
    try:
        os.fsync(file)
    finally:
        os.close(file)
        if name is not None:
            os.unlink(name, dir_fd=root)


def _open_some_file(root: int, own: int | None) -> int | None:
    """Open a file that is not executable, since a program cannot be run while open for writing."""
    directories = deque([os.dup(root)])
    try:
        if own is not None:
            mode = os.fstat(own).st_mode
            if stat.S_ISDIR(mode):
                directories.appendleft(os.open(".", os.O_RDONLY | os.O_CLOEXEC, dir_fd=own))
            elif _will_do(mode):
                file = _open(f"/proc/self/fd/{own}", _FLAGS & ~os.O_NOFOLLOW, None)
                if file is not None:
                    return file
        left = _LOOKED_AT
        while directories and left > 0:
            directory = directories.popleft()
            try:
                file, looked_at = _open_one_in(directory, left, directories)
            finally:
                os.close(directory)
            if file is not None:
                return file
            left -= looked_at
        return None
    finally:
        close_all(list(directories))


def _open_one_in(directory: int, left: int, found: deque[int]) -> tuple[int | None, int]:
    """Open a file in a directory; return it or None, and the number of entries that were examined.
    Directories in it are opened and appended to ``found``."""
    looked_at = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if looked_at == left:
                break
            looked_at += 1
            try:
                mode = entry.stat(follow_symlinks=False).st_mode
            except FileNotFoundError:
                continue  # removed in the meantime
            if _will_do(mode):
                file = _open(entry.name, _FLAGS, directory)
                if file is not None:
                    return file, looked_at
            elif stat.S_ISDIR(mode) and len(found) < _WAITING:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                inner = _open(entry.name, flags, directory)
                if inner is not None:
                    found.append(inner)
    return None, looked_at


def _will_do(mode: int) -> bool:
    return stat.S_ISREG(mode) and not mode & 0o111


def _open(path: str, flags: int, directory: int | None) -> int | None:
    try:
        return os.open(path, flags, dir_fd=directory)
    except OSError as problem:
        if problem.errno in _NOT_THIS_ONE:
            return None
        raise
