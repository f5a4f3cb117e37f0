"""fsync(2), fdatasync(2), syncfs(2), sync(2) and aio's of what an engine serves.

An engine need not write what it has for a file that is open for reading only, for a directory, or
for a whole filesystem, of which it is not even told. The kernel's syncfs(2) of a FUSE mount neither
waits nor tells of errors. A file that is open for writing is left to the kernel: the engine is
asked to sync it, and does; where it could not store something before, it is not even asked.

Of a filesystem whose engine was killed the kernel's syncfs(2) is 0: it is ENOTCONN, as fsync(2).
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
    """Has in the images what the kernel's call would leave with an engine."""

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
        """What the call is to return; None when it is the kernel's to carry out."""
        fd = register & 0xFFFFFFFF
        number = process.descriptor_device(fd)
        engine = next((each for each in engines if each.device == number), None)
        if engine is None and not self._mounts.lost(number):
            return None
        try:
            flags = syscalls.descriptor_info(process.tid, fd).flags
        except (FileNotFoundError, ProcessLookupError):
            return None  # closed, or gone, meanwhile
        if flags & os.O_PATH:
            return None
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if engine is None:
            left_to_kernel = writes and name != "syncfs"
            return None if left_to_kernel or not _is_fuse(process, fd) else errno.ENOTCONN
        if engine.error:  # fuse2fs would not tell the second who asks
            return engine.error
        if writes and name != "syncfs":
            return None
        may_wait()
        return engine.sync(self._mounts.helper, name, process, fd)

    def _sync_all(self, call: Call, engines: list[Engine]) -> None:
        """The last that was mounted first: its image may lie on one that was before.

        The call has no error to tell.
        """
        instances = self._mounts.instances
        if instances.written_to():
            may_wait()
            with suppress(BrokenPipeError):  # the helper is gone
                self._mounts.helper.write_pages()
            instances.drain()
        for engine in reversed(engines):
            may_wait()
            engine.sync(self._mounts.helper, "sync", None, -1)
        call.proceed()

    def _io_submit(self, call: Call, engines: list[Engine]) -> None:
        """What of it are syncs is done before; the first that fails is the error of the call."""
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
    """Else its device number is another filesystem's by now."""
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
    """Opcode and descriptor of each struct iocb that io_submit(2) is given, as far as they can be
    read: the kernel, too, begins with the first and ends where one is not there.

    Args:
        count: how many pointers there are at ``address``.
        word: bytes of a pointer.
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
