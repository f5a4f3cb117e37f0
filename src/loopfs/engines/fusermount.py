"""A fusermount for engines that cannot mount by themselves.

Programs of libfuse 2 that serve block devices ask for a mount of type fuseblk, which no user
namespace may have. Refused, they call fusermount, and this is the one that they find: it
mounts type fuse, and passes the connection back.
"""

from __future__ import annotations

import os
import socket
import sys

from loopfs import syscalls
from loopfs.uapi.mount import MS_RDONLY

# The options that are the kernel's; the mount's flags are set when it is moved to its place.
_KERNELS = ("allow_other", "default_permissions", "max_read=")


def script(fstype: str) -> str:
    """The program, as this interpreter runs it; mountinfo will show type fuse.``fstype``."""
    return (
        f"#!{sys.executable} -SE\nimport sys\nsys.path[:] = {sys.path!r}\n"
        f"from loopfs.engines.fusermount import main\nmain({fstype!r}, sys.argv[1:])\n"
    )


def main(fstype: str, arguments: list[str]) -> None:
    """``-o OPTIONS -- MOUNTPOINT``, with the descriptor to answer on in the environment."""
    mountpoint = arguments[-1]
    options = arguments[arguments.index("-o") + 1] if "-o" in arguments else ""
    channel = socket.socket(fileno=int(os.environ["_FUSE_COMMFD"]))
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    source, flags, data = parameters(options, connection)
    syscalls.mount(source, mountpoint, f"fuse.{fstype}", flags, data)
    socket.send_fds(channel, [b"\0"], [connection])


def parameters(options: str, connection: int) -> tuple[str, int, str]:
    """Source, MS_* flags and data for mount(2).

    Args:
        options: a list as in "rw,fsname=/dev/loop8,allow_other".
        connection: the open /dev/fuse.
    """
    words = [word for word in options.split(",") if word]
    source = next((w.partition("=")[2] for w in words if w.startswith("fsname=")), "fuse")
    flags = MS_RDONLY if "ro" in words else 0
    data = [f"fd={connection}", "rootmode=40000", "user_id=0", "group_id=0"]
    data += [word for word in words if word.startswith(_KERNELS)]
    return source, flags, ",".join(data)
