"""The I/O statistics of a device."""

from __future__ import annotations

from loopfs.driver.statistics import DISCARD, FLUSH, READ, WRITE, Statistics

MILLISECOND = 1_000_000


def fields(statistics: Statistics) -> list[int]:
    return [int(field) for field in statistics.show().split()]


def test_each_kind_has_its_fields() -> None:
    """Documentation/block/stat.rst: requests, merged, sectors and milliseconds of each."""
    statistics = Statistics()
    for kind, length, time in ((READ, 4096, 3), (WRITE, 1024, 2), (DISCARD, 512, 1), (FLUSH, 0, 4)):
        statistics.begin(kind)
        statistics.end(kind, length, time * MILLISECOND)
    assert fields(statistics) == [1, 0, 8, 3, 1, 0, 2, 2, 0, 10, 10, 1, 0, 1, 1, 1, 4]


def test_what_is_not_answered_is_in_flight() -> None:
    statistics = Statistics()
    for kind in (READ, WRITE, WRITE, FLUSH):
        statistics.begin(kind)
    assert statistics.inflight().split() == ["1", "2"]
    assert fields(statistics)[8] == 4
    statistics.end(WRITE, 512, 0)
    assert statistics.inflight().split() == ["1", "1"]


def test_a_partition_counts_for_its_disk() -> None:
    whole = Statistics()
    part = Statistics(whole)
    part.begin(READ)
    assert whole.inflight() == part.inflight()
    part.end(READ, 512, 0)
    whole.begin(WRITE)
    whole.end(WRITE, 512, 0)
    assert (fields(part)[0], fields(part)[4]) == (1, 0)
    assert (fields(whole)[0], fields(whole)[4]) == (1, 1)
