"""Nodes that something is mounted on, by a bind mount of a file.

A lookup that is answered with a node's other face has the kernel drop the dentry, and with it what
is mounted there, in every mount namespace. So from before such a mount is made until nothing is
mounted there any more, all lookups get the data face.

Nobody tells us of the end of a mount: it may go with its namespace. So a lookup that wants the
special face of such a node looks for it in the mount tables, in a thread of its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from time import monotonic, sleep

from loopfs.filesystems.faces import MOUNTING, stat_fields
from loopfs.filesystems.nodes import Node
from loopfs.lean import NamedTuple
from loopfs.process import Process

DOUBT = 0.05  # seconds for which a thread that runs may be in a call that mounts
_GONE = (FileNotFoundError, ProcessLookupError)


class Mounter(NamedTuple):
    """A thread whose call was to mount something, and the CPU time (clock ticks) it had by then."""

    tid: int
    ticks: int


class Cover:
    """What may be mounted on a node; replaced by another object whenever that may have changed.

    ``mounters`` may not have mounted it yet.
    """

    __slots__ = ("mounters",)

    def __init__(self, mounters: tuple[Mounter, ...]) -> None:
        self.mounters = mounters


class Covers:
    """The covered nodes of an instance.

    Args:
        device_number: its st_dev.
        places: the directories that have a node by its name: each one's node id, and its path
            from the filesystem's root, with a slash at the end.
        drop_name: has the kernel forget a name of such a directory; it waits for lookups there.
    """

    def __init__(
        self,
        device_number: int,
        places: Callable[[Node], tuple[tuple[int, bytes], ...]],
        drop_name: Callable[[int, bytes], None],
    ) -> None:
        self._number = b"%d:%d" % (os.major(device_number), os.minor(device_number))
        self._places = places
        self._drop_name = drop_name
        self._beginning = threading.Lock()  # never taken by who answers a lookup
        self._lock = threading.Lock()  # for node.cover; nobody waits with it

    def begin(self, node: Node, tid: int, *, by_path: bool) -> None:
        """To be called before the call of a thread goes on that will mount something on a node.

        An answer with the special face that was given before may not have been acted upon yet. It
        would take away a mount on the dentry that it was about; so that is dropped first.

        Args:
            tid: the thread.
            by_path: the call will look the name up. Else it has the dentry, which must stay.
        """
        mounter = mounter_of(tid)
        with self._beginning:
            with self._lock:
                cover = node.cover
                before = () if cover is None else cover.mounters
                node.cover = Cover((*(m for m in before if m.tid != tid), mounter))
            if cover is None and by_path:
                for directory, _ in self._places(node):
                    self._drop_name(directory, node.name)

    def is_over(self, node: Node) -> bool:
        """Nothing is mounted on a node any more, and so its special face may be shown."""
        while (cover := node.cover) is not None:
            mounters = tuple(m for m in cover.mounters if not has_left(m))
            paths = tuple(path + node.name for _, path in self._places(node))
            covered = bool(mounters) or is_covered(self._number, paths)
            with self._lock:
                if node.cover is cover:
                    node.cover = Cover(mounters) if covered else None
                    return not covered
                if node.cover is not None and node.cover.mounters:
                    return False  # a mount has begun meanwhile
        return True


def has_left(mounter: Mounter) -> bool:
    """A thread is no longer in the call that mounts.

    Of one that runs /proc does not say which call it is in. One that has had the CPU for two clock
    ticks since then is not in the middle of mounting a file.
    """
    process = Process(mounter.tid)
    deadline = monotonic() + DOUBT
    try:
        while True:
            with open(process.path("syscall"), "rb", buffering=0) as file:
                number, *_ = file.read(256).split()
            if number != b"running":
                return int(number) not in MOUNTING
            if _ticks(process) - mounter.ticks >= 2:
                return True
            if monotonic() > deadline:
                return False
            sleep(0.001)
    except _GONE:
        return True


def mounter_of(tid: int) -> Mounter:
    """Of a thread that is in a call that mounts."""
    return Mounter(tid, _ticks(Process(tid)))


def _ticks(process: Process) -> int:
    """User and system time in clock ticks (fields 14 and 15 of /proc/TID/stat)."""
    fields = stat_fields(process)
    return int(fields[11]) + int(fields[12])


def is_covered(number: bytes, paths: tuple[bytes, ...] | None) -> bool:
    """Something is mounted on a file, in the mount namespace of any process that we may look at.

    Args:
        number: its filesystem's device number, as mountinfo has it.
        paths: those of its names from the root of that filesystem; None: any file or directory.
    """
    shown = None if paths is None else tuple(map(escaped, paths))
    seen: set[tuple[str, str]] = set()
    failed: set[tuple[str, tuple[str, str]]] = set()
    while True:
        news = False
        for task in _tasks():
            try:
                # Who has another root is not shown what is mounted outside of it.
                view = os.readlink(f"{task}/ns/mnt"), os.readlink(f"{task}/root")
            except OSError:  # it is gone, or another user's
                continue
            if view in seen or (task, view) in failed:
                continue
            news = True
            try:
                with open(f"{task}/mountinfo", "rb") as file:
                    table = file.read()
            except OSError:  # it is gone: perhaps another one has the same view
                failed.add((task, view))
                continue
            seen.add(view)
            if number in table and covers(table, number, shown):
                return True
        if not news:  # else a namespace may have been copied, and the mount in the first be gone
            return False


def _tasks() -> Iterator[str]:
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                tids = os.listdir(f"/proc/{pid}/task")
            except OSError:  # it is gone
                continue
            for tid in tids:
                yield f"/proc/{pid}/task/{tid}"


def covers(table: bytes, number: bytes, paths: tuple[bytes, ...] | None) -> bool:
    """A mount table (proc_pid_mountinfo(5)) has a mount on a file.

    Args:
        number: the device number of the file's filesystem.
        paths: those of the file from that filesystem's root, as :func:`escaped`; None: any.
    """
    lines = [line.split(b" ", 5)[:5] for line in table.splitlines()]
    ours = {mount: (root, place) for mount, _, device, root, place in lines if device == number}
    for _, parent, _, _, place in lines:
        if parent in ours:
            if paths is None:
                return True
            root, above = (part.rstrip(b"/") for part in ours[parent])
            if place.startswith(above) and root + place[len(above) :] in paths:
                return True
    return False


def escaped(name: bytes) -> bytes:
    """A file name as mountinfo shows it."""
    for character in b"\\ \t\n":  # the backslash first
        name = name.replace(bytes((character,)), b"\\%03o" % character)
    return name
