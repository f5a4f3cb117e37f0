"""The id maps of the sandbox's user namespace, and how they are written.

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
MAP = "uid_map"  # used in place of the name of the call that writes it
TOOLS = {"uid": "newuidmap", "gid": "newgidmap"}


class Extent(NamedTuple):
    """``length`` ids: ``inside`` the namespace, ``outside`` in its parent."""

    inside: int
    outside: int
    length: int


def identity(own_map: str) -> list[Extent]:
    """Return a map of every id of this process's own namespace to itself (for its root).

    Args:
        own_map: the text of /proc/self/uid_map or gid_map.
    """
    extents = []
    for line in own_map.splitlines():
        inside, _, count = map(int, line.split())
        extents.append(Extent(inside, inside, count))
    return extents


def subordinate(text: str, name: str, uid: int) -> list[tuple[int, int]]:
    """Return the ranges (start, count) of a user in the text of /etc/subuid or subgid."""
    ranges = []
    for line in text.splitlines():
        owner, _, numbers = line.partition(":")
        start, _, count = numbers.partition(":")
        if owner in (name, str(uid)) and start.isdigit() and count.isdigit():
            ranges.append((int(start), int(count)))
    return ranges


def with_ranges(own: int, ranges: list[tuple[int, int]]) -> list[Extent]:
    """Return a map with the caller's id as 0, and its subordinate ids from 1 on."""
    extents = [Extent(0, own, 1)]
    following = 1
    for start, count in ranges:
        extents.append(Extent(following, start, count))
        following += count
    return extents


def write_maps(pid: int) -> Callable[[], None]:
    """Begin to write the id maps of process ``pid``, which is alone in a new user namespace.

    Root maps all ids that it has. Other users map themselves as root, and their subordinate ids
    if newuidmap and newgidmap succeed.

    Returns:
        a function that waits for these two, and maps only the user's own id where they have failed;
        it must be called.
    Raises:
        SetupError: the kernel refused (the returned function raises it, too).
    """
    uid, gid = os.geteuid(), os.getegid()
    lost: dict[str, str] = {}  # the kinds of ids that are missing, with the reason
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
    """Map only root in the new user namespace that this process has made.

    Args:
        uid, gid: the ids of the process before.
    Raises:
        SetupError: the kernel refused.
    """
    _write(os.getpid(), "uid", [Extent(0, uid, 1)])
    _deny_groups(os.getpid())
    _write(os.getpid(), "gid", [Extent(0, gid, 1)])


def _write_all_or_root(pid: int, kind: str, extents: list[Extent], lost: dict[str, str]) -> None:
    """Map all ids; only root where it lacks CAP_SETUID or CAP_SETGID, as in some containers."""
    try:
        _write(pid, kind, extents)
        return
    except SetupError as problem:
        if problem.errno != errno.EPERM:
            raise
    if kind == "gid":
        _deny_groups(pid)
    _write(pid, kind, [Extent(0, 0, 1)])
    lost[kind] = f"root here lacks CAP_SET{kind.upper()}, which mapping other ids requires"


def _start_tool(kind: str, pid: int, own: int, lost: dict[str, str]) -> int | None:
    """Start the process that writes a map; None if there is no tool or no subordinate id, or the
    tool cannot work."""
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
        lost[kind] = f"{TOOLS[kind]} does not work under no_new_privs"
        return None
    numbers = [str(n) for extent in with_ranges(own, ranges) for n in extent]
    try:
        return os.posix_spawnp(
            TOOLS[kind],
            [TOOLS[kind], str(pid), *numbers],
            os.environ,
            # `loopfs doctor` reports its error with a remedy.
            file_actions=[(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)],
        )
    except FileNotFoundError:
        return None
    except OSError as problem:  # it has file capabilities that the container lacks
        lost[kind] = f"{TOOLS[kind]} cannot be executed ({problem.strerror})"
        return None


def no_new_privs() -> bool:
    """Whether execve(2) gives no privileges (PR_SET_NO_NEW_PRIVS)."""
    with open("/proc/self/status", "rb") as status:
        return any(line.split() == [b"NoNewPrivs:", b"1"] for line in status)


def _succeeded(kind: str, tool: int | None, lost: dict[str, str]) -> bool:
    if tool is None:
        return False
    if os.waitpid(tool, 0)[1]:
        lost[kind] = f"{TOOLS[kind]} fails; `loopfs doctor` shows its error"
        return False
    return True


def _tell(lost: dict[str, str]) -> None:
    """Report in one line which ids the sandbox lacks, if any."""
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
