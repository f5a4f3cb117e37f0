"""Things that a sandbox could leave on the host, compared before and after a test."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.support import workers
from tests.support.patience import scaled
from tests.support.user import MARK, User

TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run")
PATIENCE = scaled(5.0)  # seconds: killed processes and their mounts need a moment to end


class Host(NamedTuple):
    """The state of the host. Each set contains lines for messages; that of processes contains pids,
    as their names change."""

    mounts: frozenset[str]
    devices: frozenset[str]
    processes: frozenset[str]
    temporary: frozenset[str]

    def more_than(self, before: Host) -> list[str]:
        """Return descriptions of everything that did not exist ``before``."""
        new = {
            "mount": self.mounts - before.mounts,
            "bound device": self.devices - before.devices,
            "process": {_description(pid) for pid in self.processes - before.processes},
            "temporary file": self.temporary - before.temporary,
        }
        return [f"{kind}: {line}" for kind, lines in new.items() for line in sorted(lines)]


def look(user: User) -> Host:
    """Return the current state of the host, with processes and temporary files of ``user``."""
    return Host(
        frozenset(Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()),
        frozenset(_bound_devices()),
        frozenset(_processes(user)),
        frozenset(_temporary_files(user)),
    )


def wait_for_leftovers_to_go(user: User, before: Host) -> list[str]:
    """Wait up to PATIENCE; return what still exists and did not exist ``before``."""
    deadline = time.monotonic() + PATIENCE
    while (left := look(user).more_than(before)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _bound_devices() -> Iterator[str]:
    """Yield devices that are bound to files of our tests; other programs may use other devices."""
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if (file := path.read_text().strip()).startswith(f"/var/tmp/{workers.prefix()}"):
                yield f"/dev/{path.parts[3]} on {file}"


def _processes(user: User) -> Iterator[str]:
    ids = _subordinate_ids(user)
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if _is_ours(directory, user, ids):
                yield directory.name


def _is_ours(directory: Path, user: User, ids: list[range]) -> bool:
    # Without root, the user also has processes that are unrelated to the tests.
    if user.is_self:
        mark = f"{MARK}={os.environ[MARK]}".encode()
        return mark in (directory / "environ").read_bytes().split(b"\0")
    lines = (directory / "status").read_text(errors="replace").splitlines()
    status = dict(line.split(":", 1) for line in lines)
    if status["State"].split()[0] == "Z":  # it has ended, and its parent has to reap it
        return False
    return any(int(uid) in numbers for uid in status["Uid"].split() for numbers in ids)


def _description(pid: str) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return f"{pid} {words.decode(errors='replace').strip()}"
    return f"{pid} (gone by now)"


def _subordinate_ids(user: User) -> list[range]:
    ids = [range(user.uid, user.uid + 1)]
    with suppress(OSError):
        for line in Path("/etc/subuid").read_text().splitlines():
            owner, start, count = line.split(":")
            if owner == user.name:
                ids.append(range(int(start), int(start) + int(count)))
    return ids


def _temporary_files(user: User) -> Iterator[str]:
    for directory in (*TEMPORARY, f"/run/user/{user.uid}"):
        with suppress(OSError):
            for entry in os.scandir(directory):
                mine = entry.stat(follow_symlinks=False).st_uid == user.uid
                if mine and (not user.is_self or "loopfs" in entry.name):
                    yield entry.path
