"""Survival: no room for a process or thread, and ends of sandboxes with blocked processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults.conftest import PYTHON
from tests.support.parts import children_of, parts_of, wait_until
from tests.support.patience import scaled
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

PATIENCE = scaled(20.0)  # seconds
BROKEN = [*PYTHON, "-m", "tests.faults.programs.broken"]

Broken = Callable[[str], "subprocess.Popen[str]"]


def test_without_room_a_call_fails_and_later_ones_do_not(
    run_as_user: Run, image: Path, workdir: Path
) -> None:
    """The helper, the driver's thread, an instance's, an engine device's; and nothing stays."""
    words = [*BROKEN, "run", "--", *PYTHON, "-m", "tests.faults.programs.full"]
    result = run_as_user(words, cwd=workdir, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, "")
    answers = {
        "no threads: ioctl": "EAGAIN",
        "no threads: instance": "EAGAIN",
        "then: ioctl": 0,
    }
    for fault in ("no-threads", "no-forks"):
        for what in ("instance", "filesystem"):
            answers[f"{fault}: {what}"] = "EAGAIN"
            answers[f"after {fault}: {what}"] = [0, 0]
        answers[f"{fault}: mounts"] = 0
    assert json.loads(result.stdout) == answers


@pytest.mark.parametrize("fault", ["no-threads", "no-forks"])
def test_a_sandbox_for_which_there_is_no_room(run_as_user: Run, workdir: Path, fault: str) -> None:
    (workdir / fault).touch()
    result = run_as_user([*BROKEN, "run", "--", "true"], cwd=workdir, timeout=PATIENCE)
    assert result.returncode == 125
    assert result.stderr.startswith("loopfs: no process or thread can be started: ")
    assert "Traceback" not in result.stderr


# --- signals ---------------------------------------------------------------------------


@pytest.fixture
def broken(user: User, workdir: Path) -> Iterator[Broken]:
    """Start a script in a sandbox of :mod:`tests.faults.programs.broken`; it has said "ready"."""
    processes: list[subprocess.Popen[str]] = []

    def start(script: str) -> subprocess.Popen[str]:
        process = user.start([*BROKEN, "run", "--", "sh", "-c", script], cwd=workdir)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def complaint(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def interrupted_twice(process: subprocess.Popen[str], first: int, second: int) -> None:
    process.send_signal(first)
    said = complaint(process)
    assert said.startswith("loopfs: still waiting for "), said
    assert " to end; interrupt once more " in said
    assert process.poll() is None
    process.send_signal(second)
    _, said = process.communicate(timeout=PATIENCE)
    assert said.startswith("loopfs: ended while a process was blocked: data "), said
    assert process.returncode == 128 + second


# A process that no signal ends: its fsync(2) has no answer.
HANGS = """
    truncate -s 1M disk.img; d=$(losetup -f --show disk.img); touch silent
    dd if=/dev/zero of=$d bs=4k count=1 conv=fsync status=none
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGINT, signal.SIGHUP),
        (signal.SIGHUP, signal.SIGINT),
    ],
)
def test_what_the_command_left_behind_hangs(
    broken: Broken, first: signal.Signals, second: signal.Signals
) -> None:
    """The leak check sees whether any of it stays."""
    process = broken(f"({HANGS}) & until test -e asked; do :; done; echo ready")
    interrupted_twice(process, first, second)


def test_the_command_hangs(broken: Broken, workdir: Path) -> None:
    process = broken(f"echo ready; {HANGS.replace('dd if', 'exec dd if')}")
    wait_until((workdir / "asked").exists, "it hangs")
    (dd,) = children_of(parts_of(process.pid).init)
    process.send_signal(signal.SIGTERM)
    assert complaint(process).startswith(f"loopfs: still waiting for dd (process {dd}) to end")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM


def test_process_1_hangs(broken: Broken) -> None:
    process = broken("echo ready; read line")
    init = parts_of(process.pid).init
    os.kill(init, signal.SIGSTOP)
    interrupted_twice(process, signal.SIGTERM, signal.SIGTERM)


def test_a_command_that_handles_signals_is_not_ended_by_them(broken: Broken) -> None:
    """However often they come."""
    process = broken("""
        n=0; trap 'n=$((n + 1)); echo $n' TERM; echo ready
        while test $n -lt 3; do sleep 0.1; done; sleep 2; exit 7
    """)
    assert process.stdout is not None
    for number in range(1, 4):
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == f"{number}\n"
    assert process.communicate(timeout=PATIENCE) == ("", "")
    assert process.returncode == 7
