"""The resources of a supervisor, between two steps of a script in its sandbox."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress

from tests.support.skip import need


def next_line(process: subprocess.Popen[str]) -> str:
    """Let a script that waits for a line continue; return its next line of output."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def resources(pid: int) -> tuple[list[str], int]:
    """Return the kinds of a process's descriptors, and the number of its threads."""
    directory = f"/proc/{pid}/fd"
    need(os.access(directory, os.R_OK), "only root may look at who serves a sandbox")
    kinds = []
    for fd in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed meanwhile
            kinds.append(os.readlink(f"{directory}/{fd}").split(":")[0])
    return sorted(kinds), len(os.listdir(f"/proc/{pid}/task"))


def settled(pid: int) -> tuple[list[str], int]:
    """Return :func:`resources` as soon as they no longer change."""

    before = None
    while before != (now := resources(pid)):
        before = now
        time.sleep(0.3)
    return now
