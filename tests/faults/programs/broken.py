"""loopfs with a fault that no script can cause at will.

    python3 -m tests.faults.programs.broken run -- COMMAND

While one of these files is in the directory where it begins: "no-forks": none of its processes can
fork; "no-threads": nor start a thread; "silent": fsync(2) of a device has no answer for good, and
makes the file "asked".
"""

from __future__ import annotations

import errno
import os
import sys
import threading

from loopfs import cli
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.fuse.session import Request

HERE = os.getcwd()
FORK, START, FSYNC = os.fork, threading.Thread.start, LoopFilesystem.fsync


def has(fault: str) -> bool:
    return os.path.exists(os.path.join(HERE, fault))


def fork() -> int:
    if has("no-forks"):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return FORK()


def start(thread: threading.Thread) -> None:
    if has("no-threads"):
        raise RuntimeError("can't start new thread")
    START(thread)


def fsync(filesystem: LoopFilesystem, request: Request, handle: int, datasync: bool) -> None:
    if has("silent"):
        with open(os.path.join(HERE, "asked"), "w", encoding="ascii"):
            return
    FSYNC(filesystem, request, handle, datasync)


if __name__ == "__main__":
    os.fork = fork
    threading.Thread.start = start  # type: ignore[assignment,method-assign]
    LoopFilesystem.fsync = fsync  # type: ignore[assignment,method-assign]
    sys.exit(cli.main(sys.argv[1:]))
