"""Nodes that something is mounted on, by a bind mount of a file.

If a lookup of a node returns its other face, the kernel drops the dentry and unmounts what is
mounted on it, in every mount namespace. So all lookups return the data face from before such a
mount is made until nothing is mounted there any more.

The end of a mount is not reported: it may end with its namespace. So before a lookup returns the
special face of such a node, a thread searches the mount tables for mounts on it.
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

DOUBT = 0.05  # seconds for which a running thread is assumed to be in a call that mounts
_GONE = (FileNotFoundError, ProcessLookupError)


class Mounter(NamedTuple):
    """A thread whose call was to mount something, and its CPU time (clock ticks) at that moment."""

    tid: int
    ticks: int


class Cover:
    """Mounts that may exist on a node; the object is replaced whenever that may have changed.

    ``mounters`` are threads that may not have finished mounting.
    """

    __slots__ = ("mounters",)

    def __init__(self, mounters: tuple[Mounter, ...]) -> None:
        self.mounters = mounters


class Covers:
    """The covered nodes of an instance.

    Args:
        device_number: st_dev of the instance.
        places: returns the directories that contain a node under its name: the node id of each,
            and its path from the root of the filesystem with a trailing slash.
        drop_name: makes the kernel drop a dentry of such a directory; waits for lookups there.
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
        self._beginning = threading.Lock()  # never locked by a thread that answers a lookup
        self._lock = threading.Lock()  # protects node.cover; its owner does not block

    def begin(self, node: Node, tid: int, *, by_path: bool) -> None:
        """Mark a node as covered, before a call that mounts something on it is continued.

        The kernel may not yet have processed an earlier answer with the special face, which would
        remove a mount on the dentry. So the dentry is dropped first.

        Args:
            tid: the thread that mounts.
            by_path: the call will look up the name. Otherwise it holds the dentry, which must stay.
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
        """Return whether nothing is mounted on a node; if so, its special face may be returned."""
        while (cover := node.cover) is not None:
            mounters = tuple(m for m in cover.mounters if not has_left(m))
            paths = tuple(path + node.name for _, path in self._places(node))
            covered = bool(mounters) or is_covered(self._number, paths)
            with self._lock:
                if node.cover is cover:
                    node.cover = Cover(mounters) if covered else None
                    return not covered
                if node.cover is not None and node.cover.mounters:
                    return False  # a mount has begun in the meantime
        return True


def has_left(mounter: Mounter) -> bool:
    """Return whether a thread has left the call that mounts.

    /proc does not show which call a running thread is in. A thread that has used the CPU for two
    clock ticks since then is not mounting a file any more.
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
    """Return the Mounter of a thread that is in a call that mounts."""
    return Mounter(tid, _ticks(Process(tid)))


def _ticks(process: Process) -> int:
    """Return user plus system time in clock ticks (fields 14 and 15 of /proc/TID/stat)."""
    fields = stat_fields(process)
    return int(fields[11]) + int(fields[12])


def is_covered(number: bytes, paths: tuple[bytes, ...] | None) -> bool:
    """Return whether something is mounted on a file, in any mount namespace that we can see.

    Args:
        number: the device number of its filesystem, as in mountinfo.
        paths: the paths of its names from the root of that filesystem; None: any file or
            directory of the filesystem.
    """
    shown = None if paths is None else tuple(map(escaped, paths))
    seen: set[tuple[str, str]] = set()
    failed: set[tuple[str, tuple[str, str]]] = set()
    while True:
        news = False
        for task in _tasks():
            try:
                # A process with another root directory does not see mounts outside of it.
                view = os.readlink(f"{task}/ns/mnt"), os.readlink(f"{task}/root")
            except OSError:  # the process has ended, or belongs to another user
                continue
            if view in seen or (task, view) in failed:
                continue
            news = True
            try:
                with open(f"{task}/mountinfo", "rb") as file:
                    table = file.read()
            except OSError:  # the process has ended; another one may have the same view
                failed.add((task, view))
                continue
            seen.add(view)
            if number in table and covers(table, number, shown):
                return True
        if not news:  # else a namespace may have been copied and the original mount removed
            return False


def _tasks() -> Iterator[str]:
    for pid in os.listdir("/proc"):
        if pid.isdigit():
            try:
                tids = os.listdir(f"/proc/{pid}/task")
            except OSError:  # the process has ended
                continue
            for tid in tids:
                yield f"/proc/{pid}/task/{tid}"


def covers(table: bytes, number: bytes, paths: tuple[bytes, ...] | None) -> bool:
    """Return whether a mount table (proc_pid_mountinfo(5)) has a mount on a file.

    Args:
        number: the device number of the file's filesystem.
        paths: the paths of the file from that filesystem's root, :func:`escaped`; None: any.
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
    """Return a file name as mountinfo shows it."""
    for character in b"\\ \t\n":  # the backslash first
        name = name.replace(bytes((character,)), b"\\%03o" % character)
    return name
