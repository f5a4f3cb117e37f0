"""The limits of devices for each user namespace with its descendants."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.driver.instance import Instance
from loopfs.driver.minors import Minors
from loopfs.driver.ucounts import MAX_DEVICES, Ucounts, UserNamespace
from loopfs.errors import DriverError

OUTER, MIDDLE, INNER, OTHER = 1, 2, 3, 4


def fill(namespace: UserNamespace) -> int:
    """How many more devices it may have."""
    for made in range(1000):
        try:
            namespace.charge()
        except DriverError:
            return made
    raise AssertionError("it may have any number")


def test_what_is_within_counts_for_what_is_around() -> None:
    ucounts = Ucounts(10, reserve=0)
    outer, inner = ucounts.hold((OUTER,)), ucounts.hold((INNER, MIDDLE, OUTER))
    other = ucounts.hold((OTHER, OUTER))
    ucounts.hold((MIDDLE, OUTER)).limit = 4
    assert fill(inner) == 4
    assert fill(other) == 6
    assert fill(outer) == 0
    inner.uncharge()
    assert fill(outer) == 1
    assert fill(inner) == 0


@pytest.mark.parametrize(
    ("limit", "reserve", "of_others"), [(8, None, 6), (8, 3, 5), (3, None, 3), (2, 9, 0)]
)
def test_the_outermost_has_a_reserve(limit: int, reserve: int | None, of_others: int) -> None:
    ucounts = Ucounts(limit, reserve)
    outer, inner = ucounts.hold((OUTER,)), ucounts.hold((INNER, OUTER))
    assert fill(inner) == of_others
    assert fill(outer) == limit - of_others
    assert fill(inner) == 0


def test_a_lower_limit_removes_nothing() -> None:
    ucounts = Ucounts(8, 0)
    outer = ucounts.hold((OUTER,))
    assert fill(outer) == 8
    outer.limit = 2
    for _ in range(6):
        outer.uncharge()
    assert fill(outer) == 0
    outer.uncharge()
    assert fill(outer) == 1


def test_a_limit_is_reported_with_those_of_the_ancestors() -> None:
    ucounts = Ucounts(8)
    assert ucounts.limit_of((INNER, OUTER)) == 8
    ucounts.hold((INNER, OUTER)).limit = 20
    assert ucounts.limit_of((OTHER, INNER, OUTER)) == 8
    ucounts.hold((OUTER,)).limit = 2
    assert ucounts.limit_of((INNER, OUTER)) == 2
    assert ucounts.limit_of((OTHER,)) == 8


def test_who_is_dropped_is_forgotten() -> None:
    """The kernel gives its number to another one."""
    ucounts = Ucounts()
    chain = (INNER, MIDDLE, OUTER)
    first, second = ucounts.hold(chain), ucounts.hold(chain)
    assert first is second
    first.limit = 1
    ucounts.drop(first)
    assert ucounts.hold((INNER, MIDDLE, OUTER)).limit == 1
    ucounts.drop(first)
    ucounts.drop(first)
    assert ucounts.find(chain) is None
    assert ucounts.hold(chain).limit == MAX_DEVICES


def test_an_instance_counts_for_its_owner() -> None:
    ucounts, minors = Ucounts(3, 0), Minors()
    instances = [Instance(minors, owner=ucounts.hold((OUTER,))) for _ in range(2)]
    numbers = [instance.ctl_add(-1) for instance in (*instances, instances[0])]
    for request in (instances[1].ctl_add, instances[1].ctl_remove):
        with pytest.raises(DriverError) as problem:
            request(-1)
        assert problem.value.code in (errno.ENOSPC, errno.EINVAL)
    assert not minors.taken(3), "a refused device has no number"
    instances[0].ctl_remove(numbers[0])
    instances[1].ctl_add(-1)
    instances[1].shut_down()
    assert [fill(each.owner) for each in instances] == [2, 0]


@given(st.lists(st.tuples(st.sampled_from([OUTER, MIDDLE, INNER, OTHER]), st.booleans())))
def test_no_limit_is_passed(steps: list[tuple[int, bool]]) -> None:
    chains = {OUTER: (1,), MIDDLE: (2, 1), INNER: (3, 2, 1), OTHER: (4, 1)}
    ucounts = Ucounts(7, reserve=2)
    held = {number: ucounts.hold(chain) for number, chain in chains.items()}
    held[MIDDLE].limit, held[INNER].limit = 3, 2
    made = dict.fromkeys(chains, 0)
    for number, add in steps:
        if add:
            try:
                held[number].charge()
                made[number] += 1
            except DriverError:
                pass
        elif made[number]:
            held[number].uncharge()
            made[number] -= 1
        for each, namespace in held.items():
            within = sum(count for of, count in made.items() if each in chains[of])
            assert namespace.used == within <= namespace.limit
        for namespace, around in pairwise(held[INNER].and_around()):
            assert namespace.used <= around.used
