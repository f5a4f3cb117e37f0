"""kill -9 of random processes at random moments; the long form is python3 -m tests.faults.kills."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.kills import plans, play_all, table
from tests.faults.programs.records import FORMATS
from tests.support.rounds import rounds
from tests.support.user import User

pytestmark = pytest.mark.e2e

KILLS = rounds(27, 108)  # as many of each victim


@pytest.mark.usefixtures("loopfs_bin")
@pytest.mark.timeout(300)
def test_random_kills(user: User, workdir: Path) -> None:
    seed = random.randrange(1 << 32)
    outcomes = list(play_all(list(plans(KILLS, seed)), user, workdir))
    print(f"seed {seed}\n{table(outcomes)}")
    faults = [(turn, one.plan, one.faults) for turn, one in enumerate(outcomes) if one.faults]
    assert not faults, f"with seed {seed}"
    assert sum(len(outcome.evidence.raw) for outcome in outcomes) > KILLS
    for fstype in FORMATS:
        some = [outcome for outcome in outcomes if outcome.plan.fstype == fstype]
        assert sum(len(outcome.evidence.files) for outcome in some) > KILLS // 2
