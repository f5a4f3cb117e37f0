"""Resolving and opening a device of an instance by the path that a caller has passed."""

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

# A name that can be used in a stage, in addition to what an engine needs there.
SHOWABLE = re.compile(r"/dev/(?!null|fuse|filesystem|programs|device)[\w-]+(/[\w-]+)*")


class DeviceNode(NamedTuple):
    """A node of an instance, in the caller's mounts.

    A device is opened by its name ``entry`` in ``directory``, since this lookup returns the face
    that can be opened. If the node was passed as a descriptor, they are in /proc/self/fd.
    """

    directory: int
    entry: str
    instance: int
    ino: int

    @property
    def name(self) -> str:
        return device_name(self.ino)

    def shown(self, source: str) -> str:
        """Return the source that mountinfo is to show for a device that the caller named
        ``source``.

        mount(8) resolves links, and a device of the kernel is not a link: if the name in /dev leads
        to this device, it is returned.
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
        """Open the device as a mount does: exclusively, but by default without keeping the claim.

        The process must be :func:`~loopfs.engines.caller.visible`.

        Args:
            claim: keep the claim.

        Raises:
            OSError: as the mount: EBUSY, EACCES for writing to a write-protected device, ENXIO,
                EINVAL if the name now refers to another file.
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
        if not self.entry.isdigit():  # in /proc/self/fd all entries are links
            flags |= os.O_NOFOLLOW
        try:
            fd = os.open(self.entry, flags, dir_fd=self.directory)
        except OSError as problem:
            if problem.errno != errno.EROFS:
                raise
            # Devices can be opened for writing if /dev is read-only: there is another mount in it.
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
    """Return the device that ``path`` names for the caller; None if it is not in an instance.

    Args:
        instances: the device numbers (st_dev) of the instances.
        own_fds: an open /proc/self/fd.
        or_file: also return None for a file that is not a block device: some of the kernel's
            drivers can mount one (erofs).
    Raises:
        OSError: as open(2); ENOTBLK if it is not a block device, as lookup_bdev() returns.
    """
    directory, entry = paths.resolve_parent(path, proc)
    if not entry:
        directory, entry = own_fds, str(directory)
    node = os.open(entry, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
    number = syscalls.statx_dev(node)
    st = os.fstat(node)
    os.close(node)
    if number not in instances or not FIRST_DEVICE_INO <= st.st_ino < FIRST_INO:
        if not or_file and not stat.S_ISBLK(st.st_mode):  # the kernel would return EPERM
            raise OSError(errno.ENOTBLK, os.strerror(errno.ENOTBLK))
        return None
    return DeviceNode(directory, entry, number, st.st_ino)
