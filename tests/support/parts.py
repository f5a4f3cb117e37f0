"""The processes of a sandbox, as seen from outside."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from tests.support.patience import scaled
from tests.support.skip import need

PATIENCE = scaled(10.0)  # seconds

T = TypeVar("T")


class Parts(NamedTuple):
    """The process ids of a sandbox, determined by parents and pid namespaces."""

    supervisor: int
    child: int
    init: int
    helper: int
    engines: list[int]


def parts_of(supervisor: int) -> Parts:
    """Return the processes of the sandbox of ``supervisor``; its command must be running."""
    children = children_of(supervisor)
    ((child, init),) = (
        (pid, each)
        for pid in children
        for each in children_of(pid)
        # Engines have pid namespaces, too.
        if _depth(each) > _depth(supervisor) and _name(each) == _name(supervisor)
    )
    (helper,) = (pid for pid in children if pid != child)
    return Parts(supervisor, child, init, helper, engines_of(helper))


def engines_of(helper: int) -> list[int]:
    """Return the engines among its children; the others are jobs. An engine that is starting is a
    child of its keeper."""
    return [pid for pid in children_of(helper) if _name(pid) in ("ext4", "fuse2fs", "vfat")]


def jobs_of(helper: int) -> list[int]:
    """Those of an ordinary user's helper that act for a caller, and engines: not the spare one."""

    def acts(pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(re.findall(r"^CapEff:(.*)", status, re.M)[0], 16) != 0

    return [pid for pid in children_of(helper) if acts(pid)]


def children_of(parent: int) -> list[int]:
    """Return the children of ``parent`` that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, ppid = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(ppid) == parent and state != "Z":
                    found.append(int(entry.name))
    return found


def descriptors(pid: int) -> list[str]:
    """Return the targets of the open descriptors of a process."""
    need(os.access(f"/proc/{pid}/fd", os.R_OK), "only root may look at who serves a sandbox")
    return sorted(os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def memory(pid: int) -> int:
    """Return the anonymous memory of a process in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise ProcessLookupError(pid)


def wait_until(condition: Callable[[], T], what: str) -> T:
    """Return the first true value of ``condition``; fail if there is none within PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)
    return value


def _depth(pid: int) -> int:
    """Return the number of pid namespaces that a process is in, 0 if it has ended."""
    try:
        (line,) = re.findall(r"^NSpid:(.*)", Path(f"/proc/{pid}/status").read_text(), re.M)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return len(line.split())


def _name(pid: int) -> str:
    """Return the name of a process, "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""
