"""ioctl(2) for the label of a mounted ext2, ext3 or ext4, as in the kernel's driver (ioctl.c).

No engine supports these ioctls. e2label(8) and tune2fs(8) -L use them only if st_dev of the mount
is the device number. On a FUSE filesystem it never is, so there these programs write to the device.
"""

from __future__ import annotations

import errno
import fcntl
import os

from loopfs import syscalls
from loopfs.engines.ext_superblock import LABEL_MAX
from loopfs.engines.labels import Label
from loopfs.engines.mounts import Mounts
from loopfs.engines.running import Engine
from loopfs.intercept.notify import Call, may_wait
from loopfs.lean import Callable
from loopfs.process import Process, user_namespaces
from loopfs.uapi.fs import FS_IOC_GETFSLABEL
from loopfs.uapi.sched import CAP_SYS_ADMIN

ROOM = LABEL_MAX + 1  # bytes copied from or to the caller, of the 256 in the interface


class FsLabelHandler:
    """Answers for filesystems that engines serve; leaves all other calls to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts

    def __call__(self, call: Call) -> None:
        engine = engine_of(self._mounts, call, lambda each: each.label is not None)
        if engine is None or engine.label is None:
            call.proceed()
            return
        may_wait()
        fd = call.process.descriptor(call.args[0] & 0xFFFFFFFF)
        try:
            if _has_no_ioctls(fd):
                call.proceed()
            elif call.args[1] & 0xFFFFFFFF == FS_IOC_GETFSLABEL:
                _get(call, engine.label)
            else:
                _set(call, engine, engine.label, fd)
        finally:
            os.close(fd)


def engine_of(mounts: Mounts, call: Call, wanted: Callable[[Engine], bool]) -> Engine | None:
    """Return the engine that serves the file of the caller's ioctl(2), if it is ``wanted``."""
    engines = [engine for engine in mounts.alive() if wanted(engine)]
    if not engines:
        return None
    try:
        number = syscalls.statx_dev(-1, call.process.path(f"fd/{call.args[0] & 0xFFFFFFFF}"))
    except FileNotFoundError:  # no such descriptor: the kernel returns EBADF
        return None
    return next((engine for engine in engines if engine.device == number), None)


def _has_no_ioctls(fd: int) -> bool:
    """Return whether it is an O_PATH descriptor (EBADF) or a FIFO, with other ioctls (ENOTTY)."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    except OSError as problem:
        if problem.errno != errno.EBADF:
            raise
        return False
    return True


def _get(call: Call, label: Label) -> None:
    name = label.get()
    if call.alive():
        call.process.write(call.args[2], name.ljust(ROOM, b"\0"))
        call.finish()


def _set(call: Call, engine: Engine, label: Label, fd: int) -> None:
    if not may_change(call.process, engine):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))
    name, end, _ = call.process.read(call.args[2], ROOM).partition(b"\0")
    if not end:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if call.alive():
        label.set(name)
        call.finish()


def may_change(process: Process, engine: Engine, capability: int = CAP_SYS_ADMIN) -> bool:
    """Return whether the caller has a capability over the mount: in the user namespace of its
    engine, which is that of the process that mounted it, or in an ancestor of that."""
    if not process.has_capability(capability):
        return False
    return process.namespace("user") in user_namespaces(engine.user_namespace())
