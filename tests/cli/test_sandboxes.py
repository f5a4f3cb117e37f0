"""Answers of other processes that are asked as sandboxes."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from loopfs.cli.sandboxes import STATE, fits

DEVICE = {
    "name": "loop8",
    "number": 8,
    "backing_file": None,
    "offset": 0,
    "sizelimit": 0,
    "size": 0,
    "flags": ["ro"],
    "openers": 0,
    "partitions": [{"name": "loop8p1", "start": 0, "size": 1, "openers": 0}],
}
ANSWER: dict[str, Any] = {
    "command": ["sh"],
    "limit": 1,
    "used": 1,
    "instances": [{"namespace": 1, "places": [], "limit": 1, "used": 1, "devices": [DEVICE]}],
    "mounts": [],
}


def test_an_answer() -> None:
    assert fits(ANSWER, STATE)


@pytest.mark.parametrize(
    "path",
    [
        ("command",),
        ("limit",),
        ("instances",),
        ("instances", 0),
        ("instances", 0, "devices", 0, "name"),
        ("instances", 0, "devices", 0, "flags", 0),
        ("instances", 0, "devices", 0, "partitions", 0, "size"),
    ],
)
@pytest.mark.parametrize("value", [None, True, 1.5, {}, [[]]])
def test_what_is_none(path: tuple[Any, ...], value: object) -> None:
    answer = copy.deepcopy(ANSWER)
    place: Any = answer
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not fits(answer, STATE)


@pytest.mark.parametrize("value", [None, [], "x", ANSWER | {"pid": 1}, {"errno": 1, "error": ""}])
def test_what_is_another_thing(value: object) -> None:
    assert not fits(value, STATE)
