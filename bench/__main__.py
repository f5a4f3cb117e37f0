"""The command python3 -m bench."""

from __future__ import annotations

import argparse
import os
import pwd
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from . import attach, compile, data, debian, filling, lists, mounts, startup, trees, unrelated, vfat
from .measure import CommandError, Measure, Outcome, sample
from .report import as_json, table
from .runner import Stage, open_stage

GROUPS: dict[str, Callable[[Stage], list[Measure]]] = {
    "startup": startup.measures,
    "attach": attach.measures,
    "mounts": mounts.measures,
    "lists": lists.measures,
    "filling": filling.measures,
    "trees": trees.measures,
    "debian": debian.measures,
    "vfat": vfat.measures,
    "unrelated": unrelated.measures,
    "compile": compile.measures,
    "data": data.measures,
}


def main() -> int:
    """Run the benchmark; return the exit status: 1 if a measure failed, 0 otherwise, whether goals
    are met or not."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    outcomes: list[Outcome] = []
    failures: list[tuple[str, str]] = []
    with open_stage(options.user, options.loopfs, options.dir) as stage:
        print(f"loopfs is: {shlex.join(stage.loopfs)} (as {options.user})", file=sys.stderr)
        for group in options.only:
            rounds = options.data_rounds if group == "data" else options.rounds
            try:
                measures = GROUPS[group](stage)
            except (CommandError, OSError) as problem:
                failures.append((group, str(problem)))
                continue
            for measure in measures:
                print(f"{group}: {measure.name}, {rounds} rounds", file=sys.stderr)
                outcomes.append(sample(measure, rounds))
    print(as_json(outcomes, failures) if options.json else table(outcomes, failures))
    return 1 if failures or any(outcome.failed for outcome in outcomes) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m bench",
        description="Compare loopfs with the kernel's loop driver and other sandboxes, as root.",
    )
    parser.add_argument("--user", default=default_user(), help="who runs loopfs (%(default)s)")
    parser.add_argument("--rounds", type=_count, default=10, help="samples of a side (10)")
    parser.add_argument(
        "--data-rounds",
        type=_count,
        help="the same for data, which takes longest (as --rounds)",
    )
    parser.add_argument(
        "--only", type=_groups, default=list(GROUPS), metavar="GROUP,...", help=", ".join(GROUPS)
    )
    parser.add_argument(
        "--loopfs",
        type=shlex.split,
        metavar="CMD",
        help="how to call loopfs (this checkout's, else the installed one)",
    )
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("/var/tmp"),
        help="where to make the scratch directory, on a real disk (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="all samples instead of the table")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("the native side needs root; loopfs itself is run as an ordinary user")
    if options.user is None:
        parser.error("name an ordinary user with --user or LOOPFS_TEST_USER")
    try:
        if pwd.getpwnam(options.user).pw_uid == 0:
            parser.error(f"{options.user} is root; name an ordinary user with --user")
    except KeyError:
        parser.error(f"there is no user {options.user}")
    if options.data_rounds is None:
        options.data_rounds = options.rounds
    return options


def default_user() -> str | None:
    if named := os.environ.get("LOOPFS_TEST_USER"):
        return named
    with suppress(KeyError):
        return pwd.getpwnam("loopfs-test").pw_name
    invoker = os.environ.get("SUDO_USER")
    return invoker if invoker != "root" else None


def _count(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def _groups(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - GROUPS.keys():
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    sys.exit(main())
