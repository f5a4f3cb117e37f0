"""Random steps against the model; the long form is python3 -m tests.bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.bytes.sequences import PYTHON, Plan, play, report
from tests.support.rounds import rounds
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

LENGTH = rounds(300, 1000)  # steps
SEEDS = (1, 11, 20261195)  # others by the command
AT_ONCE = 2
NEEDED = 40  # of a hundred steps: so many do something


def play_all(user: User, *, native: bool) -> None:
    plans = [Plan(seed, LENGTH) for seed in SEEDS]
    with ThreadPoolExecutor(AT_ONCE) as players:
        outcomes = list(players.map(lambda plan: play(plan, user, native=native), plans))
    faults = [
        report(plan, outcome, native)
        for plan, outcome in zip(plans, outcomes, strict=True)
        if outcome.fault
    ]
    assert not faults, "\n".join(faults)
    done = [line.split()[1] for outcome in outcomes for line in outcome.done]
    assert len(done) > len(plans) * LENGTH * NEEDED // 100
    assert {"mount:", "umount:", "store:", "zero:", "set_status:"} <= set(done)


@pytest.mark.usefixtures("loopfs_bin")
@pytest.mark.timeout(300)
def test_steps_in_a_sandbox(user: User) -> None:
    play_all(user, native=False)


@pytest.mark.usefixtures("kernel_loops")
@pytest.mark.timeout(300)
def test_steps_on_the_kernels_devices(user: User) -> None:
    play_all(user, native=True)


def test_two_engines_and_a_reader_at_once(loopfs_run: Run) -> None:
    result = loopfs_run([*PYTHON, "-m", "tests.bytes.at_once", str(rounds(1, 3))], timeout=110)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
