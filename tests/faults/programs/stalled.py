"""A file that can be mapped and whose pages never arrive: its FUSE server does not answer."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from loopfs import syscalls
from loopfs.fuse.operations import Entry, Operations
from loopfs.fuse.session import Request, Session
from loopfs.uapi.fuse import FUSE_ROOT_ID, Attr

FILE_ID = 2
SIZE = 1 << 20


class Stalled(Operations):
    """A directory with the one file "file"."""

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        if name != b"file":
            raise FileNotFoundError(2, "")
        return Entry(FILE_ID, self.getattr(FILE_ID))

    def getattr(self, nodeid: int) -> Attr:
        times = (0, 0, 0)
        if nodeid == FUSE_ROOT_ID:
            return Attr(1, 0, stat.S_IFDIR | 0o755, 2, 0, 0, 0, times)
        return Attr(FILE_ID, SIZE, stat.S_IFREG | 0o600, 1, 0, 0, 0, times)

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int]:
        return 1, 0

    def release(self, request: Request, handle: int) -> None:
        request.reply()

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> bytes | None:
        return None  # and nobody will ever answer


@contextmanager
def stalled_file(directory: str) -> Iterator[int]:
    """The open file, until the end of the context; then its server is dead."""
    os.mkdir(directory)
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other"
    syscalls.mount("stalled", directory, "fuse", 0, data)
    server = os.fork()
    if server == 0:
        try:
            Session(fuse, Stalled()).serve()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(0)
    os.close(fuse)
    file = os.open(f"{directory}/file", os.O_RDWR | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
        with suppress(OSError):  # ENOTCONN: nobody can be told of it
            os.close(file)
        syscalls.umount2(directory, 2)
