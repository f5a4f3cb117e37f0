"""ioctl(2) of files on our own ext4, as far as the kernel does not pass it on to FUSE: the flags of
chattr(1) that need a capability in the initial user namespace, FIEMAP, and fsfreeze(8)."""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from loopfs.engines.helper import NOT_OURS
from loopfs.engines.mounts import Mounts
from loopfs.engines.running import Engine
from loopfs.filesystems.lending import FREEZE
from loopfs.filesystems.lent_device import LentDevice
from loopfs.intercept.fslabel import FsLabelHandler, engine_of, may_change
from loopfs.intercept.notify import Call, may_wait
from loopfs.uapi.fs import (
    FIEMAP,
    FIEMAP_EXTENT,
    FIEMAP_FLAG_SYNC,
    FIFREEZE,
    FITHAW,
    FS_IOC_FIEMAP,
    FS_IOC_SETFLAGS,
    LABELS,
)

_MOST = 1500  # extents in one answer, which must fit in a message
_MAX_EXTENTS = ((1 << 32) - FIEMAP.size) // FIEMAP_EXTENT.size  # FIEMAP_MAX_EXTENTS
_MAX_LENGTH = 1 << 62  # bytes: more than any file, and fits in a signed number
_ROW = 4


class IoctlHandler:
    """Answers for filesystems of our own engines; leaves all other calls to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._label = FsLabelHandler(mounts)

    def __call__(self, call: Call) -> None:
        if call.args[1] & 0xFFFFFFFF in LABELS:
            self._label(call)
            return
        engine = engine_of(self._mounts, call, lambda each: each.lent is not None)
        if engine is None or engine.lent is None:
            call.proceed()
            return
        may_wait()
        fd = call.process.descriptor(call.args[0] & 0xFFFFFFFF)
        try:
            if _has_no_ioctls(fd):
                call.proceed()
            elif call.args[1] & 0xFFFFFFFF == FS_IOC_FIEMAP:
                _fiemap(call, engine.lent, fd)
            elif call.args[1] & 0xFFFFFFFF in (FIFREEZE, FITHAW):
                self._freeze(call, engine, engine.lent, fd)
            else:
                _set_flags(call, engine, engine.lent, fd)
        finally:
            os.close(fd)

    def _freeze(self, call: Call, engine: Engine, lent: LentDevice, fd: int) -> None:
        """Freeze or thaw a filesystem (ioctl_fsfreeze(), ioctl_fsthaw())."""
        if not may_change(call.process, engine):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        freezes = call.args[1] & 0xFFFFFFFF == FIFREEZE
        if freezes:  # dirty pages of the kernel are part of the frozen state
            number = call.args[0] & 0xFFFFFFFF
            code = engine.sync(self._mounts.helper, "syncfs", call.process, number)
            if code not in (0, NOT_OURS):
                raise OSError(code, os.strerror(code))
        if call.alive():
            lent.control(os.fstat(fd).st_ino, FREEZE, int(freezes))
            call.finish()


def _has_no_ioctls(fd: int) -> bool:
    """Return whether it is an O_PATH descriptor, or a FIFO or device with other ioctls."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        return True
    mode = os.fstat(fd).st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _set_flags(call: Call, engine: Engine, lent: LentDevice, fd: int) -> None:
    """Set the two flags, which the kernel would only allow root of the initial user namespace."""
    if not may_change(call.process, engine):
        call.proceed()
        return
    flags = int.from_bytes(call.process.read(call.args[2], 4), "little")
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if call.alive():
        lent.control(os.fstat(fd).st_ino, FS_IOC_SETFLAGS, flags)
        call.finish()


def _fiemap(call: Call, lent: LentDevice, fd: int) -> None:
    """Return the extents of a file, as ioctl_fiemap() and fiemap_prep() of fs/ioctl.c do."""
    start, length, flags, _, room, _ = FIEMAP.unpack(call.process.read(call.args[2], FIEMAP.size))
    if room > _MAX_EXTENTS or not length:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if start >= _MAX_LENGTH:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if unknown := flags & ~FIEMAP_FLAG_SYNC:
        call.process.write(call.args[2], FIEMAP.pack(start, length, unknown, 0, room, 0))
        raise OSError(errno.EBADR, os.strerror(errno.EBADR))
    if flags:
        os.fsync(fd)
    length = min(length, _MAX_LENGTH)
    most = min(room, _MOST)
    total, *numbers = lent.control(os.fstat(fd).st_ino, FS_IOC_FIEMAP, start, length, most) or (0,)
    rows = [numbers[at : at + _ROW] for at in range(0, min(len(numbers), most * _ROW), _ROW)]
    if min(numbers, default=0) < 0 or any(len(row) < _ROW for row in rows):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    mapped = len(rows) if room else total & 0xFFFFFFFF
    data = b"".join(FIEMAP_EXTENT.pack(*row[:3], row[3] & 0xFFFFFFFF) for row in rows)
    if call.alive():
        call.process.write(call.args[2] + FIEMAP.size, data)
        call.process.write(call.args[2], FIEMAP.pack(start, length, flags, mapped, room, 0))
        call.finish()
