"""Fixtures that run scripts in a sandbox, for every directory of end-to-end tests.

A conftest.py imports those that its tests use.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.user import Run, User

# ``inside`` puts this before each script. "try" prints a command's output and exit status.
PRELUDE = """
set -eu
try() { "$@" 2>&1 && echo "status 0" || echo "status $?"; }
"""

Lines = Callable[..., list[str]]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def inside(loopfs_run: Run) -> Lines:
    """A function that runs a shell script by ``loopfs run`` and returns the lines of its output.

    All commands of the script must succeed, without output on standard error.
    """

    def run(script: str) -> list[str]:
        result = loopfs_run(PRELUDE + script, timeout=30)
        seen = (result.returncode, result.stderr)
        assert seen == (0, ""), f"status and stderr: {seen}\n{result.stdout}"
        return result.stdout.splitlines()

    return run


@pytest.fixture
def started(user: User, loopfs_bin: list[str], workdir: Path) -> Iterator[Start]:
    """A function that starts a script by ``loopfs run`` and returns when it has printed "ready"."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str, *options: str) -> subprocess.Popen[str]:
        process = user.start([*loopfs_bin, "run", *options, "--", "sh", "-c", script], cwd=workdir)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def image(workdir: Path, run_as_user: Run) -> Path:
    """disk.img in the working directory: a new ext4 filesystem of 16 MiB."""
    result = run_as_user(["mkfs.ext4", "-q", "-F", "disk.img", "16M"], cwd=workdir)
    assert result.returncode == 0, result.stderr
    return workdir / "disk.img"


def content(image: Path, name: str, run_as_user: Run) -> str:
    """Return the contents of a file of an image, which must have no errors."""
    check = run_as_user(["e2fsck", "-f", "-n", image])
    assert check.returncode == 0, check.stdout
    return run_as_user(["debugfs", "-R", f"cat {name}", image]).stdout


def repair(image: Path, run_as_user: Run) -> None:
    """Repair an image after the kill of an engine. libext2fs writes a superblock in parts, which
    e2fsck -p refuses to repair."""
    status = run_as_user(["e2fsck", "-f", "-y", image]).returncode
    assert status in (0, 1), f"e2fsck could not repair it: {status}"
