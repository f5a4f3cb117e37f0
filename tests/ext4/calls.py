"""Requests done by system calls, in the directory of a mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.ext4.requests import Request

RDWR = os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW
RDONLY = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
GETFLAGS, SETFLAGS = 0x80086601, 0x40086602
_AT_FDCWD, _MAP_MOST = -100, 1 << 22
_VISIBLE = 0x000330F8  # of FS_IOC_GETFLAGS; not extents, index and inline data
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def _check(result: int) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@contextmanager
def opened(path: str, flags: int, mode: int = 0o640) -> Iterator[int]:
    """A descriptor, for a while."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _as_user(uid: int) -> Iterator[None]:
    if uid:
        os.setegid(uid)
        os.seteuid(uid)
    try:
        yield
    finally:
        if uid:
            os.seteuid(0)
            os.setegid(0)


def digest(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def described(path: str) -> tuple[object, ...]:
    """What stat(2) says that two filesystems agree about."""
    s = os.lstat(path)
    size = s.st_size if not os.path.isdir(path) or os.path.islink(path) else 0
    return s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, size


class Calls:
    """System calls below a directory.

    Args:
        holes: where files have holes can be compared.
    """

    def __init__(self, root: str, *, holes: bool) -> None:
        self._root = root
        self._holes = holes
        self._open: list[int] = []

    def perform(self, request: Request) -> object:
        """What it returns, or the errno as a negative number."""
        method: Callable[[Request, str, str], object] = getattr(self, f"_{request.kind}")
        try:
            with _as_user(request.user):
                return method(request, self._root + request.path, self._root + request.to)
        except OSError as problem:
            return -(problem.errno or 0)

    def close(self) -> None:
        """Close what is still open."""
        while self._open:
            os.close(self._open.pop())

    # --- files ---------------------------------------------------------------------

    def _create(self, request: Request, path: str, to: str) -> object:
        flags = os.O_EXCL if request.flag == 1 else os.O_TRUNC if request.flag == 2 else 0
        with opened(path, RDWR | os.O_CREAT | flags, request.number & 0o7777) as fd:
            return os.pwrite(fd, request.data, 0)

    def _write(self, request: Request, path: str, to: str) -> object:
        with opened(path, RDWR | os.O_CREAT) as fd:
            done = os.pwrite(fd, request.data, request.offset)
            if request.number % 10 == 0:
                os.fsync(fd)
            return done

    def _append(self, request: Request, path: str, to: str) -> object:
        with opened(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_APPEND) as fd:
            return os.write(fd, request.data), os.fstat(fd).st_size

    def _read(self, request: Request, path: str, to: str) -> object:
        with opened(path, RDONLY) as fd:
            return digest(os.pread(fd, request.length, request.offset))

    def _truncate(self, request: Request, path: str, to: str) -> None:
        if request.flag:
            os.truncate(path, request.offset)
            return
        with opened(path, RDWR) as fd:
            os.ftruncate(fd, request.offset)

    def _fallocate(self, request: Request, path: str, to: str) -> object:
        with opened(path, RDWR) as fd:
            _check(_libc.fallocate(fd, request.flag, request.offset, request.length))
            return os.fstat(fd).st_size

    def _seek(self, request: Request, path: str, to: str) -> object:
        """Where there is data; the kernel's has delayed allocation: so it is synced."""
        if not self._holes:
            return None
        with opened(path, RDONLY) as fd:
            if stat.S_ISDIR(os.fstat(fd).st_mode):  # an indexed one has no size for the kernel's
                return None
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # cached zeros are data to it
            whence = os.SEEK_DATA if request.flag else os.SEEK_HOLE
            return os.lseek(fd, request.offset, whence)

    def _fsync(self, request: Request, path: str, to: str) -> None:
        with opened(path, RDONLY) as fd:
            (os.fdatasync if request.flag else os.fsync)(fd)

    def _map(self, request: Request, path: str, to: str) -> object:
        with opened(path, RDWR) as fd:
            size = os.fstat(fd).st_size
            if not 0 < size < _MAP_MOST:
                return size
            with mmap.mmap(fd, size) as view:
                at = request.offset % size
                piece = request.data[: size - at]
                view[at : at + len(piece)] = piece
                view.flush()
                return digest(bytes(view))

    def _copy(self, request: Request, path: str, to: str) -> object:
        with opened(path, RDONLY) as fd, opened(to, RDWR | os.O_CREAT) as target:
            if os.path.samestat(os.fstat(fd), os.fstat(target)):
                return None
            return os.copy_file_range(fd, target, request.length, request.offset, request.offset)

    def _huge(self, request: Request, path: str, to: str) -> object:
        """Sizes at the limits; the file goes at once."""
        with opened(path, RDWR | os.O_CREAT | os.O_EXCL) as fd:
            os.unlink(path)
            found: list[object] = []
            for act in (
                lambda: os.ftruncate(fd, request.number),
                lambda: os.pwrite(fd, b"end", request.number - 3 - request.offset % 7),
                lambda: os.fstat(fd).st_size,
                lambda: digest(os.pread(fd, 9000, max(os.fstat(fd).st_size - 9000, 0))),
            ):
                try:
                    found.append(act())
                except OSError as problem:
                    found.append(-(problem.errno or 0))
            return found

    # --- files without a name ----------------------------------------------------------

    def _tmpfile(self, request: Request, path: str, to: str) -> object:
        with opened(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, request.number & 0o777) as fd:
            done = os.pwrite(fd, request.data, request.offset)
            if request.flag:
                os.link(f"/proc/self/fd/{fd}", to, follow_symlinks=True)
            s = os.fstat(fd)
            return done, s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_size

    def _unlinked(self, request: Request, path: str, to: str) -> object:
        fd = os.open(path, RDWR | os.O_CREAT, 0o600)
        self._open.append(fd)
        os.unlink(path)
        os.pwrite(fd, b"q" * 9000, request.offset)
        return os.fstat(fd).st_size, os.fstat(fd).st_nlink

    def _use_open(self, request: Request, path: str, to: str) -> object:
        if not self._open:
            return None
        fd = self._open[request.number % len(self._open)]
        os.pwrite(fd, request.data, request.offset)
        s = os.fstat(fd)
        found = s.st_size, s.st_nlink, s.st_mode, digest(os.pread(fd, 1 << 20, 0))
        if len(self._open) > 6 or request.flag == 2:
            self._open.remove(fd)
            os.close(fd)
        return found

    # --- names -----------------------------------------------------------------------------

    def _rename(self, request: Request, path: str, to: str) -> None:
        names = os.fsencode(path), os.fsencode(to)
        _check(_libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], request.flag))

    def _link(self, request: Request, path: str, to: str) -> None:
        os.link(path, to, follow_symlinks=False)

    def _symlink(self, request: Request, path: str, to: str) -> None:
        times = 40 if request.flag == 8 else 1 + request.number % 3
        os.symlink(request.to[1:] * times, path)

    def _readlink(self, request: Request, path: str, to: str) -> object:
        return os.readlink(path)

    def _mkdir(self, request: Request, path: str, to: str) -> None:
        os.mkdir(path, request.number & 0o777 | 0o100)

    def _unlink(self, request: Request, path: str, to: str) -> None:
        os.unlink(path)

    def _rmdir(self, request: Request, path: str, to: str) -> None:
        os.rmdir(path)

    def _mknod(self, request: Request, path: str, to: str) -> None:
        device = os.makedev(request.offset & 0x3FF, request.length)
        os.mknod(path, request.number, device)

    def _list(self, request: Request, path: str, to: str) -> object:
        with os.scandir(os.path.dirname(path)) as entries:
            return sorted(
                (e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries
            )

    # --- inodes ------------------------------------------------------------------------------

    def _stat(self, request: Request, path: str, to: str) -> object:
        return described(path)

    def _chmod(self, request: Request, path: str, to: str) -> object:
        os.chmod(path, request.number)
        return described(path)

    def _chown(self, request: Request, path: str, to: str) -> object:
        ids = request.number * 70, request.number
        uid, gid = (-1 if request.flag == n else one for n, one in enumerate(ids, 1))
        os.lchown(path, uid, gid)
        return described(path)

    def _utimens(self, request: Request, path: str, to: str) -> object:
        os.utime(path, ns=request.times, follow_symlinks=False)
        s = os.lstat(path)
        return s.st_atime_ns, s.st_mtime_ns

    def _flags(self, request: Request, path: str, to: str) -> object:
        with opened(path, RDONLY) as fd:
            before = int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little")
            wanted = before & ~0x300F8 | request.number
            fcntl.ioctl(fd, SETFLAGS, wanted.to_bytes(8, "little"))
            now = int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little")
            # Nothing else could be done with it afterwards.
            if now & 0x30:
                refusals = self._refusals(path, fd)
                fcntl.ioctl(fd, SETFLAGS, (now & ~0x30).to_bytes(8, "little"))
                return now & _VISIBLE, refusals
            return now & _VISIBLE

    @staticmethod
    def _refusals(path: str, fd: int) -> list[int]:
        """What an immutable or append-only file or directory refuses."""
        found = []
        remove = os.rmdir if os.path.isdir(path) else os.unlink
        acts: tuple[Callable[[], object], ...] = (
            lambda: remove(path),
            lambda: os.rename(path, path + "x"),
            lambda: os.link(path, path + "l", follow_symlinks=False),
            lambda: os.chmod(path, 0o600),
            lambda: os.utime(path, ns=(1, 1)),
            lambda: os.truncate(path, 5),
            lambda: os.setxattr(path, "user.q", b"q"),
            lambda: os.mkdir(path + "/sub"),
            lambda: os.close(os.open(path, RDWR)),
            lambda: os.close(os.open(path, RDWR | os.O_APPEND)),
        )
        for act in acts:
            try:
                act()
                found.append(0)
            except OSError as problem:
                found.append(-(problem.errno or 0))
        return found

    def _bad_flags(self, request: Request, path: str, to: str) -> object:
        """A flag alone, some of which cannot be set; how blocks are mapped stays."""
        with opened(path, RDONLY) as fd:
            flags = 1 << request.number % 31
            if flags & (0x20004000 | 0x10 | 0x20 | 0x80000 | 0x1000):
                return None
            flags |= int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little") & 0x80000
            fcntl.ioctl(fd, SETFLAGS, flags.to_bytes(8, "little"))
            return int.from_bytes(fcntl.ioctl(fd, GETFLAGS, bytes(8))[:4], "little") & _VISIBLE

    def _setxattr(self, request: Request, path: str, to: str) -> None:
        flags = request.flag if request.flag < 3 else 0
        os.setxattr(path, request.name, request.value, flags, follow_symlinks=False)

    def _getxattr(self, request: Request, path: str, to: str) -> object:
        names = sorted(os.listxattr(path, follow_symlinks=False))
        return names, digest(os.getxattr(path, request.name, follow_symlinks=False))

    def _removexattr(self, request: Request, path: str, to: str) -> None:
        os.removexattr(path, request.name, follow_symlinks=False)

    def _set_acl(self, request: Request, path: str, to: str) -> object:
        os.setxattr(path, request.name, request.value, follow_symlinks=False)
        return described(path)

    def _statfs(self, request: Request, path: str, to: str) -> object:
        s = os.statvfs(self._root)
        return s.f_bsize, s.f_frsize, s.f_blocks, s.f_files, s.f_namemax


def errno_of(result: object) -> str:
    """A result for a person."""
    if isinstance(result, int) and -200 < result < 0:
        return errno.errorcode.get(-result, str(result))
    return repr(result)[:200]
