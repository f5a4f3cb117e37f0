"""The credentials of a caller, read from /proc."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.engines import credentials

STATUS = "Name:\tx\nUid:\t{uid}\nGid:\t{gid}\nGroups:\t{groups} \nCapEff:\t{effective:016x}\n"
MAP = "         0       1000          1\n         1     100000      65536\n"


def status(uids: str, gids: str, groups: str = "", effective: int = 0) -> str:
    return STATUS.format(uid=uids, gid=gids, groups=groups, effective=effective)


OWN = status("1000 1000 1000 1000", "1000 1000 1000 1000", "27 1000")
AROUND = status("0 1 2 65536", "0 5 0 0", "5")


def test_ids_are_those_of_the_namespace() -> None:
    text = status("1000 100000 100001 165535", "1000 100004 1000 1000", "100004", 1 << 21)
    found = credentials.parse(text, OWN, AROUND, MAP, MAP)
    ids = (0, 1, 2, 65536), (0, 5, 0, 0)
    assert found == (*ids, ids, (5,), 1 << 21, True)


def test_groups_that_are_the_readers_stay() -> None:
    text = status("1000 1000 1000 1000", "1000 1000 1000 1000", "27 1000")
    assert credentials.parse(text, OWN, AROUND, MAP, MAP).groups is None


@pytest.mark.parametrize("has_root", [False, True])
@pytest.mark.parametrize(
    ("uids", "gids"), [("1 1 1 1", "1000 1000 1000 1000"), ("1000 1000 1000 1000", "1000 1000 1 1")]
)
def test_a_caller_without_an_id_has_those_of_the_outer_namespace(
    uids: str, gids: str, has_root: bool
) -> None:
    id_map = "0 1000 1\n" if has_root else "5 1000 1\n"
    found = credentials.parse(status(uids, gids), OWN, AROUND, id_map, id_map)
    assert found[:2] == (None, None)
    assert found.around == ((0, 1, 2, 65536), (0, 5, 0, 0))
    assert (found.has_root, found.root_ids) == (has_root, False)


@given(
    extents=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 20)), max_size=5),
    number=st.integers(0, (1 << 32) - 1),
)
def test_an_id_is_found_where_an_extent_has_it(extents: list[tuple[int, int]], number: int) -> None:
    """Extents that follow one another with gaps, both inside and outside."""
    rows, inside, outside = [], 0, 1 << 21
    expected = None
    for gap, count in extents:
        inside, outside = inside + gap, outside + gap * 2
        rows.append(f"{inside} {outside} {count}\n")
        if outside <= number < outside + count:
            expected = (inside + number - outside,) * 4
        inside, outside = inside + count, outside + count
    text = status(" ".join([str(number)] * 4), "1000 1000 1000 1000")
    assert credentials.parse(text, OWN, AROUND, "".join(rows), MAP).uids == expected
