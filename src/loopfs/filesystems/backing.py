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

# A mapping covers so much of a file at a time, in bytes, and serves transfers from so many on.
VIEW_WINDOW = 64 << 20
VIEW_MINIMUM = 64 << 10

_DELETED = " (deleted)"  # what d_path() adds
_QUIETLY = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY

# What a block layer can say (block/blk-core.c: blk_errors); everything else is EIO.
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
    """What fstat(2) says that matters here."""

    mode: int
    dev: int
    ino: int
    rdev: int
    size: int


Stat = Callable[[int], FileFacts]


class Descriptor:
    """A descriptor that is closed when its last user lets go of it.

    Not when the driver does: a transfer in another thread may have begun just before,
    and must not find another file under the number.
    """

    __slots__ = ("fd", "slow")

    def __init__(self, fd: int, slow: bool) -> None:
        self.fd = fd
        self.slow = slow

    def __del__(self) -> None:
        if self.slow:  # its server may have to answer first, and that may need this thread
            _closes.begin(self.fd)
        else:
            _close(self.fd)


class _Closes:
    """Closes that may wait, in a thread of their own."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # may be taken by the same thread once more
        self._fds: deque[int] = deque()
        self._left = 0

    def begin(self, fd: int) -> None:
        with self._changed:
            self._fds.append(fd)
            self._left += 1
        with suppress(OSError):  # no thread: it is closed with the next one
            start("close", self._close_all)

    def _close_all(self) -> None:
        with suppress(IndexError):  # until none is left
            while True:
                _close(self._fds.popleft())
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()

    def wait(self, timeout: float) -> None:
        """Return once all that have begun are done, or after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left, timeout)


_closes = _Closes()
wait_for_closes = _closes.wait


def _close(fd: int) -> None:
    """As the kernel lets go of a file: an error that its server returns is ignored."""
    with suppress(OSError):
        os.close(fd)


class BackingFile:
    """The :class:`~loopfs.driver.world.Backing` that is a descriptor.

    To make one may wait for the file's server, as may :meth:`refresh`; what the driver asks
    waits for nothing.

    Args:
        fd: a duplicate of the workload's descriptor; ours from now on.
        node: its node, if the file is a device of ours.
        fstat: how to ask a file that this process may not look at.
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
        # There a hole that is read through a mapping becomes memory.
        self._on_tmpfs = filesystem == TMPFS_MAGIC
        # A mapping for each thread that reads: another thread would replace it under this one.
        self._views = threading.local()
        self.failure: OSError | None = None  # of the last sync that has failed
        self._unstored: OSError | None = None  # of a write on nobody's behalf
        st = self._stat()
        if node is None:
            self.identity = FileIdentity(st.dev, st.ino, st.rdev)
            self.transfers = not stat.S_ISDIR(st.mode)
            # In /proc are files that look regular and are not, such as mem.
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
            if flags & (os.O_DIRECT | os.O_APPEND):  # which would change what a write does
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
        """Where the file is, as the sandbox's mounts have it."""
        path = os.readlink(f"/proc/self/fd/{self._open().fd}")
        if self._node is not None and path.endswith(_DELETED):  # its name shows the other face now
            return os.path.join(os.path.dirname(path), to_str(self._node.name))
        return path

    def size(self) -> int:
        """Bytes in the file when it was last looked at."""
        return self._size if self.loop_device is None else self.loop_device.capacity

    def refresh(self) -> None:
        """See how large the file is now."""
        if self.loop_device is None:
            self._size = self._ask_size()

    def _ask_size(self) -> int:
        st = self._stat()
        if stat.S_ISBLK(st.mode):
            with open(f"/sys/dev/block/{os.major(st.rdev)}:{os.minor(st.rdev)}/size") as file:
                return int(file.read()) * SECTOR_SIZE
        return st.size

    def min_dio_size(self) -> int:
        """Bytes; 0 where the filesystem has no direct I/O (loop_query_min_dio_size)."""
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
            if problem.errno in (errno.EINVAL, errno.EACCES):  # or it cannot be opened again
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
        """The file once more, as another open file description. Raises OSError as open(2)."""
        file = self._open()
        return Descriptor(os.open(f"/proc/self/fd/{file.fd}", flags | _QUIETLY), self.slow)

    def duplicate(self) -> Descriptor:
        """Another descriptor of the same description, which is that of the binding process, too."""
        file = self._open()
        return Descriptor(os.dup(file.fd), self.slow)

    # --- transfers: offsets and lengths in bytes, within the device ------------

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer``. Raises OSError as a disk would; EIO past the end of the file."""
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
        """Bytes of the file as they are in the page cache, for the kernel to copy from.

        Only to be passed to a system call: pages past the end of a file that has shrunk
        are EFAULT to that, and SIGBUS to all other accesses. None where a mapping
        would not do.
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
            except (OSError, ValueError):  # it does not reach that far, or cannot be mapped
                return None
            views.start = start
        view: memoryview = views.view
        if offset - start + length > len(view):
            views.start = None  # the file may have grown: next time
            return None
        return view[offset - start : offset - start + length]

    def _map(self, start: int) -> memoryview:
        fd = self._open().fd
        length = min(VIEW_WINDOW, max(self._ask_size() - start, 0))
        mapping = mmap(fd, length, MAP_SHARED, PROT_READ, offset=start)
        mapping.madvise(MADV_SEQUENTIAL)
        return memoryview(mapping)

    def write(self, data: Buffer, offset: int, *, from_cache: bool = False) -> None:
        """Store all of ``data``. Raises OSError as a disk would.

        Args:
            from_cache: the kernel writes a mapping's pages, and tells nobody of an error.
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
        """Raises OSError, once: pages of a mapping are lost, as they could not be written."""
        error, self._unstored = self._unstored, None
        if error is not None:
            raise error

    def sync(self, datasync: bool) -> None:
        """fsync(2), fdatasync(2). Raises OSError as a disk would."""
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
    """A file's error as the one of a disk."""
    if problem.errno in _BLOCK_ERRORS:
        return problem
    return _error(errno.EIO)


def facts(st: os.stat_result) -> FileFacts:
    return FileFacts(st.st_mode, st.st_dev, st.st_ino, st.st_rdev, st.st_size)


def _reopened(fd: int, flags: int) -> int:
    """The same file without O_DIRECT and O_APPEND."""
    plain = flags & os.O_ACCMODE | _QUIETLY
    try:
        return os.open(f"/proc/self/fd/{fd}", plain)
    except PermissionError:
        raise _error(errno.EINVAL) from None


def _served_by_a_process(fd: int, filesystem: int) -> bool:
    """Who waits for the file may wait for a process, which may wait for us: it is on no
    filesystem that this kernel answers for from its own disks.

    Args:
        filesystem: the type, as statfs(2) has it.
    """
    if filesystem in LOCAL_FILESYSTEMS:
        return False
    # What overlayfs shows can lie anywhere. It passes FIEMAP on, which FUSE does not have.
    return filesystem != OVERLAYFS_SUPER_MAGIC or not _has_extents(fd)


def _has_extents(fd: int) -> bool:
    try:
        fcntl.ioctl(fd, FS_IOC_FIEMAP, FIEMAP.pack(0, 1, 0, 0, 0, 0))
    except OSError:
        return False
    return True


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
