"""fsync(2), fdatasync(2), syncfs(2) and sync(2) of what an engine serves.

An engine need not sync its device for a file that is open for reading only (fuse2fs does not),
for a directory, or for a whole filesystem, of which it is not even told.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from loopfs.engines.mounts import Engine, Mounts
from loopfs.intercept.notify import Call, may_wait

SYNC_CALLS = ("fsync", "fdatasync", "syncfs", "sync")


class SyncHandler:
    """Syncs engines' devices after the kernel has asked the engine."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts

    def __call__(self, call: Call) -> None:
        engines = self._mounts.alive()
        if not engines:
            call.proceed()
        elif call.name == "sync":
            may_wait()
            _sync_all(engines, call)
        else:
            self._sync_one(call, engines)

    def _sync_one(self, call: Call, engines: list[Engine]) -> None:
        fd = call.args[0] & 0xFFFFFFFF
        number = call.process.descriptor_device(fd)
        engine = next((each for each in engines if each.device == number), None)
        if engine is None:
            call.proceed()
            return
        may_wait()
        fd = call.process.descriptor(fd)
        writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if writes and call.name != "syncfs":
            os.close(fd)
            call.proceed()
        else:
            _sync(engine, fd, call)


def _sync(engine: Engine, fd: int, call: Call) -> None:
    try:
        if call.name != "syncfs":
            os.fsync(fd)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                _sync_for_writing(fd)
    finally:
        os.close(fd)
    engine.sync()
    call.finish()


def _sync_for_writing(fd: int) -> None:
    """Sync a file once more, through a description that is open for writing, as fuse2fs wants."""
    try:
        writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
    except OSError as problem:
        # Mounted for reading, or by a user namespace within ours.
        if problem.errno not in (errno.EROFS, errno.EACCES):
            raise
        return
    try:
        os.fsync(writable)
    finally:
        os.close(writable)


def _sync_all(engines: list[Engine], call: Call) -> None:
    for engine in engines:
        engine.sync()
    call.proceed()
