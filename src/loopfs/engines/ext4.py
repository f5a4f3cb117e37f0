"""ext2, ext3 and ext4 by a filesystem of our own (loopfs.ext4), as an engine.

It is a program that serves until its last mount is gone, started as others are.
"""

from __future__ import annotations

import os
import sys

from loopfs.engines import fuse2fs
from loopfs.engines.engine import Engine, Launch

NAME = "ext4"
TYPES = fuse2fs.TYPES


class Ext4(Engine):
    """The row of the table; the options are checked by the parser that acts on them."""

    def translated(self, data: str, fstype: str = "") -> tuple[str, ...]:
        from loopfs.ext4.options import Options

        words = tuple(word for word in data.split(",") if word not in ("", "defaults"))
        Options(",".join(words))
        return words

    def has_option(self, key: str) -> bool:
        from loopfs.ext4.options import knows

        return knows(key)


def _installed(fstype: str) -> None:
    return None


def _check(device: int, fstype: str) -> None:
    """Refuse what is no such filesystem, is damaged where it cannot be, or has a feature that is
    not supported. Raises OSError EINVAL, EUCLEAN, EBADMSG, EIO."""
    from loopfs.ext4.device import Device
    from loopfs.ext4.super import Super

    Super(Device(device), fstype)


def _command(launch: Launch) -> list[str]:
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom {__name__} import main; main(sys.argv)"
    mode = "ro" if launch.read_only else "rw"
    atime = "atime" if launch.caller.atime else "noatime"
    words = launch.device, launch.mountpoint, launch.fstype, mode, atime
    return [sys.executable, "-SEc", code, *words, ",".join(launch.options)]


def main(argv: list[str]) -> None:
    """Serve. An exception ends the program, and the mount is refused.

    Args:
        argv: device, mount point, type; "ro" or "rw", "atime" or "noatime"; the options.
    """
    from loopfs import syscalls
    from loopfs.ext4.device import Device
    from loopfs.ext4.filesystem import Ext4 as Filesystem
    from loopfs.ext4.mount import mount
    from loopfs.ext4.options import Options
    from loopfs.fuse.server import Server
    from loopfs.uapi.mount import MS_RDONLY

    _, device, mountpoint, fstype, mode, atime, words = argv
    read_only = mode == "ro"
    fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_EXCL | os.O_CLOEXEC)
    volume, commits = mount(Device(fd), Options(words), read_only=read_only, fstype=fstype)
    tree = Filesystem(volume, commits, atime=atime == "atime")
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    syscalls.mount(device, mountpoint, f"fuse.{fstype}", MS_RDONLY if read_only else 0, data)
    server = Server(connection, tree)
    tree.start()
    server.serve()


EXT4 = Ext4(NAME, _installed, TYPES, {}, _command, _check, extent=fuse2fs.extent)
