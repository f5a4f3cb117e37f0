"""Serves an image at a mount point: ``python -m tests.fat.serve IMAGE MOUNTPOINT [OPTIONS]``.

To be run in namespaces of one's own, as root there (unshare -Urm). OPTIONS are vfat's, and ro and
type=msdos. It is what the engine will do, without namespaces and jobs.
"""

from __future__ import annotations

import os
import sys

from loopfs import syscalls
from loopfs.fat.filesystem import Vfat
from loopfs.fat.options import Defaults, Options
from loopfs.fat.volume import Volume
from loopfs.file_device import FileDevice
from loopfs.fuse.server import Server
from loopfs.uapi.mount import MS_NODEV, MS_NOSUID, MS_RDONLY


def main(image: str, mountpoint: str, words: str = "") -> None:
    """Serve until the end of the mount."""
    ours = ("ro", "noatime", "type=msdos")
    given = [word for word in words.split(",") if word not in ours]
    fstype = "msdos" if "type=msdos" in words.split(",") else "vfat"
    read_only, atime = "ro" in words.split(","), "noatime" not in words.split(",")
    umask = os.umask(0o22)
    os.umask(umask)
    options = Options(",".join(given), Defaults(os.getuid(), os.getgid(), umask), fstype)
    fd = os.open(image, os.O_RDONLY if read_only else os.O_RDWR)
    volume = Volume(FileDevice(fd), options, read_only=read_only)
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    flags = MS_NODEV | MS_NOSUID | (MS_RDONLY if read_only else 0)
    syscalls.mount(image, mountpoint, "fuse.vfat", flags, data)
    Server(connection, Vfat(volume, atime=atime)).serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
