"""Find the cgroup of a container, into which its engines are moved (cgroups(7))."""

from __future__ import annotations

import os
from collections.abc import Iterator

from loopfs.process import Process
from loopfs.text import to_str

PROCS = "cgroup.procs"
V2 = ""  # in /proc/PID/cgroup, in place of the controllers: the hierarchy of version 2


def procs_of(process: Process) -> tuple[int, ...]:
    """Open cgroup.procs of each hierarchy in which the cgroup of a process differs from ours.

    Raises:
        OSError: we may not move a process there.
    """
    own = dict(_cgroups("/proc/self/cgroup"))
    places = _hierarchies()
    fds: list[int] = []
    try:
        for controllers, path in _cgroups(process.path("cgroup")):
            if own.get(controllers) == path or controllers not in places:
                continue
            root, place = places[controllers]
            below = os.path.relpath(path, root)
            name = os.path.normpath(os.path.join(place, below, PROCS))
            fds.append(os.open(name, os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    return tuple(fds)


def _cgroups(path: str) -> Iterator[tuple[str, str]]:
    """Yield the controllers of each hierarchy, and the cgroup in it."""
    with open(path, "rb") as file:
        for line in file:
            _, controllers, place = to_str(line.rstrip(b"\n")).split(":", 2)
            yield controllers, place


def _hierarchies() -> dict[str, tuple[str, str]]:
    """Return the cgroup that is mounted, and its mount point, by controllers of the hierarchy."""
    found: dict[str, tuple[str, str]] = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            fields = to_str(line).split()
            root, place = fields[3], fields[4]
            fstype, _, options = fields[fields.index("-") + 1 :][:3]
            if fstype == "cgroup2":
                found.setdefault(V2, (root, place))
            elif fstype == "cgroup":
                for controllers in _named(options):
                    found.setdefault(controllers, (root, place))
    return found


def _named(options: str) -> Iterator[str]:
    """Yield the name in /proc/PID/cgroup of a hierarchy of version 1 with these mount options."""
    words = [word for word in options.split(",") if word not in ("rw", "ro", "xattr")]
    kept = [word for word in words if not word.startswith(("release_agent=", "clone_children"))]
    yield ",".join(kept)
