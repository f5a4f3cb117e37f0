"""The container process state: valid and invalid messages."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.agent import state
from loopfs.agent.state import METADATA, understood
from loopfs.errors import LoopfsError

# As runc 1.1 sends it, in part.
STATE: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "fds": ["seccompFd"],
    "pid": 4422,
    "metadata": METADATA,
    "state": {"ociVersion": "1.0.2-dev", "id": "c1", "status": "creating", "bundle": "/b"},
}


def text(**changes: object) -> bytes:
    return json.dumps(STATE | changes).encode()


def test_what_a_runtime_sends() -> None:
    assert understood(text(), 1) == ("c1", 0)
    assert understood(text(fds=["other", "seccompFd"]), 2) == ("c1", 1)


@pytest.mark.parametrize(
    ("said", "count", "sentence"),
    [
        (b"", 1, "not JSON"),
        (b"{", 1, "not JSON"),
        (b"[" * 100_000, 1, "not JSON"),
        (b"\xff\xfe", 1, "not JSON"),
        (b"[]", 1, "not an object"),
        (text(fds=None), 1, "names no seccompFd"),
        (text(fds=[]), 0, "names no seccompFd"),
        (text(fds=["other"]), 1, "names no seccompFd"),
        (text(), 0, "among its 0 descriptors"),
        (text(), 2, "among its 2 descriptors"),
        (text(metadata="other"), 1, "a profile that"),
        (text(state=None), 1, "names no container"),
        (text(state={"id": 1}), 1, "names no container"),
    ],
)
def test_what_is_no_state(said: bytes, count: int, sentence: str) -> None:
    with pytest.raises(LoopfsError, match=sentence):
        understood(said, count)


@given(st.binary() | st.text().map(lambda t: json.dumps(t).encode()))
def test_any_bytes(said: bytes) -> None:
    with pytest.raises(LoopfsError):
        understood(said, 1)


@given(
    st.dictionaries(
        st.sampled_from(sorted(STATE)),
        st.none() | st.integers() | st.text() | st.lists(st.text(), max_size=2),
        min_size=1,
    )
)
def test_any_fields(changes: dict[str, Any]) -> None:
    with suppress(LoopfsError):
        name, at = understood(json.dumps(STATE | changes).encode(), 1)
        assert (name, at) == ("c1", 0)


def test_descriptors_are_closed_with_what_is_refused() -> None:
    ours, runtimes = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    read, write = os.pipe()
    with ours, runtimes:
        socket.send_fds(runtimes, [text()], [write])
        os.close(write)
        with pytest.raises(LoopfsError, match="seccompFd that is not a seccomp listener"):
            state.receive(ours)
    assert os.read(read, 1) == b""  # nobody has the other end any more
    os.close(read)


def test_a_message_that_is_too_long_or_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "MOST", 100)
    monkeypatch.setattr(state, "WITHIN", 0.01)
    for said, sentence in ((b"x" * 101, "too long"), (b"{", "did not arrive in time")):
        ours, runtimes = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, runtimes:
            runtimes.sendall(said)
            with pytest.raises(LoopfsError, match=sentence):
                state.receive(ours)
