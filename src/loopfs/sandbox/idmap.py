"""Which ids the sandbox's user namespace has, and how the kernel is told.

Source: user_namespaces(7), newuidmap(1), subuid(5).
"""

from __future__ import annotations

import errno
import os
import pwd
import sys

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
    lost: dict[str, str] = {}  # the kinds of ids that there should be, and why not
    if uid == 0:
        for kind in ("uid", "gid"):
            with open(f"/proc/self/{kind}_map", encoding="utf-8") as file:
                _write_all_or_root(pid, kind, identity(file.read()), lost)
        return lambda: _tell(lost)
    uid_tool, gid_tool = (_start_tool(*of, lost) for of in (("uid", pid, uid), ("gid", pid, gid)))

    def finish() -> None:
        if not _succeeded("uid", uid_tool, lost):
            _write(pid, "uid", [Extent(0, uid, 1)])
        if not _succeeded("gid", gid_tool, lost):
            _deny_groups(pid)
            _write(pid, "gid", [Extent(0, gid, 1)])
        _tell(lost)

    return finish


def write_own(uid: int, gid: int) -> None:
    """Be root, with no other ids, of the new user namespace that this process has made.

    Args:
        uid, gid: its ids before.
    Raises:
        SetupError: the kernel refused.
    """
    _write(os.getpid(), "uid", [Extent(0, uid, 1)])
    _deny_groups(os.getpid())
    _write(os.getpid(), "gid", [Extent(0, gid, 1)])


def _write_all_or_root(pid: int, kind: str, extents: list[Extent], lost: dict[str, str]) -> None:
    """Map all ids; root alone where it lacks CAP_SETUID or CAP_SETGID, as in some containers."""
    try:
        _write(pid, kind, extents)
        return
    except SetupError as problem:
        if problem.errno != errno.EPERM:
            raise
    if kind == "gid":
        _deny_groups(pid)
    _write(pid, kind, [Extent(0, 0, 1)])
    lost[kind] = f"root here has not CAP_SET{kind.upper()}, with which it maps other ids"


def _start_tool(kind: str, pid: int, own: int, lost: dict[str, str]) -> int | None:
    """The process that writes a map; None where there is no tool or no subordinate id, or the tool
    can do nothing."""
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
    except OSError as problem:
        lost[kind] = f"{SUBORDINATE[kind]} cannot be read ({problem.strerror})"
        return None
    if not ranges:
        return None
    if no_new_privs():
        lost[kind] = f"{TOOLS[kind]} can do nothing under no_new_privs"
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
    except FileNotFoundError:
        return None
    except OSError as problem:  # one with file capabilities that the container has not
        lost[kind] = f"{TOOLS[kind]} cannot be executed ({problem.strerror})"
        return None


def no_new_privs() -> bool:
    """No program that we execute gets privileges from its file (PR_SET_NO_NEW_PRIVS)."""
    with open("/proc/self/status", "rb") as status:
        return any(line.split() == [b"NoNewPrivs:", b"1"] for line in status)


def _succeeded(kind: str, tool: int | None, lost: dict[str, str]) -> bool:
    if tool is None:
        return False
    if os.waitpid(tool, 0)[1]:
        lost[kind] = f"{TOOLS[kind]} fails, of which `loopfs doctor` says more"
        return False
    return True


def _tell(lost: dict[str, str]) -> None:
    """Say in one line which ids the sandbox lacks, if any."""
    if lost:
        whose = " and ".join({"uid": "user", "gid": "group"}[kind] for kind in lost)
        why = next(iter(lost.values()))
        print(f"loopfs: in the sandbox there is only your own {whose}: {why}", file=sys.stderr)


def _deny_groups(pid: int) -> None:
    with open(f"/proc/{pid}/setgroups", "w", encoding="utf-8") as file:
        file.write("deny")


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
