"""Serves an image at a mount point: ``python -m tests.ext4.serve IMAGE MOUNTPOINT [OPTIONS]``.

OPTIONS are ext4's, and ro. With CRASH=N in the environment the program ends at the Nth write, of
which it does half; with MOST=N a transaction has about N changed blocks at most. It is what the
engine does, without namespaces and jobs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from loopfs import syscalls
from loopfs.ext4.device import Device
from loopfs.ext4.filesystem import Ext4
from loopfs.ext4.mount import mount
from loopfs.ext4.options import Options
from loopfs.file_device import Buffer, FileDevice
from loopfs.fuse.connection import watch
from loopfs.fuse.server import Server
from loopfs.uapi.mount import MS_NODEV, MS_NOSUID, MS_RDONLY


def crash_at(left: int) -> None:
    """Have the program end in the middle of a write."""
    writev = os.pwritev

    def pwritev(fd: int, parts: Sequence[Buffer], offset: int, flags: int = 0) -> int:
        nonlocal left
        left -= 1
        if left == 0:
            data = b"".join(map(bytes, parts))
            writev(fd, [data[: len(data) // 2]], offset)
            os._exit(9)
        return writev(fd, parts, offset, flags)

    os.pwritev = pwritev  # type: ignore[assignment]


def main(image: str, mountpoint: str, words: str = "") -> None:
    """Serve until the end of the mount."""
    read_only = "ro" in words.split(",")
    options = Options(",".join(word for word in words.split(",") if word != "ro"))
    if "CRASH" in os.environ:
        crash_at(int(os.environ["CRASH"]))
    fd = os.open(image, os.O_RDONLY if read_only else os.O_RDWR)
    volume, commits = mount(Device(FileDevice(fd)), options, read_only=read_only)
    if commits is not None and "MOST" in os.environ:
        commits.most = int(os.environ["MOST"])
    tree = Ext4(volume, commits)
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    flags = MS_RDONLY if read_only else 0
    if os.getuid() or "NODEV" in os.environ:
        flags |= MS_NODEV | MS_NOSUID
    syscalls.mount(image, mountpoint, "fuse.ext4", flags, data)
    server = Server(connection, tree, watch(connection))
    tree.start()
    server.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
