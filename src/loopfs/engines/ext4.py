"""ext2, ext3 and ext4 by a filesystem of our own (loopfs.ext4), as an engine.

The job that mounts it becomes the engine. If the device's backing file cannot be lent, the engine
is a program that is started as others are.
"""

from __future__ import annotations

import os
import sys

from loopfs.engines import fuse2fs
from loopfs.engines.engine import Engine, Launch, Mounter, Serve
from loopfs.fuse.connection import watch
from loopfs.lean import TYPE_CHECKING, Callable
from loopfs.uapi.mount import MS_DIRSYNC, MS_SYNCHRONOUS

if TYPE_CHECKING:
    from loopfs.engines.lent import Lent
    from loopfs.ext4.filesystem import Ext4 as Filesystem
    from loopfs.file_device import FileDevice

NAME = "ext4"
TYPES = fuse2fs.TYPES
_OF_CHECK = ("loopfs.ext4.device", "loopfs.ext4.super", "loopfs.file_device")


class Ext4(Engine):
    """The engine; the options are checked by the parser of loopfs.ext4."""

    def translated(self, data: str, fstype: str = "") -> tuple[str, ...]:
        from loopfs.ext4.options import Options

        words = tuple(word for word in data.split(",") if word not in ("", "defaults"))
        Options(",".join(words), fstype)
        return words

    def without_effect(self, data: str, fstype: str) -> tuple[str, ...]:
        from loopfs.ext4.options import Options

        words = [word for word in data.split(",") if word != "defaults"]
        return tuple(Options(",".join(words), fstype).without_effect)

    def has_option(self, key: str) -> bool:
        from loopfs.ext4.options import knows

        return knows(key)


def _installed(fstype: str) -> None:
    return None


def _check(device: int, fstype: str) -> None:
    """Check the filesystem as mount does. Raises OSError EINVAL, EUCLEAN, EBADMSG, EIO if it has
    another type, is damaged in essential places, or has an unsupported feature."""
    from loopfs.ext4.device import Device
    from loopfs.ext4.super import Super
    from loopfs.file_device import FileDevice

    Super(Device(FileDevice(device)), fstype)


def _command(launch: Launch) -> list[str]:
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom {__name__} import main; main(sys.argv)"
    mode = "ro" if launch.read_only else "rw"
    flags = str(launch.caller.atime), str(launch.sb_flags)
    words = launch.device, launch.mountpoint, launch.fstype, mode, *flags
    return [sys.executable, "-SEc", code, *words, ",".join(launch.options)]


def _prepare(device: Lent, launch: Launch) -> Serve:
    filesystem = _filesystem(device, launch)
    sb = filesystem.volume.super
    device.uses(fuse2fs.SUPERBLOCK_OFFSET, sb.blocks * sb.block_size)
    device.tune, device.control = filesystem.tune, filesystem.control
    filesystem.purpose, filesystem.making = device.purpose, device.making
    return lambda connection: _serve(connection, filesystem, watch(connection))


def _filesystem(device: FileDevice, launch: Launch) -> Filesystem:
    from loopfs.ext4.device import Device
    from loopfs.ext4.filesystem import Ext4 as Filesystem
    from loopfs.ext4.mount import mount
    from loopfs.ext4.options import Options

    options = Options(",".join(launch.options), launch.fstype)
    volume, commits = mount(
        Device(device), options, read_only=launch.read_only, fstype=launch.fstype
    )
    volume.synchronous = bool(launch.sb_flags & MS_SYNCHRONOUS) or options.sync
    volume.dirsync = bool(launch.sb_flags & MS_DIRSYNC) or options.dirsync
    return Filesystem(volume, commits, atime=launch.caller.atime)


def _serve(
    connection: int, filesystem: Filesystem, wait: Callable[[], object] | None = None
) -> None:
    from loopfs.fuse.server import Server

    server = Server(connection, filesystem, wait)
    filesystem.start()
    server.serve()


def main(argv: list[str]) -> None:
    """Serve. After an error at start the program exits with a message, and the mount is refused.

    Args:
        argv: device, mount point, type; "ro" or "rw"; MS_* flags of the mount, as in Mounter, and
            of the superblock; the options.
    """
    try:
        connection, filesystem = _mount(*argv[1:])
    except OSError as problem:
        sys.exit(problem.strerror)
    # Without watch(): sync_job detects an idle program by the read(2) that its thread is in.
    _serve(connection, filesystem)


def _mount(
    device: str, mountpoint: str, fstype: str, mode: str, atime: str, flags: str, words: str
) -> tuple[int, Filesystem]:
    from loopfs import syscalls
    from loopfs.file_device import FileDevice
    from loopfs.uapi.mount import MS_RDONLY

    read_only = mode == "ro"
    caller = Mounter(0, 0, 0, int(atime))
    launch = Launch(device, mountpoint, fstype, (words,), read_only, caller, int(flags))
    fd = os.open(device, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_EXCL | os.O_CLOEXEC)
    filesystem = _filesystem(FileDevice(fd), launch)
    connection = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    data = f"fd={connection},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    sb_flags = int(flags) | (MS_RDONLY if read_only else 0)
    syscalls.mount(device, mountpoint, f"fuse.{fstype}", sb_flags, data)
    return connection, filesystem


EXT4 = Ext4(
    NAME,
    _installed,
    TYPES,
    {},
    _command,
    _check,
    extent=fuse2fs.extent,
    prepare=_prepare,
    modules=_OF_CHECK,
)
