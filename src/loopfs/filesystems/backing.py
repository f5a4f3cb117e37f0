"""A backing file: the descriptor that a device is bound to, and I/O on it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from mmap import MADV_SEQUENTIAL, MAP_SHARED, PROT_READ, mmap

from loopfs import syscalls
from loopfs.driver.world import FileIdentity
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.threads import start
from loopfs.fuse.operations import Buffer
from loopfs.lean import NamedTuple
from loopfs.text import to_str
from loopfs.uapi.block import SECTOR_SIZE
from loopfs.uapi.fs import FIEMAP, FS_IOC_FIEMAP
from loopfs.uapi.magic import (
    FUSE_SUPER_MAGIC,
    LOCAL_FILESYSTEMS,
    OVERLAYFS_SUPER_MAGIC,
    PROC_SUPER_MAGIC,
    TMPFS_MAGIC,
)

# The part of a file that is mapped at a time, and the smallest transfer from a mapping, in bytes.
VIEW_WINDOW = 64 << 20
VIEW_MINIMUM = 64 << 10

_DELETED = " (deleted)"  # appended by d_path()
_QUIETLY = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

# The errors that a block device can report (block/blk-core.c: blk_errors); all others become EIO.
_BLOCK_ERRORS = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ETIMEDOUT,
        errno.ENOSPC,
        errno.ENOLINK,
        errno.EREMOTEIO,
        errno.ENODATA,
        errno.EILSEQ,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EBUSY,
        errno.ENODEV,
    }
)


class FileFacts(NamedTuple):
    """The fields of struct stat that are used here."""

    mode: int
    dev: int
    ino: int
    rdev: int
    size: int


Stat = Callable[[int], FileFacts]


class Descriptor:
    """A descriptor that is closed when its last user releases it.

    The driver does not close it, since a transfer in another thread may have begun just before
    and must not use a file that is opened later under the same number.
    """

    __slots__ = ("fd", "slow")

    def __init__(self, fd: int, slow: bool) -> None:
        self.fd = fd
        self.slow = slow

    def __del__(self) -> None:
        if self.slow:  # the file's server may need this thread before it answers
            _closes.begin(self.fd)
        else:
            _close(self.fd)


class _Closes:
    """Closes that can block; a separate thread makes them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # reentrant: the same thread may lock it again
        self._fds: deque[int] = deque()
        self._left = 0

    def begin(self, fd: int) -> None:
        with self._changed:
            self._fds.append(fd)
            self._left += 1
        with suppress(OSError):  # no thread could be started: the next one closes it
            start("close", self._close_all)

    def _close_all(self) -> None:
        with suppress(IndexError):  # until the queue is empty
            while True:
                _close(self._fds.popleft())
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()

    def wait(self, timeout: float) -> None:
        """Wait until all closes that have begun are done, or at most ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left, timeout)


_closes = _Closes()
wait_for_closes = _closes.wait


def _close(fd: int) -> None:
    """Close a descriptor; an error from the file's server is ignored, as in the kernel."""
    with suppress(OSError):
        os.close(fd)


class BackingFile:
    """A :class:`~loopfs.driver.world.Backing` that uses a descriptor.

    The constructor and :meth:`refresh` can block until the file's server answers; the methods that
    the driver calls do not block.

    Args:
        fd: a duplicate of the workload's descriptor, which this object owns.
        node: its node, if the file is a device of ours.
        fstat: returns the status of a file to which this process has no access.
    """

    def __init__(self, fd: int, node: Node | None, fstat: Stat) -> None:
        self._node = node
        self.loop_device = node.device if node else None
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        self.writable = flags & os.O_ACCMODE != os.O_RDONLY
        self.direct = bool(flags & os.O_DIRECT)
        filesystem = 0 if flags & os.O_PATH else syscalls.filesystem_type(fd)
        self.slow = filesystem == FUSE_SUPER_MAGIC
        self._file: Descriptor | None = Descriptor(fd, self.slow)
        if flags & os.O_PATH:
            raise _error(errno.EBADF)
        self._fstat = fstat
        # Reading a hole of a tmpfs file through a mapping would allocate memory for it.
        self._on_tmpfs = filesystem == TMPFS_MAGIC
        # Each reading thread has its own mapping, which no other thread can replace.
        self._views = threading.local()
        self.failure: OSError | None = None  # the last failed sync
        self._unstored: OSError | None = None  # a failed write of cached pages, not yet reported
        st = self._stat()
        if node is None:
            self.identity = FileIdentity(st.dev, st.ino, st.rdev)
            self.transfers = not stat.S_ISDIR(st.mode)
            # Some files in /proc look like regular files but are not, for example mem.
            self.supported = filesystem != PROC_SUPER_MAGIC and (
                stat.S_ISREG(st.mode) or stat.S_ISBLK(st.mode)
            )
            self.slow = not stat.S_ISBLK(st.mode) and _served_by_a_process(fd, filesystem)
        else:
            dev = syscalls.statx_dev(fd)
            self.identity = FileIdentity(dev, node.ino, node.device_number)
            self.transfers = self.supported = True
        self._size = self._min_dio_size = 0
        if self.supported:
            if flags & (os.O_DIRECT | os.O_APPEND):  # these flags change how write(2) works
                self._file = Descriptor(_reopened(fd, flags), self.slow)
            self._file.slow = self.slow
            self._min_dio_size = self._ask_min_dio_size()
            self.refresh()

    def _stat(self) -> FileFacts:
        fd = self._open().fd
        try:
            return facts(os.fstat(fd))
        except PermissionError:  # a FUSE mount of another user namespace
            return self._fstat(fd)

    @property
    def path(self) -> str:
        """The path of the file in the sandbox's mounts."""
        path = os.readlink(f"/proc/self/fd/{self._open().fd}")
        if self._node is not None and path.endswith(_DELETED):  # it leads to the other face now
            return os.path.join(os.path.dirname(path), to_str(self._node.name))
        return path

    def size(self) -> int:
        """Return the size in bytes, as of the last refresh."""
        return self._size if self.loop_device is None else self.loop_device.capacity

    def refresh(self) -> None:
        """Determine the current size of the file."""
        if self.loop_device is None:
            self._size = self._ask_size()

    def _ask_size(self) -> int:
        st = self._stat()
        if stat.S_ISBLK(st.mode):
            with open(f"/sys/dev/block/{os.major(st.rdev)}:{os.minor(st.rdev)}/size") as file:
                return int(file.read()) * SECTOR_SIZE
        return st.size

    def min_dio_size(self) -> int:
        """Return the alignment of direct I/O in bytes, or 0 (loop_query_min_dio_size)."""
        if self.loop_device is None:
            return self._min_dio_size
        return self.loop_device.disk.block_size

    def _ask_min_dio_size(self) -> int:
        fd = self._open().fd
        if self.loop_device is not None:
            return 0
        try:
            os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | _QUIETLY | os.O_DIRECT))
        except OSError as problem:
            if problem.errno in (errno.EINVAL, errno.EACCES):  # EACCES: it cannot be reopened
                return 0
            raise
        return syscalls.dio_alignment(fd) or SECTOR_SIZE

    def close(self) -> None:
        self._file = None
        self._views = threading.local()

    def _open(self) -> Descriptor:
        if (file := self._file) is None:
            raise _error(errno.EIO)
        return file

    def fileno(self) -> int:
        return self._open().fd

    def opened_anew(self, flags: int) -> Descriptor:
        """Reopen the file as a new open file description. Raises OSError as open(2)."""
        file = self._open()
        return Descriptor(os.open(f"/proc/self/fd/{file.fd}", flags | _QUIETLY), self.slow)

    def duplicate(self) -> Descriptor:
        """Duplicate the descriptor. The description is shared with the binding process."""
        file = self._open()
        return Descriptor(os.dup(file.fd), self.slow)

    # --- transfers: offsets and lengths in bytes, within the device ------------

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``. Raises OSError as a disk does; EIO beyond the end of the file."""
        file = self._open()
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(file.fd, [buffer[done:]], offset + done)
            except OSError as problem:
                raise _block_error(problem) from None
            if count == 0:
                raise _error(errno.EIO)
            done += count

    def view(self, offset: int, length: int) -> memoryview | None:
        """Return a part of the file as mapped pages of the page cache, to be passed to the kernel.

        It must only be passed to a system call: for pages beyond the end of a file that has been
        truncated, a system call fails with EFAULT, but any other access raises SIGBUS. Return None
        if a mapping cannot be used.
        """
        if length < VIEW_MINIMUM or self.slow or self._on_tmpfs:
            return None
        start = offset - offset % VIEW_WINDOW
        if offset + length > start + VIEW_WINDOW:
            return None
        views = self._views
        if getattr(views, "start", None) != start:
            try:
                views.view = self._map(start)
            except (OSError, ValueError):  # the file is too short, or cannot be mapped
                return None
            views.start = start
        view: memoryview = views.view
        if offset - start + length > len(view):
            views.start = None  # the file may have grown: map it again next time
            return None
        return view[offset - start : offset - start + length]

    def _map(self, start: int) -> memoryview:
        fd = self._open().fd
        length = min(VIEW_WINDOW, max(self._ask_size() - start, 0))
        mapping = mmap(fd, length, MAP_SHARED, PROT_READ, offset=start)
        mapping.madvise(MADV_SEQUENTIAL)
        return memoryview(mapping)

    def write(self, data: Buffer, offset: int, *, from_cache: bool = False) -> None:
        """Write all of ``data``. Raises OSError as a disk does.

        Args:
            from_cache: the kernel writes pages of a mapping and does not report an error.
        """
        file = self._open()
        view = memoryview(data)
        while view:
            try:
                count = os.pwrite(file.fd, view, offset)
            except OSError as problem:
                error = _block_error(problem)
                if from_cache:
                    self._unstored = error
                raise error from None
            view = view[count:]
            offset += count

    def check_stored(self) -> None:
        """Raise, once, the OSError of pages of a mapping that could not be written."""
        error, self._unstored = self._unstored, None
        if error is not None:
            raise error

    def sync(self, datasync: bool) -> None:
        """Sync the file as fsync(2) or fdatasync(2). Raises OSError as a disk does."""
        file = self._open()
        try:
            (os.fdatasync if datasync else os.fsync)(file.fd)
        except OSError as problem:
            self.failure = _block_error(problem)
            raise self.failure from None

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        try:
            syscalls.fallocate(self._open().fd, mode, offset, length)
        except OSError as problem:
            raise _block_error(problem) from None


def _block_error(problem: OSError) -> OSError:
    """Convert an error of a file to one of a disk."""
    if problem.errno in _BLOCK_ERRORS:
        return problem
    return _error(errno.EIO)


def facts(st: os.stat_result) -> FileFacts:
    return FileFacts(st.st_mode, st.st_dev, st.st_ino, st.st_rdev, st.st_size)


def _reopened(fd: int, flags: int) -> int:
    """Reopen the file without O_DIRECT and O_APPEND."""
    plain = flags & os.O_ACCMODE | _QUIETLY
    try:
        return os.open(f"/proc/self/fd/{fd}", plain)
    except PermissionError:
        raise _error(errno.EINVAL) from None


def _served_by_a_process(fd: int, filesystem: int) -> bool:
    """Return whether I/O on the file may have to wait for a process, which may in turn wait for us.

    This is so unless the filesystem is one that this kernel serves from local disks.

    Args:
        filesystem: the filesystem type, as statfs(2) returns it.
    """
    if filesystem in LOCAL_FILESYSTEMS:
        return False
    # A file of overlayfs can be on any filesystem. It passes FIEMAP on; FUSE does not support it.
    return filesystem != OVERLAYFS_SUPER_MAGIC or not _has_extents(fd)


def _has_extents(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, FS_IOC_FIEMAP, FIEMAP.pack(0, 1, 0, 0, 0, 0))
    except OSError:
        return False
    return True


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
