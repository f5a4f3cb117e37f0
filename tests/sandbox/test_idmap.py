"""The id maps of a sandbox."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loopfs.sandbox import idmap
from loopfs.sandbox.idmap import Extent, identity, subordinate, with_ranges

SUBUID = """\
# comment
root:1:2
alice:100000:65536
bob:165536:65536
1000:300000:10
alice:400000:5
alice:broken
alice:12:
alice::34
alice:-5:10
"""


def test_root_of_the_host_maps_everything_to_itself() -> None:
    assert identity("         0          0 4294967295\n") == [Extent(0, 0, 4294967295)]


def test_root_of_a_namespace_maps_the_ids_it_has() -> None:
    # The parent of the new namespace is this one: outside ids of its own map do not matter.
    own = "         0     100000      65536\n     70000       1000          1\n"
    assert identity(own) == [Extent(0, 0, 65536), Extent(70000, 70000, 1)]


def test_ranges_are_found_by_name_and_by_number() -> None:
    assert subordinate(SUBUID, "alice", 1000) == [(100000, 65536), (300000, 10), (400000, 5)]
    assert subordinate(SUBUID, "bob", 1001) == [(165536, 65536)]
    assert subordinate(SUBUID, "carol", 1002) == []
    assert subordinate("", "alice", 1000) == []


def test_ranges_that_cannot_be_read_are_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost: dict[str, str] = {}
    monkeypatch.setitem(idmap.SUBORDINATE, "uid", str(tmp_path))
    assert idmap._start_tool("uid", 1, 1000, lost) is None
    assert lost == {"uid": f"{tmp_path} cannot be read (Is a directory)"}
    monkeypatch.setitem(idmap.SUBORDINATE, "gid", str(tmp_path / "none"))
    assert idmap._start_tool("gid", 1, 1000, lost) is None
    assert "gid" not in lost


def test_a_name_that_begins_another_is_not_it() -> None:
    assert subordinate("alicea:1:2\nalice2:3:4\n", "alice", 1000) == []


def test_lines_that_are_broken_are_passed_over() -> None:
    assert subordinate("alice\nalice:x:1\nalice:1:y\nalice:7:8\n", "alice", 1) == [(7, 8)]


def test_the_caller_is_root_and_its_ranges_follow() -> None:
    assert with_ranges(1000, []) == [Extent(0, 1000, 1)]
    assert with_ranges(1000, [(100000, 65536), (300000, 10)]) == [
        Extent(0, 1000, 1),
        Extent(1, 100000, 65536),
        Extent(65537, 300000, 10),
    ]


@pytest.mark.parametrize("own", [0, 1000, 2**32 - 2])
@settings(deadline=None)
@given(ranges=st.lists(st.tuples(st.integers(1, 2**31), st.integers(1, 2**16)), max_size=5))
def test_inside_ids_follow_one_another(own: int, ranges: list[tuple[int, int]]) -> None:
    extents = with_ranges(own, ranges)
    following = 0
    for extent in extents:
        assert extent.inside == following
        following += extent.length
    assert following == 1 + sum(count for _, count in ranges)
