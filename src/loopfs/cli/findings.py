"""What a doctor finds: a yes or a no, what follows from a no, and how to mend it.

Here is what can be seen without asking the kernel for anything; the rest is in ``probes``,
which cannot even be imported on a machine that has no table of system calls.
"""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import sys
from typing import NamedTuple

from loopfs.cli.remedies import NO_DEV_NULL, container, covered_proc
from loopfs.uapi.syscalls import MACHINES


class Finding(NamedTuple):
    """One thing that loopfs needs or can use.

    ``required``: nothing runs without it. ``consequence`` and ``remedy`` are clauses without a
    full stop, for a no; both are empty for a yes.
    """

    name: str
    ok: bool
    required: bool
    consequence: str = ""
    remedy: str = ""


def machine() -> Finding:
    """There is a table of system calls for this machine, and Python uses that table."""
    name = platform.machine()
    if name not in MACHINES:
        known = ", ".join(MACHINES)
        why = f"loopfs has no table of system calls for {name} machines"
        return Finding("machine", False, True, why, f"use one of: {known}")
    if sys.maxsize < 2**32:
        why = "this Python is a 32-bit program, and loopfs uses the 64-bit system calls"
        return Finding("machine", False, True, why, "run loopfs with a 64-bit Python")
    return Finding("machine", True, True)


def proc() -> Finding:
    """/proc is there, and its process ids are those that system calls give us."""
    remedy = "mount one: unshare --mount-proc, where unshare made the pid namespace"
    if container():  # a sandbox in a sandbox there
        remedy = f"{remedy}; {covered_proc()}"
    try:
        if os.readlink("/proc/self") == str(os.getpid()):
            return Finding("/proc", True, True)
    except FileNotFoundError:
        return Finding("/proc", False, True, "there is no /proc", remedy)
    why = "/proc is that of another pid namespace"
    return Finding("/proc", False, True, why, remedy)


def null() -> Finding:
    """/dev/null is there, without which few programs work."""
    try:
        os.close(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        why = f"/dev/null cannot be opened ({problem.strerror})"
        return Finding(os.devnull, False, True, why, NO_DEV_NULL)
    return Finding(os.devnull, True, True)


def id_ranges() -> tuple[range, range] | Finding:
    """The subordinate user and group ids of this user, or why there are none to use."""
    if os.geteuid() == 0:  # root maps all ids as themselves
        return Finding(SUBORDINATE_IDS, True, False)
    for tool in ("newuidmap", "newgidmap"):
        if not shutil.which(tool):
            return no_ids(f"{tool} is not installed", "run: sudo apt install uidmap")
    uids, gids = _subordinate("/etc/subuid"), _subordinate("/etc/subgid")
    if uids and gids:
        return uids, gids
    where = "/etc/subgid" if uids else "/etc/subuid"
    option = "--add-subgids" if uids else "--add-subuids"
    user = _user_name()
    first, last = _example(where)
    remedy = f"run: sudo usermod {option} {first}-{last} {user} (with a range that is free)"
    return no_ids(f"{where} has no range for {user}", remedy)


def _example(path: str) -> tuple[int, int]:
    """The first and the last id of a range that might be free, which is for the administrator to
    say; in a container, of those that it has."""
    kind = path.removeprefix("/etc/sub")
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        end = max(int(first) + int(count) for first, _, count in map(str.split, file))
    own = os.geteuid() if kind == "uid" else os.getegid()
    return (100000, 165535) if end > 165535 else (own + 1, end - 1)


def no_ids(why: str, remedy: str) -> Finding:
    """The finding that only the user's own id can be mapped."""
    consequence = (
        f"{why}, so only your own user and group exist in the sandbox: "
        "other owners show as nobody, and chown to them fails with EINVAL"
    )
    return Finding(SUBORDINATE_IDS, False, False, consequence, remedy)


SUBORDINATE_IDS = "subordinate ids"


def _subordinate(path: str) -> range:
    """The first range that subuid(5) or subgid(5) gives this user; empty when there is none."""
    owners = {str(os.getuid()), _user_name()}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        return range(0)
    for owner, *numbers in lines:
        if owner in owners and len(numbers) == 2 and all(n.isdecimal() for n in numbers):
            start, count = map(int, numbers)
            return range(start, start + count)
    return range(0)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a uid without an account, as containers have
        return str(os.getuid())
