"""The resources that each user of a sandbox may use."""

from __future__ import annotations

import errno
import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.filesystems.shares import MOST, ROOT, Share, Shares

LIMIT = 1024 - 64


def take(shares: Shares, user: int, count: int = 1) -> Share | None:
    try:
        return shares.take(user, count, errno.ENFILE)
    except OSError:
        return None


def fill(shares: Shares, user: int) -> int:
    taken = 0
    while take(shares, user):
        taken += 1
    return taken


def test_another_user_has_a_share_and_root_the_rest() -> None:
    shares = Shares(1024)
    assert fill(shares, 5000) == LIMIT // 8
    assert fill(shares, 5001) == LIMIT // 8
    assert fill(shares, ROOT) == LIMIT - 2 * (LIMIT // 8)


def test_all_others_have_half() -> None:
    shares = Shares(1024)
    assert sum(fill(shares, user) for user in range(1, 100)) == LIMIT // 2
    assert fill(shares, ROOT) == LIMIT // 2


def test_where_descriptors_are_plenty_threads_are_not() -> None:
    assert fill(Shares(1 << 20), 5000) == MOST


def test_the_last_descriptors_are_reserved() -> None:
    with pytest.raises(OSError, match="open files") as problem:
        Shares(1024).take(ROOT, 1, errno.EMFILE, LIMIT)
    assert problem.value.errno == errno.EMFILE


def test_what_is_given_back_can_be_taken() -> None:
    shares = Shares(1024)
    share = take(shares, 5000, LIMIT // 8)
    assert share is not None
    assert take(shares, 5000) is None
    share.give_back()
    share.give_back()  # once counts
    assert fill(shares, 5000) == LIMIT // 8


def test_it_is_given_back_with_the_thing_or_by_an_exception() -> None:
    shares = Shares(1024)

    class Thing:
        pass

    thing = Thing()
    with shares.take(5000, LIMIT // 8, errno.ENFILE) as _:
        pass
    assert take(shares, 5000) is None
    shares = Shares(1024)
    with pytest.raises(ZeroDivisionError), shares.take(5000, LIMIT // 8, errno.ENFILE):
        raise ZeroDivisionError
    share = take(shares, 5000, LIMIT // 8)
    assert share is not None
    share.last_as_long_as(thing)
    assert take(shares, 5000) is None
    del thing
    gc.collect()
    assert take(shares, 5000) is not None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40), st.booleans()), max_size=60))
def test_the_sums_are_kept(steps: list[tuple[int, int, bool]]) -> None:
    """Whoever takes and gives back: nobody has more than his, and root can always have half."""
    shares, held = Shares(256), dict[int, list[tuple[Share, int]]]()
    for user, count, back in steps:
        own = held.setdefault(user, [])
        if back and own:
            own.pop()[0].give_back()
        elif share := take(shares, user, count):
            own.append((share, count))
        used = {user: sum(count for _, count in each) for user, each in held.items()}
        others = sum(count for user, count in used.items() if user != ROOT)
        assert all(count <= 24 for user, count in used.items() if user != ROOT)
        assert others <= 96
        assert sum(used.values()) <= 192
