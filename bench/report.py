"""The table, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .measure import OURS, Outcome, Side

Failures = Sequence[tuple[str, str]]
"""Groups that could not even be prepared, with the reason."""

HEADINGS = ("measure", "loopfs", "reference", "ratio", "goal", "met")


def table(outcomes: Sequence[Outcome], failures: Failures) -> str:
    """Return a plain text table, with long texts as notes below it."""
    rows: list[tuple[str, ...]] = [HEADINGS]
    notes: list[str] = []
    for outcome in outcomes:
        rows.extend(_rows(outcome))
        notes.extend(_notes(outcome))
    for group, problem in failures:
        rows.append((group, "ERROR", "", "", "", "no"))
        notes.append(f"{group}: {problem}")
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def as_json(outcomes: Sequence[Outcome], failures: Failures) -> str:
    """Return all samples as JSON, in seconds, bytes per second and operations per second."""
    measures = [
        {
            "measure": outcome.measure.name,
            "unit": outcome.measure.unit,
            "sides": {
                name: {
                    "median": side.median,
                    "samples": side.samples,
                    "error": side.error,
                    "skipped": side.skipped,
                }
                for name, side in outcome.sides.items()
            },
            "against": outcome.against,
            "ratio": outcome.ratio,
            "goal": outcome.measure.goal.limit if outcome.measure.goal else None,
            "met": outcome.met,
        }
        for outcome in outcomes
    ]
    errors = [{"group": group, "error": problem} for group, problem in failures]
    return json.dumps({"measures": measures, "failures": errors}, indent=2)


def _rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """Return the row of the reference that the goal refers to, and a row for each other one."""
    unit, goal = outcome.measure.unit, outcome.measure.goal
    sign = "≥" if outcome.measure.more_is_better else "≤"
    met = {True: "yes", False: "no", None: "-"}[outcome.met]
    if goal and outcome.failed:
        met = "no"
    first = (
        outcome.measure.name,
        _cell(outcome.sides[OURS], unit),
        f"{_cell(outcome.sides[outcome.against], unit)} {outcome.against}",
        "-" if outcome.ratio is None else f"{outcome.ratio:.2f}",
        f"{sign} {goal.limit:.2f}" if goal else "-",
        met,
    )
    others = [
        ("", "", f"{_cell(side, unit)} {name}", _ratio(outcome, side), "-", "-")
        for name, side in outcome.sides.items()
        if name not in (OURS, outcome.against)
    ]
    return [first, *others]


def _ratio(outcome: Outcome, side: Side) -> str:
    ours, other = outcome.sides[OURS].median, side.median
    return "-" if ours is None or not other else f"{ours / other:.2f}"


def _notes(outcome: Outcome) -> list[str]:
    return [
        f"{outcome.measure.name}: {name}: {side.error or 'skipped: ' + str(side.skipped)}"
        for name, side in outcome.sides.items()
        if side.error or side.skipped
    ]


def _cell(side: Side, unit: str) -> str:
    if side.error:
        return "ERROR"
    if side.skipped:
        return "skipped"
    value = side.median
    if value is None:
        return "-"
    if unit == "s":
        return f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.3f} s"
    return f"{value / 1e6:.0f} MB/s" if unit == "B/s" else f"{value:.0f} IOPS"
