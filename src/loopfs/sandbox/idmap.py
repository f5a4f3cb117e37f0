"""Which ids the sandbox's user namespace has, and how the kernel is told.

Source: user_namespaces(7), newuidmap(1), subuid(5).
"""

from __future__ import annotations

import errno
import os
import pwd

from loopfs.errors import SetupError
from loopfs.lean import Callable, NamedTuple

SUBORDINATE = {"uid": "/etc/subuid", "gid": "/etc/subgid"}
MAP = "uid_map"  # stands for the name of the call that writes it
TOOLS = {"uid": "newuidmap", "gid": "newgidmap"}


class Extent(NamedTuple):
    """``length`` ids: ``inside`` the namespace, ``outside`` in its parent."""

    inside: int
    outside: int
    length: int


def identity(own_map: str) -> list[Extent]:
    """Every id that this process's own namespace has, as itself (for its root).

    Args:
        own_map: the text of /proc/self/uid_map or gid_map.
    """
    extents = []
    for line in own_map.splitlines():
        inside, _, count = map(int, line.split())
        extents.append(Extent(inside, inside, count))
    return extents


def subordinate(text: str, name: str, uid: int) -> list[tuple[int, int]]:
    """The ranges (start, count) that a user has in the text of /etc/subuid or subgid."""
    ranges = []
    for line in text.splitlines():
        owner, _, numbers = line.partition(":")
        start, _, count = numbers.partition(":")
        if owner in (name, str(uid)) and start.isdigit() and count.isdigit():
            ranges.append((int(start), int(count)))
    return ranges


def with_ranges(own: int, ranges: list[tuple[int, int]]) -> list[Extent]:
    """The caller as id 0, its subordinate ids from 1 on."""
    extents = [Extent(0, own, 1)]
    following = 1
    for start, count in ranges:
        extents.append(Extent(following, start, count))
        following += count
    return extents


def write_maps(pid: int) -> Callable[[], None]:
    """Begin to give process ``pid``, alone in a new user namespace, its ids.

    Root maps all ids it has; others themselves as root, with their subordinate ids where
    newuidmap and newgidmap allow it.

    Returns:
        what waits for these two and makes up for their failure; it must be called.
    Raises:
        SetupError: the kernel refused (so does the function that is returned).
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        for kind in ("uid", "gid"):
            with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
                _write(pid, kind, identity(file.read()))
        return lambda: None
    uid_tool, gid_tool = _start_tool("uid", pid, uid), _start_tool("gid", pid, gid)

    def finish() -> None:
        if not _succeeded(uid_tool):
            _write(pid, "uid", [Extent(0, uid, 1)])
        if not _succeeded(gid_tool):
            with open(f"/proc/{pid}/setgroups", "w", encoding="utf-8") as file:
                file.write("deny")
            _write(pid, "gid", [Extent(0, gid, 1)])

    return finish


def _start_tool(kind: str, pid: int, own: int) -> int | None:
    """The process that writes a map; None where there is no tool or no subordinate id."""
    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    try:
        with open(SUBORDINATE[kind], encoding="utf-8", errors="replace") as file:
            ranges = subordinate(file.read(), name, uid)
    except FileNotFoundError:
        return None
    if not ranges:
        return None
    numbers = [str(n) for extent in with_ranges(own, ranges) for n in extent]
    try:
        return os.posix_spawnp(
            TOOLS[kind],
            [TOOLS[kind], str(pid), *numbers],
            os.environ,
            # Its failure has a remedy, and `loopfs doctor` speaks of it.
            file_actions=[(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)],
        )
    except OSError:  # there is none, or we may not execute it: one with a capability that we lack
        return None


def _succeeded(tool: int | None) -> bool:
    return tool is not None and os.waitpid(tool, 0)[1] == 0


def _write(pid: int, kind: str, extents: list[Extent]) -> None:
    path = f"/proc/{pid}/{kind}_map"
    text = "".join(f"{e.inside} {e.outside} {e.length}\n" for e in extents)
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None
    except OSError as problem:
        raise SetupError(
            problem.errno or 0,
            f"the kernel refused the {kind} map of the sandbox ({problem.strerror})",
            MAP,
        ) from None
