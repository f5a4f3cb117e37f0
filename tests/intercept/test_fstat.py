"""An id of one user namespace as seen from another."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopfs.intercept.fstat import OVERFLOW_ID, seen_id

ALL = "         0          0 4294967295\n"
SANDBOX = "         0       1000          1\n         1     100000      65536\n"
NESTED = "         0     100000          1\n"


@pytest.mark.parametrize(
    ("from_map", "to_map", "number", "seen"),
    [
        (SANDBOX, SANDBOX, 0, 0),
        (SANDBOX, SANDBOX, 65536, 65536),
        (SANDBOX, ALL, 0, 1000),
        (SANDBOX, ALL, 1, 100000),
        (SANDBOX, ALL, 65536, 165535),
        (ALL, SANDBOX, 1000, 0),
        (ALL, SANDBOX, 1001, OVERFLOW_ID),
        (SANDBOX, NESTED, 1, 0),
        (SANDBOX, NESTED, 0, OVERFLOW_ID),  # the outer root, from a namespace without it
        (SANDBOX, ALL, 65537, OVERFLOW_ID),
        ("", ALL, 0, OVERFLOW_ID),
        (ALL, "", 0, OVERFLOW_ID),
    ],
)
def test_seen_id(from_map: str, to_map: str, number: int, seen: int) -> None:
    assert seen_id(from_map, to_map, number) == seen


@settings(deadline=None)
@given(number=st.integers(0, 70000))
def test_there_and_back(number: int) -> None:
    outside = seen_id(SANDBOX, ALL, number)
    if outside != OVERFLOW_ID:
        assert seen_id(ALL, SANDBOX, outside) == number
    else:
        assert number > 65536
