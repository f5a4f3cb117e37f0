"""The same steps on loop devices of the kernel, as root, and on ours, as an ordinary user.

A scenario passes when every step gives the same value or errno on both, but for the
differences that :mod:`.known` lists.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.differential.known import KNOWN_DIFFERENCES
from tests.differential.steps import names
from tests.support import host, workers
from tests.support.user import CHECKOUT, User

Results = dict[str, dict[str, object]]
ABSENT = "(no such step)"
TIMEOUT = 100.0  # seconds; ours takes about three
# An interpreter that every user can run, without site-packages, which may hold a "tests".
STEPS = ["env", f"PYTHONPATH={CHECKOUT}", "/usr/bin/python3", "-B", "-S"]
STEPS += ["-m", "tests.differential.steps"]


class Runs(NamedTuple):
    """What the steps gave on either side; what they left on the host; whether ours ended."""

    kernel: Results
    ours: Results
    left: list[str]
    ended: bool

    def differences(self, scenario: str) -> dict[str, tuple[object, object]]:
        """The steps of a scenario that differ, with the kernel's result and ours."""
        kernel, ours = self.kernel[scenario], self.ours.get(scenario, {})
        return {
            step: (kernel.get(step, ABSENT), ours.get(step, ABSENT))
            for step in kernel | ours
            if kernel.get(step, ABSENT) != ours.get(step, ABSENT)
        }


@pytest.fixture(scope="module")
def runs(kernel_loops: None, user: User, loopfs_bin: list[str]) -> Runs:
    """One run of all scenarios on each side, at the same time."""
    before = host.look(user)
    place = Path(tempfile.mkdtemp(prefix=workers.prefix(), dir="/var/tmp"))
    try:
        os.chown(place, user.uid, user.gid)
        with (place / "kernel.json").open("wb") as output:
            kernel = subprocess.Popen([*STEPS, str(place)], stdout=output)
        try:
            ended = _run_ours(user, loopfs_bin, place)
        finally:
            kernel.wait(TIMEOUT)
        results = json.loads((place / "kernel.json").read_bytes())
        ours = json.loads((place / "ours.json").read_bytes())
    finally:
        shutil.rmtree(place)
    return Runs(results, ours, host.wait_for_leftovers_to_go(user, before), ended)


def _run_ours(user: User, loopfs_bin: list[str], place: Path) -> bool:
    # By way of a file: it is there even when the sandbox never ends.
    script = 'exec "$@" > ours.json'
    command = [*loopfs_bin, "run", "--", "sh", "-c", script, "sh", *STEPS, str(place)]
    with suppress(subprocess.TimeoutExpired):
        result = user.run(command, cwd=place, timeout=TIMEOUT)
        assert result.returncode == 0, result.stderr
        return True
    return False


@pytest.mark.parametrize("scenario", names())
def test_as_the_kernel(runs: Runs, scenario: str) -> None:
    assert runs.kernel[scenario]["(end)"] == 0, "the scenario itself is broken"
    surprising = [
        f"{step}\n  kernel {kernel}\n  ours   {ours}"
        for step, (kernel, ours) in runs.differences(scenario).items()
        if not any(fnmatchcase(f"{scenario}/{step}", key) for key in KNOWN_DIFFERENCES)
    ]
    if surprising:
        pytest.fail("\n".join(surprising), pytrace=False)


@pytest.mark.parametrize("key", KNOWN_DIFFERENCES)
def test_known_differences_are_there(runs: Runs, key: str) -> None:
    """A difference that is gone must leave the list, or it hides the next one."""
    steps = [(scenario, step) for scenario, steps in runs.kernel.items() for step in steps]
    matched = [(s, step) for s, step in steps if fnmatchcase(f"{s}/{step}", key)]
    equal = [pair for pair in matched if pair[1] not in runs.differences(pair[0])]
    if equal or not matched:
        pytest.fail(f"no difference: {equal or 'no step is called that'}", pytrace=False)


def test_the_sandbox_ends(runs: Runs) -> None:
    assert runs.ended


def test_nothing_is_left(runs: Runs) -> None:
    assert runs.left == []
