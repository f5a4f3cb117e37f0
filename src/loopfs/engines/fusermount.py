"""A fusermount for engines that cannot mount by themselves.

Programs of libfuse 2 that serve block devices call mount(2) with type fuseblk, which is not allowed
in a user namespace. When that fails, they execute fusermount and find this one: it mounts type
fuse, and sends the connection back.
"""

from __future__ import annotations

import os
import socket
import sys

from loopfs import syscalls
from loopfs.uapi.mount import MS_RDONLY

# Options of the kernel; the mount's flags are set when it is moved to its mount point.
_KERNELS = ("allow_other", "default_permissions", "max_read=")


def script(fstype: str) -> str:
    """Return the program for this interpreter; mountinfo will show the type fuse.``fstype``."""
    return (
        f"#!{sys.executable} -SE\nimport sys\nsys.path[:] = {sys.path!r}\n"
        f"from loopfs.engines.fusermount import main\nmain({fstype!r}, sys.argv[1:])\n"
    )


def main(fstype: str, arguments: list[str]) -> None:
    """Run ``-o OPTIONS -- MOUNTPOINT``; the environment has the descriptor for the answer."""
    mountpoint = arguments[-1]
    options = arguments[arguments.index("-o") + 1] if "-o" in arguments else ""
    channel = socket.socket(fileno=int(os.environ["_FUSE_COMMFD"]))
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    source, flags, data = parameters(options, connection)
    syscalls.mount(source, mountpoint, f"fuse.{fstype}", flags, data)
    socket.send_fds(channel, [b"\0"], [connection])


def parameters(options: str, connection: int) -> tuple[str, int, str]:
    """Return source, MS_* flags and data for mount(2).

    Args:
        options: a list such as "rw,fsname=/dev/loop8,allow_other".
        connection: the open /dev/fuse.
    """
    words = [word for word in options.split(",") if word]
    source = next((w.partition("=")[2] for w in words if w.startswith("fsname=")), "fuse")
    flags = MS_RDONLY if "ro" in words else 0
    data = [f"fd={connection}", "rootmode=40000", "user_id=0", "group_id=0"]
    data += [word for word in words if word.startswith(_KERNELS)]
    return source, flags, ",".join(data)
