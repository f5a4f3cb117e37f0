"""fsync(2), fdatasync(2), syncfs(2), sync(2) and syncs by aio on a filesystem of an engine.

An engine need not write its data when a file that is open read-only or a directory is synced, or a
whole filesystem, of which it is not even informed. The kernel's syncfs(2) of a FUSE mount neither
waits nor reports errors. fsync(2) of a file that is open for writing is left to the kernel, which
asks the engine to sync it; unless the engine has had a write error before.

If the engine was killed, the kernel's syncfs(2) would return 0: here it fails with ENOTCONN, as
fsync(2) does.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from loopfs import syscalls
from loopfs.engines.helper import NOT_OURS
from loopfs.engines.mounts import Mounts
from loopfs.engines.running import Engine
from loopfs.intercept.notify import Call, may_wait
from loopfs.process import Process
from loopfs.uapi.aio import IOCB, IOCB_CMD_FDSYNC, IOCB_CMD_FSYNC
from loopfs.uapi.magic import FUSE_SUPER_MAGIC
from loopfs.uapi.syscalls import abis

SYNC_CALLS = ("fsync", "fdatasync", "syncfs", "sync", "io_submit")

_AIO = {IOCB_CMD_FSYNC: "fsync", IOCB_CMD_FDSYNC: "fdatasync"}
_WORD = {abi.arch: abi.word for abi in abis()}
_MAX_IOCBS = 1 << 16  # as many as the kernel's aio-max-nr allows by default


class SyncHandler:
    """Writes to the images what the kernel's call would leave in an engine."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts

    def __call__(self, call: Call) -> None:
        engines = self._mounts.writing()
        if call.name == "sync":
            self._sync_all(call, engines)
        elif not engines and not self._mounts.lost():
            call.proceed()
        elif call.name == "io_submit":
            self._io_submit(call, engines)
        else:
            code = self._of_descriptor(call.name, call.process, call.args[0], engines)
            if code in (None, NOT_OURS):
                call.proceed()
            else:
                call.answer(code)

    def _of_descriptor(
        self, name: str, process: Process, register: int, engines: list[Engine]
    ) -> int | None:
        """Return the result of the call; None if it is left to the kernel."""
        fd = register & 0xFFFFFFFF
        number = process.descriptor_device(fd)
        engine = next((each for each in engines if each.device == number), None)
        if engine is None and not self._mounts.lost(number):
            return None
        try:
            flags = syscalls.descriptor_info(process.tid, fd).flags
        except (FileNotFoundError, ProcessLookupError):
            return None  # closed in the meantime, or the thread has ended
        if flags & os.O_PATH:
            return None
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if engine is None:
            left_to_kernel = writes and name != "syncfs"
            return None if left_to_kernel or not _is_fuse(process, fd) else errno.ENOTCONN
        if engine.error:  # fuse2fs would report an error only once
            return engine.error
        if writes and name != "syncfs":
            return None
        may_wait()
        return engine.sync(self._mounts.helper, name, process, fd)

    def _sync_all(self, call: Call, engines: list[Engine]) -> None:
        """Sync all filesystems, the last mounted first: its image may be on an earlier one.

        The call returns no errors.
        """
        instances = self._mounts.instances
        if instances.written_to():
            may_wait()
            with suppress(BrokenPipeError):  # the helper has ended
                self._mounts.helper.write_pages()
            instances.drain()
        for engine in reversed(engines):
            may_wait()
            engine.sync(self._mounts.helper, "sync", None, -1)
        call.proceed()

    def _io_submit(self, call: Call, engines: list[Engine]) -> None:
        """Make the syncs among the requests first; the first error is that of the call."""
        may_wait()  # for the caller's memory
        process = call.process
        for opcode, fd in iocbs(process, call.args[1], call.args[2], _WORD[call.arch]):
            if opcode in _AIO:
                code = self._of_descriptor(_AIO[opcode], process, fd, engines)
                if code not in (None, 0, NOT_OURS):
                    call.fail(code)
                    return
        call.proceed()


def _is_fuse(process: Process, fd: int) -> bool:
    """Return whether a file is on FUSE. If not, its device number was reused by another mount."""
    may_wait()
    own = process.descriptor(fd)
    try:
        return syscalls.filesystem_type(own) == FUSE_SUPER_MAGIC
    except OSError as problem:
        if problem.errno != errno.ENOTCONN:
            raise
        return True
    finally:
        os.close(own)


def iocbs(process: Process, count: int, address: int, word: int) -> list[tuple[int, int]]:
    """Return opcode and descriptor of each struct iocb that is passed to io_submit(2), up to the
    first that cannot be read: the kernel also stops there.

    Args:
        count: the number of pointers at ``address``.
        word: the size of a pointer in bytes.
    """
    found = []
    for index in range(min(count & (1 << 8 * word) - 1, _MAX_IOCBS)):
        try:
            pointer = int.from_bytes(process.read(address + index * word, word), "little")
            fields = IOCB.unpack(process.read(pointer, IOCB.size))
        except OSError:
            break
        found.append((fields[3], fields[5]))
    return found
