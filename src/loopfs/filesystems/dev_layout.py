"""What is in the sandbox's /dev before anybody has made something there; and what the host's
devices are mounted on in /sys/devices/virtual/block.

Process 1 answers the lookups of what is mounted on (sandbox/furnishing.py), and what serves
afterwards knows the same files by the same ids.
"""

from __future__ import annotations

import stat

from loopfs.lean import Iterable, NamedTuple
from loopfs.text import to_bytes
from loopfs.uapi.fuse import FUSE_ROOT_ID

LOOPFS, HIDDEN = b"loopfs", b".loopfs"
ROOT_INO = 1
FIRST_INO = 1 << 48  # with the id added, a file's inode number: beyond those of the devices
FIRST_ID = 1 << 32  # no node that is made later has such an id
HOST_LASTS = 1  # seconds that a name of the host's is remembered: nobody tells us when it goes
NAME_VALID = 1 << 30  # seconds: of these names only the kernel changes what they mean


class Number(NamedTuple):
    """A device, and the permissions of its node."""

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
    """A directory or a symbolic link: its id, its directory's, S_IF* type and permissions, and
    what the link leads to; ``device``: where a node is mounted on it, the device."""

    nodeid: int
    parent: int
    name: bytes
    mode: int
    target: bytes = b""
    device: str | None = None


def files(mounted_on: Iterable[str]) -> list[File]:
    """All files, directories before what is in them.

    Args:
        mounted_on: the names of what will be mounted in /dev: devices, and directories.
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
    for name in (b"proc", b"sys", b"block"):  # sandbox/proc.py, own_sysfs.py, sysfs.py mount there
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
    """The directories that the host's devices with these names are mounted on."""
    mode = stat.S_IFDIR | 0o755
    known = enumerate(names, FIRST_ID)
    return [File(nodeid, FUSE_ROOT_ID, to_bytes(name), mode) for nodeid, name in known]


def hidden_name(path: str) -> bytes:
    """The name, in the hidden directory, of the device with a path below /dev."""
    return path.replace("/", "-").encode()
