"""What the calls that mount say to arguments of every kind: of an instance, or of a filesystem of
the kernel's in its place.

    python3 -m tests.faults.programs.arguments loop|tmpfs
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loopfs.uapi import mount as uapi
from loopfs.uapi.stat import STATX
from tests.faults.programs.devices import NR, PAGE, Area, edge_of, libc, report, syscall

Argument = int | bytes | str | None
HERE = uapi.AT_FDCWD
OPTION = {"loop": "max=1", "tmpfs": "nr_inodes=1"}
ROOM = Area(PAGE).start  # for what a call stores
BAD_POINTERS = {
    "1": 1,
    "a page": PAGE,
    "a page that nobody may use": Area(PAGE, protection=0).start,
    "last of user space": (1 << 47) - 1,
    "kernel": 1 << 63,
    "last": (1 << 64) - 1,
}
ATTRIBUTES = uapi.MOUNT_ATTR.pack(uapi.MOUNT_ATTR_NOEXEC, 0, 0, 0)


def call(name: str, *arguments: Argument) -> int | str:
    """A result that is no errno is 0, or "fd"."""
    words = [os.fsencode(word) if isinstance(word, str) else word for word in arguments]
    result = syscall(NR[name], *words)
    return "fd" if isinstance(result, int) and result > 0 else result


def before_nothing(text: str) -> int:
    """The address of a string whose NUL would be where no page is."""
    return edge_of(os.fsencode(text))


class Questions:
    """They gather the answers; each begins and ends with nothing mounted at "one" and "two".

    Args:
        fstype: "loop" or "tmpfs".
    """

    def __init__(self, fstype: str) -> None:
        self.fstype = fstype
        self.option = OPTION[fstype]
        self.answers: dict[str, object] = {}

    def ask(self, label: str, name: str, *arguments: Argument) -> None:
        self.answers[f"{name}: {label}"] = call(name, *arguments)
        self.clear()

    def clear(self) -> None:
        for place in (b"one", b"two"):
            while libc.umount2(place, uapi.MNT_DETACH) == 0:
                pass

    def mount(self, label: str, **changed: Argument) -> None:
        """mount(2) as it would succeed, but for some arguments; and what it has mounted."""
        how: dict[str, Argument] = {
            "source": "none",
            "target": "one",
            "fstype": self.fstype,
            "flags": 0,
            "data": None,
        }
        result = call("mount", *(how | changed).values())
        self.answers[f"mount: {label}"] = result, _flags_at("one")
        self.clear()

    @contextmanager
    def mounted(self) -> Iterator[None]:
        assert call("mount", "none", "one", self.fstype, 0, None) == 0
        yield
        self.clear()

    @contextmanager
    def context(self) -> Iterator[int]:
        fd = syscall(NR["fsopen"], os.fsencode(self.fstype), uapi.FSOPEN_CLOEXEC)
        assert isinstance(fd, int)
        yield fd
        os.close(fd)

    def ask_context(self, label: str, *arguments: Argument) -> None:
        with self.context() as fd:
            self.ask(label, "fsconfig", fd, *arguments)


def _flags_at(name: str) -> list[str]:
    path = os.path.realpath(name)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        return [line.split()[5] for line in file if line.split()[4] == path]


def pointers(the: Questions) -> None:
    for label, bad in BAD_POINTERS.items():
        for argument in ("source", "target", "fstype", "data"):
            the.mount(f"{argument} {label}", **{argument: bad})
        the.mount(f"data {label} and no target", data=bad, target="missing")
        the.ask(label, "umount2", bad, 0)
        the.ask(f"{label} and bad flags", "umount2", bad, 1 << 20)
        the.ask(label, "fsopen", bad, 0)
        the.ask(f"{label} and bad flags", "fsopen", bad, 2)
        the.ask_context(f"name {label}", uapi.FSCONFIG_SET_FLAG, bad, None, 0)
        the.ask_context(f"name of a string {label}", uapi.FSCONFIG_SET_STRING, bad, "1", 0)
        for key in ("source", "strange"):
            for kind, aux in (("STRING", 0), ("BINARY", 5), ("PATH", HERE), ("PATH_EMPTY", HERE)):
                command = getattr(uapi, f"FSCONFIG_SET_{kind}")
                the.ask_context(f"{kind} of {key} {label}", command, key, bad, aux)
        the.ask_context(f"create {label}", uapi.FSCONFIG_CMD_CREATE, bad, None, 0)
        the.ask(label, "fspick", HERE, bad, 0)
        the.ask(label, "statfs", bad, ROOM)
        the.ask(label, "move_mount", HERE, bad, HERE, "two", 0)


def pointers_where_it_is_mounted(the: Questions) -> None:
    def asked(label: str, name: str, *arguments: Argument) -> None:
        with the.mounted():
            the.ask(label, name, *arguments)

    for label, bad in BAD_POINTERS.items():
        arguments = {"source": "none", "target": "one", "fstype": the.fstype}
        for argument in arguments:
            words = (arguments | {argument: bad}).values()
            asked(f"remount {argument} {label}", "mount", *words, uapi.MS_REMOUNT, None)
        asked(f"remount data {label}", "mount", "none", "one", None, uapi.MS_REMOUNT, bad)
        asked(f"bind {label}", "mount", bad, "two", None, uapi.MS_BIND, None)
        asked(f"statfs {label}", "statfs", "one", bad)
        asked(f"from {label}", "move_mount", HERE, bad, HERE, "two", 0)
        asked(f"to {label}", "move_mount", HERE, "one", HERE, bad, 0)
        asked(f"open_tree {label}", "open_tree", HERE, bad, 0)
        asked(f"mount_setattr {label}", "mount_setattr", HERE, bad, 0, ATTRIBUTES, 32)
        asked(f"mount_setattr of {label}", "mount_setattr", HERE, "one", 0, bad, 32)
        with the.mounted():
            fd = os.open("one", os.O_RDONLY)
            answers = {
                "fspick": call("fspick", fd, bad, uapi.FSPICK_EMPTY_PATH),
                "fspick, flags": call("fspick", fd, bad, 99),
                "fstatfs": call("fstatfs", fd, bad),
                "fstat": call("fstat", fd, bad),
                "newfstatat": call("newfstatat", fd, bad, ROOM, uapi.AT_EMPTY_PATH),
                "newfstatat to": call("newfstatat", fd, "", bad, uapi.AT_EMPTY_PATH),
                "statx": call("statx", fd, bad, uapi.AT_EMPTY_PATH, 0xFFF, ROOM),
                "statx to": call("statx", fd, "", uapi.AT_EMPTY_PATH, 0xFFF, bad),
                "open_tree": call("open_tree", fd, bad, uapi.AT_EMPTY_PATH),
                "move_mount": call("move_mount", fd, bad, HERE, "two", 4),
                "move_mount to": call("move_mount", fd, "", HERE, bad, 4),
            }
            os.close(fd)
        the.answers[f"descriptor: {label}"] = answers


def descriptors(the: Questions) -> None:
    """Those that nobody has open."""
    assert STATX.size <= PAGE
    with the.mounted():  # else nothing would be looked at
        keep = os.open("one", os.O_RDONLY)
        answers = {}
        for number in (999, -1, 1 << 31, HERE):
            for name, *arguments in (
                ("fstat", ROOM),
                ("fstatfs", ROOM),
                ("newfstatat", "", ROOM, uapi.AT_EMPTY_PATH),
                ("statx", "", uapi.AT_EMPTY_PATH, 0xFFF, ROOM),
                ("fsync",),
                ("fdatasync",),
                ("syncfs",),
                ("fsconfig", 0, "ro", None, 0),
                ("fsmount", 0, 0),
                ("fspick", "missing", 0),
                ("move_mount", "", HERE, "two", 4),
                ("open_tree", "missing", 0),
            ):
                answers[f"{name} {number}"] = call(str(name), number, *arguments)
        os.close(keep)
    the.answers["descriptors"] = answers


def strings(the: Questions) -> None:
    the.mount("type at the edge", fstype=edge_of(os.fsencode(the.fstype) + b"\0"))
    the.mount("target at the edge", target=edge_of(b"one\0"))
    the.mount("data at the edge", data=edge_of(os.fsencode(the.option) + b"\0"))
    the.mount("type before nothing", fstype=before_nothing(the.fstype))
    the.mount("source before nothing", source=before_nothing("none"))
    the.mount("target before nothing", target=before_nothing("one"))
    the.mount("data before nothing", data=before_nothing(the.option))
    the.mount("bad data before nothing", data=before_nothing("strange"))
    the.mount("long type", fstype="x" * PAGE)
    the.mount("long source", source="x" * PAGE)
    the.mount("long target", target="./" * (PAGE // 2 - 1) + "one")
    the.mount("longest target", target="./" * (PAGE // 2 - 2) + "one")
    the.mount("longer data", data=the.option + ",ro" * PAGE)
    for argument in ("source", "target", "fstype"):
        the.mount(f"no {argument}", **{argument: None})
    for argument in ("source", "target", "fstype", "data"):
        the.mount(f"empty {argument}", **{argument: ""})
    the.mount("subtype", fstype=the.fstype + ".x")
    for target in ("missing", "file", "file/x", "link", "loop", "one/"):
        for option in ("strange", the.option):
            the.mount(f"{target} {option == the.option}", target=target, data=option)
    for target in ("", "missing", "two", "file", "x" * PAGE):
        the.ask(target[:9], "umount2", target, 0)
        the.ask(f"remount {target[:9]}", "mount", None, target, None, uapi.MS_REMOUNT, "strange")


def flags(the: Questions) -> None:
    for bit in (*range(33), 63):
        number = 1 << bit
        source = "/tmp" if number & (uapi.MS_BIND | uapi.MS_MOVE) else "none"
        the.mount(f"flag {number:#x}", source=source, flags=number)
    for number in (uapi.MS_MGC_VAL, uapi.MS_MGC_VAL | uapi.MS_RDONLY):
        the.mount(f"magic {number:#x}", flags=number)
    two_kinds = uapi.MS_PRIVATE | uapi.MS_SLAVE
    for number in (two_kinds, uapi.MS_BIND | uapi.MS_RDONLY, uapi.MS_BIND | uapi.MS_REC):
        the.mount(f"flags {number:#x}", source="/tmp", flags=number)
    for number in (uapi.MNT_FORCE, uapi.MNT_DETACH, uapi.UMOUNT_NOFOLLOW, 16, 4 | 2, 4 | 1):
        with the.mounted():
            the.ask(f"flags {number}", "umount2", "one", number)
    for name in ("link", "one/x", "one/."):
        for number in (0, uapi.UMOUNT_NOFOLLOW):
            with the.mounted():
                the.ask(f"{name} {number}", "umount2", name, number)
    with the.mounted():
        expire = uapi.MNT_EXPIRE
        the.answers["expire"] = [call("umount2", "one", expire) for _ in range(3)]


WORDS = (
    *("ro", "rw", "sync", "async", "dirsync", "lazytime", "nolazytime", "mand", "nomand"),
    *("silent", "posixacl", "nodev", "nosuid", "noexec", "noatime", "relatime", "remount"),
    *("source", "", "strange", "x" * 255, "x" * 256),
)


def parameters(the: Questions) -> None:
    for word in WORDS:
        the.mount(f"option {word[:9]} {len(word)}", data=word)
        the.ask_context(f"flag {word[:9]} {len(word)}", uapi.FSCONFIG_SET_FLAG, word, None, 0)
        the.ask_context(f"{word[:9]} {len(word)}", uapi.FSCONFIG_SET_STRING, word, "1", 0)
    null: tuple[str | None, str | None] = (None, None)
    for command in (*range(10), 99):
        for key, value in (null, ("ro", None), ("source", "file"), ("source", ""), (None, "x")):
            for aux in (0, 1, HERE, -1, (1 << 20) + 1):
                label = f"{command} {key} {value} {aux}"
                the.ask_context(label, command, key, value, aux)
    for number in (0, 1, 2, 1 << 31):
        _fsmount(the, number, 0)
        _fsmount(the, 1, number << 24)
    for bit in range(9):
        _fsmount(the, 1, 1 << bit)


def _fsmount(the: Questions, number: int, attributes: int) -> None:
    with the.context() as fd:
        assert call("fsconfig", fd, uapi.FSCONFIG_CMD_CREATE, None, None, 0) == 0
        the.ask(f"{number} {attributes:#x}", "fsmount", fd, number, attributes)


GROUPS: tuple[Callable[[Questions], None], ...] = (
    pointers,
    pointers_where_it_is_mounted,
    descriptors,
    strings,
    flags,
    parameters,
)

if __name__ == "__main__":
    home = tempfile.mkdtemp(dir="/var/tmp")
    try:
        os.chdir(home)
        for directory in ("one", "two"):
            os.mkdir(directory)
        os.symlink("one", "link")
        os.symlink("loop", "loop")
        os.close(os.open("file", os.O_CREAT))
        questions = Questions(sys.argv[1])
        for group in GROUPS:
            group(questions)
        report(questions.answers)
    finally:
        os.chdir("/")
        shutil.rmtree(home)
