"""The table of random steps with their weights, filled by the modules of actions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.bytes.world import World


class Step(NamedTuple):
    """``numbers`` choose among the objects that exist when the step is made, so that any step can
    be left out of a sequence; ``turn`` is its position in the sequence of the seed."""

    turn: int
    kind: str
    numbers: tuple[int, int, int, int]


# Carries a step out; returns a description, or None if the step was not possible.
Action = Callable[["World", Step], "str | None"]
ACTIONS: dict[str, Action] = {}
WEIGHTS: dict[str, int] = {}


def action(weight: int) -> Callable[[Action], Action]:
    """Register a function as an action.

    Args:
        weight: its frequency, relative to the sum of all weights.
    """

    def register(function: Action) -> Action:
        ACTIONS[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return register


def steps(seed: int, count: int) -> list[Step]:
    """Return the sequence of a seed; a longer one begins with the shorter one."""
    dice = random.Random(seed)
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    sequence = []
    for turn in range(count):
        kind = dice.choices(kinds, weights)[0]
        a, b, c, d = (dice.getrandbits(32) for _ in range(4))
        sequence.append(Step(turn, kind, (a, b, c, d)))
    return sequence
