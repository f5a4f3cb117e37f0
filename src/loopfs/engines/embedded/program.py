"""The program that serves the filesystem on a device until it is unmounted."""

from __future__ import annotations

import importlib
import os
import sys
from typing import BinaryIO

from loopfs import syscalls
from loopfs.engines.embedded.filesystem import ReadOnlyFilesystem
from loopfs.engines.engine import Serve
from loopfs.fuse.session import Session
from loopfs.lean import Sequence
from loopfs.uapi.fuse import FUSE_ROOT_ID
from loopfs.uapi.mount import MS_RDONLY

# The module that reads each filesystem type.
READERS = {
    "btrfs": "btrfs",
    "xfs": "xfs",
    "ntfs": "ntfs",
    "ntfs3": "ntfs",
    "squashfs": "squashfs",
}


def command(device: str, mountpoint: str, fstype: str, options: tuple[str, ...]) -> list[str]:
    """Return the command that starts the program with the modules of this interpreter."""
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom {__name__} import main; main(sys.argv)"
    return [sys.executable, "-SEc", code, device, mountpoint, fstype, ",".join(options)]


def serving(file: BinaryIO, fstype: str, options: Sequence[str]) -> Serve:
    """Return a function that serves the filesystem in a file. An exception refuses the mount."""
    reader = importlib.import_module(f"loopfs.engines.embedded.{READERS[fstype]}")
    filesystem = ReadOnlyFilesystem(reader.volume(file, list(options)))
    filesystem.getattr(FUSE_ROOT_ID)
    return lambda connection: Session(connection, filesystem).serve()


def main(argv: list[str]) -> None:
    """Serve. The arguments are device, mount point, type and options. After an error it exits with
    a message, and the mount is refused."""
    _, device, mountpoint, fstype, options = argv
    with open(device, "rb") as file:
        try:
            serve = serving(file, fstype, options.split(","))
            connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            data = f"fd={connection},rootmode=40000,user_id=0,group_id=0"
            data += ",allow_other,default_permissions"
            syscalls.mount(device, mountpoint, f"fuse.{fstype}", MS_RDONLY, data)
        except OSError as problem:
            sys.exit(problem.strerror)
        serve(connection)
