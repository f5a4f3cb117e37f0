"""Random steps, each sequence in a new sandbox, and shorter sequences that fail as well."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.support import workers
from tests.support.patience import scaled
from tests.support.user import CHECKOUT, Result, User, loopfs_command

# An interpreter that every user can run, without site-packages, which may hold a "tests".
PYTHON = ("env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'src'}", "/usr/bin/python3", "-B", "-S")
PROGRAM = (*PYTHON, "-m", "tests.bytes.program")
TIMEOUT = scaled(120.0)  # seconds: a sequence that takes so long has hung
ROOT = User("root", 0, 0, "/root")
LAST = 12  # steps that are shown


class Plan(NamedTuple):
    """A sequence: a number of steps of a seed, or only some of these."""

    seed: int
    steps: int
    only: tuple[int, ...] = ()


class Outcome(NamedTuple):
    """``fault`` is empty if there was none. ``done`` are the steps that had an effect."""

    fault: str
    done: list[str]

    @property
    def turns(self) -> tuple[int, ...]:
        return tuple(int(line.split()[0]) for line in self.done)


def play(sequence: Plan, user: User, *, native: bool = False) -> Outcome:
    """Carry a sequence out, by ``loopfs run`` as ``user``, or natively as root."""
    words = ["--seed", str(sequence.seed), "--steps", str(sequence.steps)]
    if sequence.only:
        words += ["--only", ",".join(map(str, sequence.only))]
    if native:
        user = ROOT
        words = ["unshare", "--mount", *PROGRAM, *words, "--native"]
    else:
        words = [*loopfs_command(), "run", "--", *PROGRAM, *words]
    place = Path(tempfile.mkdtemp(prefix=workers.prefix(), dir="/var/tmp"))
    try:
        shutil.chown(place, user.uid, user.gid)
        try:
            result = user.run(words, cwd=place, timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            result = Result(words, -1, f"it has not ended after {TIMEOUT:.0f} seconds", "")
        done = (place / "done").read_text().splitlines() if (place / "done").exists() else []
    finally:
        shutil.rmtree(place)
    done = [line for line in done if not line.endswith(": nothing to do")]
    if result.returncode == 0 and not result.stderr:
        return Outcome("", done)
    said = f"{result.stdout}{result.stderr}".strip()
    return Outcome(said or f"it ended with {result.returncode}", done)


def shorter(
    sequence: Plan, outcome: Outcome, user: User, *, native: bool, seconds: float
) -> tuple[Plan, Outcome]:
    """Leave steps out as long as the sequence fails, perhaps with a different fault."""
    deadline = time.monotonic() + seconds
    sequence = sequence._replace(only=outcome.turns)
    chunk = max(len(sequence.only) // 2, 1)
    while time.monotonic() < deadline:
        at = 0
        shrunk = False
        while at < len(sequence.only) and time.monotonic() < deadline:
            rest = sequence.only[:at] + sequence.only[at + chunk :]
            attempt = play(sequence._replace(only=rest), user, native=native) if rest else None
            if attempt and attempt.fault:
                sequence, outcome, shrunk = sequence._replace(only=attempt.turns), attempt, True
            else:
                at += chunk
        if chunk == 1 and not shrunk:
            break
        chunk = max(chunk // 2, 1)
    return sequence, outcome


def report(sequence: Plan, outcome: Outcome, native: bool) -> str:
    """Return the command that repeats a sequence, its last steps, and the fault."""
    words = ["python3 -m tests.bytes", str(sequence.steps), f"--seed {sequence.seed}"]
    if sequence.only:
        words.append(f"--only {','.join(map(str, sequence.only))}")
    if native:
        words.append("--native")
    return "\n".join([" ".join(words), *outcome.done[-LAST:], outcome.fault])
