"""FAT12, FAT16 and FAT32 by a filesystem of our own (loopfs.fat), as an engine.

The job that mounts it becomes the engine. If the device's backing file cannot be lent, the engine
is a program that is started as others are.
"""

from __future__ import annotations

import os
import sys

from loopfs.engines.engine import Engine, Launch, Mounter, Serve
from loopfs.lean import TYPE_CHECKING
from loopfs.uapi.mount import MS_NOATIME

if TYPE_CHECKING:
    from loopfs.engines.lent import Lent
    from loopfs.fat.filesystem import Vfat as Filesystem
    from loopfs.file_device import FileDevice

NAME = "vfat"
TYPES = frozenset({"vfat", "msdos"})
_OF_CHECK = (
    *("loopfs.fat.options", "loopfs.fat.volume", "loopfs.file_device"),
    *("encodings.cp437", "encodings.utf_16_le"),
)


class Vfat(Engine):
    """The engine; the options are checked by the parser of loopfs.fat."""

    def translated(self, data: str, fstype: str = "") -> tuple[str, ...]:
        from loopfs.fat.options import Options

        words = tuple(word for word in data.split(",") if word not in ("", "defaults"))
        Options(",".join(words), fstype=fstype)
        return words

    def has_option(self, key: str) -> bool:
        from loopfs.fat.options import knows

        return knows(key)


def _installed(fstype: str) -> None:
    return None


def _check(device: int, fstype: str) -> None:
    """Check the filesystem. Raises OSError EINVAL if it is not FAT, or damaged in essential
    places."""
    from loopfs.fat.options import Options
    from loopfs.fat.volume import Volume
    from loopfs.file_device import FileDevice

    Volume(FileDevice(device), Options(), read_only=True)


def _command(launch: Launch) -> list[str]:
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom {__name__} import main; main(sys.argv)"
    mode = "ro" if launch.read_only else "rw"
    atime = str(launch.caller.atime)
    defaults = ",".join(map(str, launch.caller[:3]))
    words = launch.device, launch.mountpoint, launch.fstype, mode, atime, defaults
    return [sys.executable, "-SEc", code, *words, ",".join(launch.options)]


def _prepare(device: Lent, launch: Launch) -> Serve:
    filesystem = _filesystem(device, launch)
    device.control = filesystem.control
    return lambda connection: _serve(connection, filesystem)


def _filesystem(device: FileDevice, launch: Launch) -> Filesystem:
    from loopfs.fat.filesystem import Vfat as Filesystem
    from loopfs.fat.options import Defaults, Options
    from loopfs.fat.volume import Volume

    options = Options(",".join(launch.options), Defaults(*launch.caller[:3]), launch.fstype)
    volume = Volume(device, options, read_only=launch.read_only)
    return Filesystem(volume, atime=not launch.caller.atime & MS_NOATIME)


def _serve(connection: int, filesystem: Filesystem) -> None:
    from loopfs.fuse.connection import watch
    from loopfs.fuse.server import Server

    Server(connection, filesystem, watch(connection)).serve()


def main(argv: list[str]) -> None:
    """Serve. After an error at start the program exits with a message, and the mount is refused.

    Args:
        argv: device, mount point, type; "ro" or "rw"; MS_* flags as in Mounter; uid, gid and umask
            of the process that mounts; the options.
    """
    try:
        connection, filesystem = _mount(*argv[1:])
    except OSError as problem:
        sys.exit(problem.strerror)
    _serve(connection, filesystem)


def _mount(
    device: str, mountpoint: str, fstype: str, mode: str, atime: str, defaults: str, words: str
) -> tuple[int, Filesystem]:
    from loopfs import syscalls
    from loopfs.file_device import FileDevice
    from loopfs.uapi.mount import MS_RDONLY

    read_only = mode == "ro"
    uid, gid, umask = map(int, defaults.split(","))
    caller = Mounter(uid, gid, umask, int(atime))
    launch = Launch(device, mountpoint, fstype, (words,), read_only, caller)
    fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_EXCL | os.O_CLOEXEC)
    filesystem = _filesystem(FileDevice(fd), launch)
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    syscalls.mount(device, mountpoint, f"fuse.{fstype}", MS_RDONLY if read_only else 0, data)
    return connection, filesystem


VFAT = Vfat(NAME, _installed, TYPES, {}, _command, _check, prepare=_prepare, modules=_OF_CHECK)
