"""What a benchmark is made of: a measure, its sides, and what sampling them gave.

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
    """A reference that cannot run on this machine; the text says why. Not a failure."""


class CommandError(Exception):
    """A benchmark's command failed or printed nothing that can be read."""


@dataclass(frozen=True)
class Goal:
    """A limit for ours / reference: at most for durations, at least for rates."""

    limit: float
    against: str


@dataclass(frozen=True)
class Measure:
    """One row of the table.

    unit is "s" (less is better), "B/s" or "IOPS" (more is better). Without a goal the ratio is
    still reported, against the first reference.
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
    """The samples of one side, or why there are none."""

    samples: list[float] = field(default_factory=list)
    error: str | None = None
    skipped: str | None = None

    @property
    def median(self) -> float | None:
        """None too after an error: half a series is not compared."""
        if self.error or self.skipped or not self.samples:
            return None
        return median(self.samples)


@dataclass
class Outcome:
    """What sampling one measure gave."""

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
        """None where there is no goal, or no ratio to hold against it."""
        goal, ratio = self.measure.goal, self.ratio
        if goal is None or ratio is None:
            return None
        return ratio >= goal.limit if self.measure.more_is_better else ratio <= goal.limit

    @property
    def failed(self) -> bool:
        return any(side.error for side in self.sides.values())


def sample(measure: Measure, rounds: int) -> Outcome:
    """Sample all sides of a measure in turn (A B A B ...), rounds times after the warm-ups.

    A side that fails is left out of the later rounds; the others go on.
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
