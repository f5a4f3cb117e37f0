"""Finding and opening a device of an instance by what a caller named it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat

from loopfs import syscalls
from loopfs.engines import paths
from loopfs.filesystems.dev_layout import FIRST_INO
from loopfs.filesystems.nodes import FIRST_DEVICE_INO, device_name
from loopfs.lean import NamedTuple
from loopfs.uapi.block import BLKROGET, INT
from loopfs.uapi.mount import AT_FDCWD

# A name that a stage can have as well, beside what an engine needs there.
SHOWABLE = re.compile(r"/dev/(?!null|fuse|filesystem|programs|device)[\w-]+(/[\w-]+)*")


class DeviceNode(NamedTuple):
    """A node of an instance, with the caller's mounts around us.

    A device is opened by its name in its directory, which leads to the face that can be
    opened; ``directory`` and ``entry`` are those. A node that is only had as a descriptor
    is in /proc/self/fd.
    """

    directory: int
    entry: str
    instance: int
    ino: int

    @property
    def name(self) -> str:
        return device_name(self.ino)

    def shown(self, source: str) -> str:
        """What mountinfo is to show for a device that the caller named ``source``.

        mount(8) follows links, and the kernel's devices are none: where the name in /dev leads to
        this one, it is shown.
        """
        link = f"/dev/{self.name}"
        if source == link or not SHOWABLE.fullmatch(source) or self._is_at(link):
            return link
        return source

    def _is_at(self, path: str) -> bool:
        try:
            return (syscalls.statx_dev(AT_FDCWD, path), os.stat(path).st_ino) == self[2:]
        except OSError:
            return False

    def open(self, read_only: bool, *, claim: bool = False) -> int:
        """Open the device as a mount does: exclusively, but leaving the claim to the engine.

        The caller is :func:`~loopfs.engines.caller.visible`.

        Args:
            claim: keep the claim.

        Raises:
            OSError: as the mount: EBUSY, EACCES for writing to a device that is
                write-protected, ENXIO, EINVAL when the name has come to mean another file.
        """
        flags = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        device = self._open(flags | os.O_EXCL)
        if not claim:
            os.close(device)
            device = self._open(flags)
        (write_protected,) = INT.unpack(fcntl.ioctl(device, BLKROGET, bytes(INT.size)))
        if write_protected and not read_only:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return device

    def _open(self, flags: int) -> int:
        if not self.entry.isdigit():  # in /proc/self/fd they are links
            flags |= os.O_NOFOLLOW
        try:
            fd = os.open(self.entry, flags, dir_fd=self.directory)
        except OSError as problem:
            if problem.errno != errno.EROFS:
                raise
            # A device opens for writing where /dev is read-only: there is another mount in it.
            fd = os.open(f"loopfs/{self.entry}", flags, dir_fd=self.directory)
        if syscalls.statx_dev(fd) != self.instance:
            os.close(fd)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return fd


def find_device(
    path: str,
    proc: paths.CallerProc,
    instances: tuple[int, ...],
    own_fds: int,
    *,
    or_file: bool = False,
) -> DeviceNode | None:
    """The device that ``path`` names for the caller; None if it is of no instance.

    Args:
        instances: the device numbers (st_dev) of the instances.
        own_fds: an open /proc/self/fd.
        or_file: a file that is no block device is none of an instance: some of the kernel's
            drivers mount one (erofs).
    Raises:
        OSError: as open(2); ENOTBLK when it names no block device, as lookup_bdev() says.
    """
    directory, entry = paths.resolve_parent(path, proc)
    if not entry:
        directory, entry = own_fds, str(directory)
    node = os.open(entry, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    number = syscalls.statx_dev(node)
    st = os.fstat(node)
    os.close(node)
    if number not in instances or not FIRST_DEVICE_INO <= st.st_ino < FIRST_INO:
        if not or_file and not stat.S_ISBLK(st.st_mode):  # here the kernel says EPERM of anything
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        return None
    return DeviceNode(directory, entry, number, st.st_ino)
