"""The messages of a confined engine to the process that mounts its filesystem."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.channel import Channel
from loopfs.engines.confined import await_prepared, prepared
from loopfs.errors import LoopfsError, Unsupported


def failure(channel: Channel) -> OSError:
    """What is raised at the end of who mounts."""
    try:
        await_prepared(channel)
    except OSError as problem:
        return problem
    raise AssertionError("it has been prepared")


def said(problem: BaseException) -> OSError:
    """What becomes of a failure of an engine's."""
    ours, engines = Channel.pair()

    def prepare() -> None:
        raise problem

    with ours, engines:
        assert prepared(prepare, engines) is None  # type: ignore[arg-type]
        return failure(ours)


@pytest.mark.parametrize(
    ("problem", "kind", "code", "sentence"),
    [
        (OSError(errno.EINVAL, "x"), OSError, errno.EINVAL, "Invalid argument"),
        (LoopfsError(errno.EUCLEAN, "it is damaged"), LoopfsError, errno.EUCLEAN, "it is damaged"),
        (Unsupported(errno.EINVAL, "quota \udc80"), Unsupported, errno.EINVAL, "quota \udc80"),
        (MemoryError(), OSError, errno.ENOMEM, "Cannot allocate memory"),
        (OSError("no errno"), OSError, errno.EIO, "Input/output error"),
    ],
)
def test_a_failure_is_passed_on(
    problem: BaseException, kind: type[OSError], code: int, sentence: str
) -> None:
    passed_on = said(problem)
    assert (passed_on.errno, passed_on.strerror) == (code, sentence)
    assert isinstance(passed_on, LoopfsError) is issubclass(kind, LoopfsError)
    assert isinstance(passed_on, Unsupported) is issubclass(kind, Unsupported)


def test_success_is_passed_on() -> None:
    ours, engines = Channel.pair()
    with ours, engines:
        serve = prepared(lambda: lambda connection: None, engines)
        assert serve is not None
        await_prepared(ours)


@given(
    st.binary(min_size=1).filter(lambda word: word != b"prepared") | st.just(b"1 5 " + b"x" * 5000)
)
def test_anything_else_is_a_failure(word: bytes) -> None:
    ours, engines = Channel.pair()
    with ours, engines:
        engines.send(word)
        problem = failure(ours)
        assert 0 < (problem.errno or 0) < 512
        assert len(str(problem.strerror)) <= 1000


def test_an_engine_that_ends_is_a_failure() -> None:
    ours, engines = Channel.pair()
    engines.close()
    with ours:
        assert failure(ours).errno == errno.EIO
