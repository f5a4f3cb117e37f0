"""The FUSE programs that distributions ship, as engines."""

from __future__ import annotations

import errno
import os

from loopfs.engines import fuse2fs
from loopfs.engines.engine import Engine, Launch, program

# The types for which libblkid has another name than the driver.
_BLKID_NAMES = {"ntfs3": "ntfs"}


def check_type(device: int, fstype: str, offset: int = 0, size: int | None = None) -> None:
    """Refuse a device that has another filesystem than ``fstype``, as its driver would.

    Args:
        offset, size: the part of the open file that is the device, in bytes.
    Raises:
        OSError: EINVAL.
    """
    from loopfs.filesystems.blkid import holds

    if not holds(device, _BLKID_NAMES.get(fstype, fstype), offset, size):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


_OWNERS = {"uid=": "uid=", "gid=": "gid="}
_MASKS = {"umask=": "umask=", "fmask=": "fmask=", "dmask=": "dmask="}
_NAMES = {"iocharset=utf8": "", "utf8": "", "nls=utf8": "", "codepage=437": ""}
_ERRORS = {"errors=continue": "", "errors=remount-ro": "", "errors=panic": ""}


def _squashfuse(launch: Launch) -> list[str]:
    options = launch.fuse_options(f"fsname={launch.device}")
    return ["squashfuse_ll", "-f", "-o", options, launch.device, launch.mountpoint]


def _erofsfuse(launch: Launch) -> list[str]:
    options = launch.fuse_options(f"fsname={launch.device}")
    return ["erofsfuse", "-f", "-o", options, launch.device, launch.mountpoint]


def _fuseiso(launch: Launch) -> list[str]:
    options = launch.fuse_options(f"fsname={launch.device}")
    return ["fuseiso", "-n", launch.device, launch.mountpoint, "-f", "-o", options]


def _ntfs_3g(launch: Launch) -> list[str]:
    # It has its own copy of FUSE, without libfuse's options subtype and fsname.
    mode = "ro" if launch.read_only else "rw"
    options = ",".join(("no_detach,no_def_opts,silent,allow_other", mode, *launch.options))
    return ["ntfs-3g", "-o", options, launch.device, launch.mountpoint]


def _exfat(launch: Launch) -> list[str]:
    # It only stays in the foreground with -d (debug). It adds fsname and allow_other itself.
    options = ("ro" if launch.read_only else "rw", *launch.options)
    words = ["mount.exfat-fuse", "-d", "-o", ",".join(options)]
    return [*words, launch.device, launch.mountpoint]


FUSE2FS = Engine(
    "fuse2fs",
    program(fuse2fs.PROGRAM, fuse2fs.PACKAGE),
    fuse2fs.TYPES,
    fuse2fs.OPTIONS,
    fuse2fs.command,
    fuse2fs.check,
    environment=fuse2fs.environment,
    extent=fuse2fs.extent,
)
SQUASHFUSE = Engine(
    "squashfuse",
    program("squashfuse_ll", "squashfuse"),
    frozenset({"squashfs"}),
    {"errors=continue": "", "threads=": ""},
    _squashfuse,
    check_type,
    writes=False,
)
EROFSFUSE = Engine(
    "erofsfuse",
    program("erofsfuse", "erofsfuse"),
    frozenset({"erofs"}),
    {"user_xattr": "", "acl": "", "cache_strategy=": ""},
    _erofsfuse,
    check_type,
    writes=False,
)
FUSEISO = Engine(
    "fuseiso",
    program("fuseiso", "fuseiso"),
    frozenset({"iso9660"}),
    {**_NAMES, "map=normal": "", "block=2048": ""},
    _fuseiso,
    check_type,
    writes=False,
)
NTFS_3G = Engine(
    "ntfs-3g",
    program("ntfs-3g", "ntfs-3g"),
    frozenset({"ntfs", "ntfs3"}),
    {
        **_OWNERS,
        **_MASKS,
        **_NAMES,
        "force": "force",
        "permissions": "permissions",
        "acl": "acl",
        "windows_names": "windows_names",
        "hidden": "",
        "showmeta": "show_sys_files",
        "show_sys_files": "show_sys_files",
    },
    _ntfs_3g,
    check_type,
)
EXFAT = Engine(
    "exfat",
    program("mount.exfat-fuse", "exfat-fuse"),
    frozenset({"exfat"}),
    {**_OWNERS, **_MASKS, **_NAMES, **_ERRORS},
    _exfat,
    check_type,
)
PROGRAMS = (FUSE2FS, SQUASHFUSE, EROFSFUSE, FUSEISO, NTFS_3G, EXFAT)
