"""Every trapped call with every pointer that it takes, each in every way bad.

The argument is a filesystem's type: what a call says of a mount of it must not depend on who
has made it, the kernel or loopfs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from loopfs import syscalls
from tests.faults.programs.devices import NR, PAGE, Area, edge_of, report, syscall

AT_FDCWD, AT_EMPTY_PATH, MS_REMOUNT, MNT_DETACH = -100, 0x1000, 32, 2
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_SET_BINARY = range(3)
FSCONFIG_SET_PATH, FSCONFIG_SET_PATH_EMPTY, FSCONFIG_SET_FD = range(3, 6)
FSPICK_EMPTY_PATH = 8
STATX_BASIC_STATS = 0x7FF

LONG = Area(4 * PAGE)
LONG.put(0, b"x" * (4 * PAGE))
READ_ONLY = Area(PAGE)
READ_ONLY.protect(1)  # PROT_READ
CLOSED = Area(PAGE)
CLOSED.protect(0)

BAD = {
    "null": 0,
    "unmapped": 8,
    "kernel": 1 << 63,
    "last": (1 << 64) - 8,
    "edge": edge_of(b"x" * 16),
    "closed": CLOSED.start,
    "long": LONG.start,
}
# For what is written: nothing of a structure fits, or only its beginning.
BAD_BUFFERS = {name: BAD[name] for name in ("null", "unmapped", "kernel", "last", "closed")} | {
    "edge": edge_of(bytes(16)),
    "read-only": READ_ONLY.start,
}

Answers = dict[str, int | str]
Words = Callable[[int], tuple[int | bytes | None, ...]]

# What follows fsconfig(2)'s descriptor.
CONFIGURED: dict[str, Words] = {
    "flag": lambda p: (FSCONFIG_SET_FLAG, p, None, 0),
    "key": lambda p: (FSCONFIG_SET_STRING, p, b"x", 0),
    "value": lambda p: (FSCONFIG_SET_STRING, b"source", p, 0),
    "strange": lambda p: (FSCONFIG_SET_STRING, b"strange", p, 0),
    "binary": lambda p: (FSCONFIG_SET_BINARY, b"strange", p, 32),
    "path": lambda p: (FSCONFIG_SET_PATH, b"strange", p, 0),
    "path, empty": lambda p: (FSCONFIG_SET_PATH_EMPTY, b"strange", p, 0),
    "descriptor": lambda p: (FSCONFIG_SET_FD, p, None, 0),
    "no descriptor": lambda p: (FSCONFIG_SET_FD, b"strange", p, 999),
    "no value": lambda p: (FSCONFIG_SET_FD, b"strange", None, 999),
}


def strings(fstype: bytes, context: Callable[[], int], picked: Callable[[], int]) -> Answers:
    """The calls that read a string; each is made of one bad pointer."""
    place = b"place"

    def config(make: Callable[[], int], words: Words, pointer: int) -> int | str:
        fd = make()
        try:
            return syscall(NR["fsconfig"], fd, *words(pointer))
        finally:
            os.close(fd)

    calls: dict[str, Callable[[int], int | str]] = {
        "mount type": lambda p: syscall(NR["mount"], b"none", place, p, 0, None),
        "mount source": lambda p: syscall(NR["mount"], p, b"missing", fstype, 0, None),
        "mount target": lambda p: syscall(NR["mount"], b"none", p, fstype, 0, None),
        "mount data": lambda p: syscall(NR["mount"], b"none", b"missing", fstype, 0, p),
        "mount all": lambda p: syscall(NR["mount"], p, p, p, 0, p),
        "mount data of a mount": lambda p: syscall(NR["mount"], b"none", b"file", fstype, 0, p),
        "remount target": lambda p: syscall(NR["mount"], None, p, None, MS_REMOUNT, None),
        "remount data": lambda p: syscall(NR["mount"], None, b"missing", None, MS_REMOUNT, p),
        "remount source": lambda p: syscall(NR["mount"], p, place, None, MS_REMOUNT, None),
        "remount type": lambda p: syscall(NR["mount"], None, place, p, MS_REMOUNT, None),
        "umount target": lambda p: syscall(NR["umount2"], p, 0),
        "fsopen type": lambda p: syscall(NR["fsopen"], p, 0),
        "fspick path": lambda p: syscall(NR["fspick"], AT_FDCWD, p, 0),
        "fspick path, empty": lambda p: syscall(NR["fspick"], AT_FDCWD, p, FSPICK_EMPTY_PATH),
        "statfs path": lambda p: syscall(NR["statfs"], p, LONG.start + 3 * PAGE),
        "move_mount from": lambda p: syscall(NR["move_mount"], AT_FDCWD, p, AT_FDCWD, b".", 0),
        "move_mount to": lambda p: syscall(NR["move_mount"], AT_FDCWD, place, AT_FDCWD, p, 0),
    }
    for name, make in (("context", context), ("picked", picked)):
        for what, words in CONFIGURED.items():
            calls[f"{name} {what}"] = partial(config, make, words)
    return {
        f"{name}: {kind}": call(pointer)
        for name, call in calls.items()
        for kind, pointer in BAD.items()
    }


def buffers(fd: int) -> Answers:
    """The calls that write a structure."""
    empty = AT_EMPTY_PATH
    stat = "newfstatat" if "newfstatat" in NR else "fstatat64"
    calls: dict[str, Callable[[int], int | str]] = {
        "statfs": lambda p: syscall(NR["statfs"], b"place", p),
        "fstatfs": lambda p: syscall(NR["fstatfs"], fd, p),
        "fstat": lambda p: syscall(NR["fstat"], fd, p),
        "fstatat": lambda p: syscall(NR[stat], fd, b"", p, empty),
        "statx": lambda p: syscall(NR["statx"], fd, b"", empty, STATX_BASIC_STATS, p),
        "statx reserved": lambda p: syscall(NR["statx"], fd, b"", empty, 1 << 31, p),
    }
    paths: dict[str, Callable[[int], int | str]] = {
        "fstatat path": lambda p: syscall(NR[stat], fd, p, 0, empty),
        "statx path": lambda p: syscall(NR["statx"], fd, p, empty, STATX_BASIC_STATS, 0),
    }
    return {
        f"{name}: {kind}": call(pointer)
        for name, call in paths.items()
        for kind, pointer in BAD.items()
    } | {
        f"{name}: {kind}": call(pointer)
        for name, call in calls.items()
        for kind, pointer in BAD_BUFFERS.items()
    }


def main(fstype: str) -> Answers:
    """All answers, of a mount of ``fstype``; for an instance, of its control node."""
    os.makedirs("place", exist_ok=True)
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY))
    syscalls.mount("none", "place", fstype, 0, None)

    def opened(name: str, *words: int | bytes) -> int:
        fd = syscall(NR[name], *words)
        assert isinstance(fd, int), fd
        return fd

    context = partial(opened, "fsopen", fstype.encode(), 0)
    picked = partial(opened, "fspick", AT_FDCWD, b"place", 0)
    node = "place/loop-control"
    fd = os.open(node, os.O_RDONLY if os.path.exists(node) else os.O_RDONLY | os.O_CREAT)
    answers = strings(fstype.encode(), context, picked) | buffers(fd)
    syscalls.umount2("place", MNT_DETACH)
    return answers


if __name__ == "__main__":
    report(main(sys.argv[1]))
