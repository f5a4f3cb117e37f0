"""Random steps on devices of images, mounted and not, by several openers, against a byte array.

    python3 -m tests.bytes 100000 [--seed N] [--native]

in the checkout, as root with LOOPFS_TEST_USER or as an ordinary user; --native, which needs root,
does the same on the kernel's own loop devices. Each sequence of 500 steps has a seed of its own.
With --only, one sequence and only those steps, as a fault is reported.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.bytes.sequences import Outcome, Plan, play, report, shorter
from tests.support.user import MARK, User, find_user

AT_ONCE = 2  # sequences
LENGTH = 500  # steps of a sequence
SHRINK = 90.0  # seconds for each fault


def main() -> int:
    """Exit status: 0 all is as it should be, 1 something is not."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bytes")
    parser.add_argument("steps", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--only", default="", help="turns of a sequence, separated by commas")
    parser.add_argument("--native", action="store_true", help="on the kernel's devices, as root")
    parser.add_argument("--faults", type=int, default=5, help="after how many to end")
    options = parser.parse_args()
    os.environ.setdefault(MARK, uuid.uuid4().hex)
    user = find_user()
    if user is None:
        parser.error("under root, LOOPFS_TEST_USER must name an ordinary user (./check makes one)")
    only = tuple(int(word) for word in options.only.split(",") if word)
    if only:
        plans = [Plan(options.seed, options.steps, only)]
    else:
        plans = [
            Plan(options.seed + first // LENGTH, min(LENGTH, options.steps - first))
            for first in range(0, options.steps, LENGTH)
        ]
    begin, done, faults = time.monotonic(), 0, 0
    with ThreadPoolExecutor(AT_ONCE) as players:
        for first in range(0, len(plans), AT_ONCE):
            some = plans[first : first + AT_ONCE]
            play_one = partial(play, user=user, native=options.native)
            for plan, outcome in zip(some, players.map(play_one, some), strict=True):
                done += len(outcome.done)
                if outcome.fault:
                    faults += 1
                    print(described(plan, outcome, user, options.native), end="\n\n", flush=True)
            if faults >= options.faults:
                break
    seconds = time.monotonic() - begin
    print(f"seed {options.seed}: {done} steps in {seconds:.0f} s, {faults} faults")
    return 1 if faults else 0


def described(plan: Plan, outcome: Outcome, user: User, native: bool) -> str:
    """A fault, with as few steps as can be found in some time."""
    if not plan.only:
        plan, outcome = shorter(plan, outcome, user, native=native, seconds=SHRINK)
    return report(plan, outcome, native)


if __name__ == "__main__":
    sys.exit(main())
