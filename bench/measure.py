"""The parts of a benchmark: a measure, its sides, and their samples.

Nothing here starts a process: a side is any callable that returns one number.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

Sampler = Callable[[], float]
"""Takes one sample: seconds for a duration, bytes or operations a second for a rate."""

OURS = "loopfs"


class SkippedError(Exception):
    """A reference that cannot run on this machine, with the reason. It is not a failure."""


class CommandError(Exception):
    """A command of a benchmark failed or printed unexpected output."""


@dataclass(frozen=True)
class Goal:
    """A limit for ours / reference: at most for durations, at least for rates."""

    limit: float
    against: str


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    unit is "s" (lower is better), "B/s" or "IOPS" (higher is better). Without a goal the ratio to
    the first reference is reported.
    """

    name: str
    unit: str
    ours: Sampler
    references: dict[str, Sampler]
    goal: Goal | None = None
    warmups: int = 1

    @property
    def more_is_better(self) -> bool:
        return self.unit != "s"


@dataclass
class Side:
    """The samples of one side, or the reason why there are none."""

    samples: list[float] = field(default_factory=list)
    error: str | None = None
    skipped: str | None = None

    @property
    def median(self) -> float | None:
        """The median; None without samples or after an error: a partial series is not compared."""
        if self.error or self.skipped or not self.samples:
            return None
        return median(self.samples)


@dataclass
class Outcome:
    """The samples of one measure."""

    measure: Measure
    sides: dict[str, Side]

    @property
    def against(self) -> str:
        goal = self.measure.goal
        return goal.against if goal else next(iter(self.measure.references))

    @property
    def ratio(self) -> float | None:
        """ours / reference of the medians, for durations and rates alike."""
        ours, reference = self.sides[OURS].median, self.sides[self.against].median
        if ours is None or not reference:
            return None
        return ours / reference

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None if there is no goal or no ratio."""
        goal, ratio = self.measure.goal, self.ratio
        if goal is None or ratio is None:
            return None
        return ratio >= goal.limit if self.measure.more_is_better else ratio <= goal.limit

    @property
    def failed(self) -> bool:
        return any(side.error for side in self.sides.values())


def sample(measure: Measure, rounds: int) -> Outcome:
    """Sample all sides of a measure in turn (A B A B ...), rounds times after the warm-ups.

    A side that fails is left out of the later rounds; the others continue.
    """
    samplers = {OURS: measure.ours, **measure.references}
    sides = {name: Side() for name in samplers}
    for turn in range(measure.warmups + rounds):
        for name, sampler in samplers.items():
            side = sides[name]
            if side.error or side.skipped:
                continue
            try:
                value = sampler()
            except SkippedError as reason:
                side.skipped = str(reason)
            except (CommandError, OSError, subprocess.SubprocessError) as problem:
                side.error = str(problem)
            else:
                if turn >= measure.warmups:
                    side.samples.append(value)
    return Outcome(measure, sides)
