"""The initial contents of the sandbox's /dev, and the directories of
/sys/devices/virtual/block on which the host's devices are mounted.

Process 1 answers the lookups of the mount points (sandbox/furnishing.py); the server that takes
over afterwards uses the same node ids for the same files.
"""

from __future__ import annotations

import stat

from loopfs.lean import Iterable, NamedTuple
from loopfs.text import to_bytes
from loopfs.uapi.fuse import FUSE_ROOT_ID

LOOPFS, HIDDEN = b"loopfs", b".loopfs"
ROOT_INO = 1
FIRST_INO = 1 << 48  # plus the node id: a file's inode number, larger than those of devices
FIRST_ID = 1 << 32  # no node that is created later has such an id
HOST_LASTS = 1  # seconds for which a name of the host's is cached: its removal is not reported
NAME_VALID = 1 << 30  # seconds; only requests of the kernel change what these names refer to


class Number(NamedTuple):
    """A device number, and the permissions of its node."""

    major: int
    minor: int
    mode: int = 0o666


# Documentation/admin-guide/devices.txt
NUMBERS = {
    "null": Number(1, 3),
    "zero": Number(1, 5),
    "full": Number(1, 7),
    "random": Number(1, 8),
    "urandom": Number(1, 9),
    "tty": Number(5, 0),
    "console": Number(5, 1, 0o600),
    "fuse": Number(10, 229),
    "kvm": Number(10, 232, 0o660),
    "net/tun": Number(10, 200),
}
LINKS = {
    b"fd": b"/proc/self/fd",
    b"stdin": b"/proc/self/fd/0",
    b"stdout": b"/proc/self/fd/1",
    b"stderr": b"/proc/self/fd/2",
    b"core": b"/proc/kcore",
    b"ptmx": b"pts/ptmx",
}


class File(NamedTuple):
    """A directory or a symbolic link.

    ``mode`` has the S_IF* type and the permissions, ``target`` is that of the link, and ``device``
    is the device whose node is mounted on the file, if any."""

    nodeid: int
    parent: int
    name: bytes
    mode: int
    target: bytes = b""
    device: str | None = None


def files(mounted_on: Iterable[str]) -> list[File]:
    """Return all files; a directory comes before the files in it.

    Args:
        mounted_on: the names of the mount points in /dev: devices and directories.
    """
    made: list[File] = []

    def add(
        name: bytes, parent: int = FUSE_ROOT_ID, target: bytes = b"", device: str | None = None
    ) -> int:
        mode = stat.S_IFLNK | 0o777 if target else stat.S_IFDIR | 0o755
        made.append(File(FIRST_ID + len(made), parent, name, mode, target, device))
        return made[-1].nodeid

    for name in (LOOPFS, b"pts"):
        add(name)
    hidden = add(HIDDEN)
    for name in (b"proc", b"sys", b"block"):  # for sandbox/proc.py, own_sysfs.py, sysfs.py
        add(name, hidden)
    for name, target in LINKS.items():
        add(name, target=target)
    for path in mounted_on:
        if path not in NUMBERS:
            add(path.encode())
            continue
        directory, _, last = path.encode().rpartition(b"/")
        parent = add(directory) if directory else FUSE_ROOT_ID
        target = b"../" * bool(directory) + HIDDEN + b"/" + hidden_name(path)
        add(last, parent, target, path)
    return made


def hosts_devices(names: Iterable[str]) -> list[File]:
    """Return the directories on which the host's devices with these names are mounted."""
    mode = stat.S_IFDIR | 0o755
    known = enumerate(names, FIRST_ID)
    return [File(nodeid, FUSE_ROOT_ID, to_bytes(name), mode) for nodeid, name in known]


def hidden_name(path: str) -> bytes:
    """Return the name in the hidden directory of the device with a path below /dev."""
    return path.replace("/", "-").encode()
