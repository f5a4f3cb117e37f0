"""Operations on devices and mounts inside a sandbox, by the system calls of losetup(8) and
mount(8). Arguments and results can be represented in JSON."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from loopfs import syscalls
from loopfs.api.messages import sentence
from loopfs.errors import LoopfsError
from loopfs.uapi import loop
from loopfs.uapi import mount as uapi
from loopfs.uapi.block import BLKGETSIZE64

CONTROL = "/dev/loop-control"
PLACE = "/run"  # it is the sandbox's own
_MAX_TRIES = 100  # to get a free device before another process does

# mount(8): the options that set flags of mount(2), and those that clear one.
_FLAGS = {
    "ro": uapi.MS_RDONLY,
    "nosuid": uapi.MS_NOSUID,
    "nodev": uapi.MS_NODEV,
    "noexec": uapi.MS_NOEXEC,
    "sync": uapi.MS_SYNCHRONOUS,
    "dirsync": uapi.MS_DIRSYNC,
    "noatime": uapi.MS_NOATIME,
    "nodiratime": uapi.MS_NODIRATIME,
    "relatime": uapi.MS_RELATIME,
    "strictatime": uapi.MS_STRICTATIME,
    "lazytime": uapi.MS_LAZYTIME,
    "nosymfollow": uapi.MS_NOSYMFOLLOW,
}
_CLEARED = {
    "rw": uapi.MS_RDONLY,
    "suid": uapi.MS_NOSUID,
    "dev": uapi.MS_NODEV,
    "exec": uapi.MS_NOEXEC,
    "async": uapi.MS_SYNCHRONOUS,
    "defaults": 0,
}


def attach(
    image: str,
    *,
    offset: int = 0,
    sizelimit: int = 0,
    partscan: bool = False,
    read_only: bool = False,
    sector_size: int = 0,
) -> int:
    """Bind the next free device to ``image``; return its number. Raises OSError."""
    flags = loop.LO_FLAGS_PARTSCAN if partscan else 0
    number, device = _configure(image, offset, sizelimit, flags, read_only, sector_size)
    os.close(device)
    return number


def _configure(
    image: str, offset: int, sizelimit: int, flags: int, read_only: bool, sector_size: int
) -> tuple[int, int]:
    """Bind a device to ``image``; return its number and a descriptor of it."""
    mode = (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC
    if read_only:
        flags |= loop.LO_FLAGS_READ_ONLY
    name = os.fsencode(os.path.abspath(image))[: loop.LO_NAME_SIZE - 1]
    info = loop.LoopInfo64(offset=offset, sizelimit=sizelimit, flags=flags, file_name=name)
    file = os.open(image, mode)
    try:
        control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            return _bind(control, loop.LoopConfig(file, sector_size, info), mode, image)
        finally:
            os.close(control)
    finally:
        os.close(file)


def _bind(control: int, config: loop.LoopConfig, mode: int, image: str) -> tuple[int, int]:
    for _ in range(_MAX_TRIES):
        number = fcntl.ioctl(control, loop.LOOP_CTL_GET_FREE)
        device = os.open(_path(number), mode)
        try:
            fcntl.ioctl(device, loop.LOOP_CONFIGURE, config.pack())
            return number, device
        except OSError as problem:
            os.close(device)
            if problem.errno == errno.EBUSY:  # another was faster
                continue
            said = f"{image} cannot be attached to {_path(number)}: {problem.strerror}"
            raise LoopfsError(problem.errno or 0, said) from None
    raise LoopfsError(errno.EBUSY, f"{image} cannot be attached: each free device was taken")


def _path(number: int) -> str:
    return f"/dev/loop{number}"


def _device_ioctl(number: int, request: int, argument: bytes | int = 0) -> bytes:
    device = os.open(_path(number), os.O_RDONLY | os.O_CLOEXEC)
    try:
        answer = fcntl.ioctl(device, request, argument)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, _path(number)) from None
    finally:
        os.close(device)
    return answer if isinstance(answer, bytes) else b""


def detach(number: int) -> None:
    """Detach a device (LOOP_CLR_FD). Raises OSError: ENXIO, it is not bound."""
    _device_ioctl(number, loop.LOOP_CLR_FD)


def set_capacity(number: int) -> None:
    """Update the size of a device (LOOP_SET_CAPACITY). Raises OSError: ENXIO, it is not bound."""
    _device_ioctl(number, loop.LOOP_SET_CAPACITY)


def status(number: int) -> dict[str, Any]:
    """Return the fields of :class:`loopfs.api.device.Status`. Raises OSError ENXIO."""
    data = _device_ioctl(number, loop.LOOP_GET_STATUS64, bytes(loop.LOOP_INFO64_SIZE))
    info = loop.LoopInfo64.unpack(data)
    size = int.from_bytes(_device_ioctl(number, BLKGETSIZE64, bytes(8)), "little")
    with open(f"/sys/block/loop{number}/loop/backing_file", "rb") as file:
        backing_file = os.fsdecode(file.read().rstrip(b"\n"))
    with open(f"/sys/block/loop{number}/queue/logical_block_size", encoding="ascii") as text:
        sector_size = int(text.read())
    return {
        "backing_file": backing_file,
        "offset": info.offset,
        "sizelimit": info.sizelimit,
        "size": size,
        "sector_size": sector_size,
        "read_only": bool(info.flags & loop.LO_FLAGS_READ_ONLY),
        "autoclear": bool(info.flags & loop.LO_FLAGS_AUTOCLEAR),
        "partscan": bool(info.flags & loop.LO_FLAGS_PARTSCAN),
        "direct_io": bool(info.flags & loop.LO_FLAGS_DIRECT_IO),
    }


def partitions(number: int) -> list[str]:
    """Return the paths of the partitions of a device, ordered by number. Raises OSError."""
    prefix = f"loop{number}p"
    names = [n for n in os.listdir(f"/sys/block/loop{number}") if n.startswith(prefix)]
    return [f"/dev/{name}" for name in sorted(names, key=lambda n: int(n[len(prefix) :]))]


def mount(
    source: str,
    target: str | None,
    *,
    fstype: str | None = None,
    options: str = "",
    offset: int = 0,
    sizelimit: int = 0,
) -> tuple[str, str]:
    """Mount a device, or an image by a device that is detached with the mount.

    Args:
        source: the device or the image.
        target: the directory; None: a new one.
        fstype: the type; None: the one that blkid(8) finds.
        options: as in mount -o.
    Returns:
        the directory, and the type.
    Raises:
        OSError: the error of mount(2) or of a call before it.
    """
    flags, data = _flags_and_data(options)
    device, held = source, -1
    try:
        if not stat.S_ISBLK(os.stat(source).st_mode):
            autoclear, read_only = loop.LO_FLAGS_AUTOCLEAR, bool(flags & uapi.MS_RDONLY)
            number, held = _configure(source, offset, sizelimit, autoclear, read_only, 0)
            device = _path(number)
        elif offset or sizelimit:
            raise LoopfsError(errno.EINVAL, "offset and sizelimit are for an image, not a device")
        kind = fstype or _probed(device, source)
        place = target or tempfile.mkdtemp(prefix="loopfs-mount-", dir=PLACE)
        try:
            syscalls.mount(device, place, kind, flags, data)
        except OSError as problem:
            if target is None:
                os.rmdir(place)
            said = f"{source} cannot be mounted on {place} as {kind}: {problem.strerror}"
            raise LoopfsError(problem.errno or 0, said) from None
    finally:
        if held != -1:
            os.close(held)
    return place, kind


def _flags_and_data(options: str) -> tuple[int, str | None]:
    flags, rest = 0, []
    for word in filter(None, options.split(",")):
        if word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _CLEARED:
            flags &= ~_CLEARED[word]
        else:
            rest.append(word)
    return flags, ",".join(rest) or None


def _probed(device: str, source: str) -> str:
    command = ["blkid", "-p", "-s", "TYPE", "-o", "value", device]
    try:
        found = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    except FileNotFoundError:
        sentence = "the type cannot be found, as blkid is not installed; give it by fstype"
        raise LoopfsError(errno.ENOENT, sentence) from None
    if not (kind := found.stdout.strip()):
        raise LoopfsError(errno.EINVAL, f"blkid finds no filesystem on {source}; give its fstype")
    return kind


def umount(target: str, *, lazy: bool = False, remove: bool = False) -> None:
    """Unmount a filesystem (umount2(2)). On return the image is complete, unless ``lazy``.

    Args:
        lazy: use MNT_DETACH.
        remove: also remove the directory.
    Raises:
        OSError: EBUSY, and the other errors of umount2(2).
    """
    syscalls.umount2(target, uapi.MNT_DETACH if lazy else 0)
    if remove:
        os.rmdir(target)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "attach": attach,
    "detach": detach,
    "set_capacity": set_capacity,
    "status": status,
    "partitions": partitions,
    "mount": mount,
    "umount": umount,
}


def operate(operation: str, **arguments: Any) -> Any:
    """Carry out an operation; the caller is in the sandbox. Raises LoopfsError."""
    try:
        return OPERATIONS[operation](**arguments)
    except LoopfsError:
        raise
    except OSError as problem:
        raise LoopfsError(problem.errno or 0, sentence(problem)) from None
