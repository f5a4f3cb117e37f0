"""The findings of ``loopfs doctor``: yes or no, the consequence of a no, and its remedy.

This module has the checks that need no special system calls; the others are in ``probes``, which
cannot even be imported on a machine that has no table of system calls.
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
    """The result of a check for one thing that loopfs needs or can use.

    ``required``: nothing runs without it. ``consequence`` and ``remedy`` are clauses without a
    full stop, for a no; both are empty for a yes.
    """

    name: str
    ok: bool
    required: bool
    consequence: str = ""
    remedy: str = ""


def machine() -> Finding:
    """Check that there is a table of system calls for this machine, and that Python is 64-bit."""
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
    """Check that /proc exists, and that it is that of our pid namespace."""
    remedy = "mount one: unshare --mount-proc, where unshare made the pid namespace"
    if container():  # perhaps a sandbox inside a sandbox in the container
        remedy = f"{remedy}; {covered_proc()}"
    try:
        if os.readlink("/proc/self") == str(os.getpid()):
            return Finding("/proc", True, True)
    except FileNotFoundError:
        return Finding("/proc", False, True, "there is no /proc", remedy)
    why = "/proc is that of another pid namespace"
    return Finding("/proc", False, True, why, remedy)


def null() -> Finding:
    """Check that /dev/null can be opened; few programs work without it."""
    try:
        os.close(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        why = f"/dev/null cannot be opened ({problem.strerror})"
        return Finding(os.devnull, False, True, why, NO_DEV_NULL)
    return Finding(os.devnull, True, True)


def id_ranges() -> tuple[range, range] | Finding:
    """Return the subordinate user and group ids of this user, or a finding if there are none."""
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
    """Return the first and the last id of an example range. Only the administrator knows whether
    it is free. In a container the range is within the container's ids."""
    kind = path.removeprefix("/etc/sub")
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        end = max(int(first) + int(count) for first, _, count in map(str.split, file))
    own = os.geteuid() if kind == "uid" else os.getegid()
    return (100000, 165535) if end > 165535 else (own + 1, end - 1)


def no_ids(why: str, remedy: str) -> Finding:
    """Return the finding that only the user's own id can be mapped."""
    consequence = (
        f"{why}, so only your own user and group exist in the sandbox: "
        "other owners are shown as nobody, and chown to them fails with EINVAL"
    )
    return Finding(SUBORDINATE_IDS, False, False, consequence, remedy)


SUBORDINATE_IDS = "subordinate ids"


def _subordinate(path: str) -> range:
    """Return the first range of this user in subuid(5) or subgid(5); empty if there is none."""
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
    except KeyError:  # a uid without an account, as in containers
        return str(os.getuid())
