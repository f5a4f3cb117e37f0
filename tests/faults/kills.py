"""kill -9 of a random process of a sandbox at a random moment, many times.

    python3 -m tests.faults.kills 1000 [--seed N]

in the checkout, as root with LOOPFS_TEST_USER or as an ordinary user. Each kill has a sandbox of
its own, in which tests/faults/programs/records.py writes. What was said to be fsync'ed must be in
the images, the exit status must be the documented one, and nothing may be left. A process that a
sandbox survives must not keep the workload from going on.

The moment is a line of the workload's: who is killed, and after which line, follows from the seed.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.faults.evidence import Evidence, files_of
from tests.faults.programs.records import FORMATS
from tests.faults.victims import ENDS, LASTS, Trace, kill_one
from tests.support import host
from tests.support.user import MARK, User, find_user, loopfs_command

AT_ONCE = 2  # sandboxes
# Of a writer. Those of files are some two mounts.
LINES: dict[str, int] = {"raw": 200, "files": 60}
# What vfat says of a filesystem whose engine was killed, and that nobody has repaired.
DIRTY = "vfat: not properly unmounted; please run fsck\n"
IMAGE_SIZE = "4M"
RAW_SIZE = 16 << 20  # bytes: more records than a round lasts for


class Plan(NamedTuple):
    """The type of the filesystem, the process to kill, and the moment: after a number of lines of a
    writer, or ("start") when a number of processes exists."""

    fstype: str
    victim: str
    clock: str
    number: int


class Outcome(NamedTuple):
    """The result of a plan; ``faults`` are sentences, and there should be none."""

    plan: Plan
    status: int
    evidence: Evidence
    faults: list[str]


def plans(count: int, seed: int) -> Iterator[Plan]:
    """Return ``count`` plans, in which all victims are equally frequent."""
    dice = random.Random(seed)
    victims: list[str] = []
    for _ in range(count):
        if not victims:
            victims = [*ENDS, *LASTS]
            dice.shuffle(victims)
        victim = victims.pop()
        fstype = dice.choice(list(FORMATS))
        if victim == "supervisor" and dice.random() < 0.2:
            yield Plan(fstype, victim, "start", dice.randrange(5))
        else:
            clock = dice.choice(list(LINES))
            yield Plan(fstype, victim, clock, dice.randrange(1, LINES[clock]))


def play_all(todo: Sequence[Plan], user: User, directory: Path) -> Iterator[Outcome]:
    """Carry out plans, AT_ONCE at the same time.

    Args:
        directory: an empty directory of the user.
    """
    for fstype, words in FORMATS.items():
        name = f"{fstype}.img"
        user.run(["truncate", "-s", IMAGE_SIZE, name], cwd=directory)
        made = user.run([*words, name], cwd=directory)
        assert made.returncode == 0, made.stderr
    with ThreadPoolExecutor(AT_ONCE) as players:
        for first in range(0, len(todo), AT_ONCE):
            before = host.look(user)
            turns = range(first, min(first + AT_ONCE, len(todo)))
            outcomes = list(
                players.map(lambda turn: play(todo[turn], user, directory / str(turn)), turns)
            )
            left = host.wait_for_leftovers_to_go(user, before)
            for outcome in outcomes:  # one of them or both have left it
                outcome.faults.extend(f"left behind: {line}" for line in left)
            yield from outcomes
            for turn, outcome in zip(turns, outcomes, strict=True):
                if not outcome.faults:
                    shutil.rmtree(directory / str(turn))


def play(plan: Plan, user: User, place: Path) -> Outcome:
    """Run one sandbox and kill one of its processes."""
    prepare(place, user, plan.fstype)
    faults: list[str] = []
    status = 0
    with Trace(user, loopfs_command(), place, plan.fstype) as trace:
        try:
            kill_one(trace, plan.victim, plan.clock, plan.number)
            status, complaint = trace.finish()
            complaint = complaint.replace(DIRTY, "")
            wanted = ENDS.get(plan.victim, 0)
            assert status == wanted, f"the exit status is {status}, not {wanted}: {complaint}"
            assert plan.victim in ENDS or not complaint, f"standard error: {complaint}"
        except (AssertionError, TimeoutError) as problem:
            faults.append(str(problem))
    evidence = Evidence.of(trace.lines)
    faults += evidence.missing_from_raw(place / "raw.img")
    try:
        faults += evidence.missing_from_files(files_of(place / "disk.img", plan.fstype, user))
    except ValueError as problem:
        faults.append(f"lost: the filesystem. {problem}")
    return Outcome(plan, status, evidence, faults)


def prepare(place: Path, user: User, fstype: str) -> None:
    place.mkdir()
    (place / "mnt").mkdir()
    shutil.copyfile(place.parent / f"{fstype}.img", place / "disk.img")
    with (place / "raw.img").open("wb") as raw:
        raw.truncate(RAW_SIZE)
    for path in (place, *place.iterdir()):
        shutil.chown(path, user.uid, user.gid)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| victim | kills | exit status | fsync'ed: raw | in ext4 | in vfat | lost | left behind"
        " | faults |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    victims = list(dict.fromkeys([*ENDS, *LASTS]))
    for name in (*victims, "all"):
        some = [one for one in outcomes if name in ("all", one.plan.victim)]
        statuses = Counter(one.status for one in some)
        faults = [fault for one in some for fault in one.faults]
        cells = (
            name,
            len(some),
            ", ".join(f"{status}: {times}" for status, times in sorted(statuses.items())),
            sum(len(one.evidence.raw) for one in some),
            *(
                sum(len(one.evidence.files) for one in some if one.plan.fstype == fstype)
                for fstype in FORMATS
            ),
            sum(fault.startswith("lost") for fault in faults),
            sum(fault.startswith("left behind") for fault in faults),
            len(faults),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Run the kills; return the exit status: 1 if data was lost or anything was left behind."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.faults.kills")
    parser.add_argument("kills", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    os.environ.setdefault(MARK, uuid.uuid4().hex)
    user = find_user()
    if user is None:
        parser.error("under root, LOOPFS_TEST_USER must name an ordinary user (./check makes one)")
    todo = list(plans(options.kills, options.seed))
    outcomes: list[Outcome] = []
    print(f"seed {options.seed}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="loopfs-kills-", dir="/var/tmp"))
    shutil.chown(directory, user.uid, user.gid)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for outcome in play_all(todo, user, directory):
            outcomes.append(outcome)
            for fault in outcome.faults:
                print(f"{len(outcomes)}: {outcome.plan}: {fault}", flush=True)
    finally:  # if the run is interrupted, print the results so far
        print(table(outcomes), flush=True)
    if any(outcome.faults for outcome in outcomes):
        print(f"What the faults are about is in {directory}.")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
