"""The helper: a failure of a job fails the call of one caller only."""

from __future__ import annotations

import errno
import marshal
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from loopfs.channel import MAX_MESSAGE, Channel
from loopfs.engines import jobs
from loopfs.engines.helper import GOODBYE, Helper, answer, result

LONG = "\udcff" * MAX_MESSAGE


def echo(channel: Channel, fds: list[int], *arguments: object) -> None:
    answer(channel, 0, arguments, tuple(fds))


def refuse(channel: Channel, fds: list[int], code: int) -> None:
    raise OSError(code, "no errno that a caller may see")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """While it exists, the helper cannot fork."""
    return tmp_path / "full"


@pytest.fixture
def helper(full: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    fork = os.fork

    def limited() -> int:
        if full.exists():
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    monkeypatch.setitem(jobs.JOBS, "echo", echo)
    monkeypatch.setitem(jobs.JOBS, "refuse", refuse)
    started = Helper.start()
    yield started
    started.dismiss()
    started._channel.close()
    assert os.wait()[1] == 0, "the helper ends by itself"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def ask(helper: Helper, job: str, *arguments: object) -> tuple[int, object]:
    with helper.begin(job, arguments, ()) as channel:
        return result(channel.receive())


def test_without_room_for_a_process_one_job_fails(helper: Helper, full: Path) -> None:
    before = descriptors()
    full.touch()
    assert [ask(helper, "echo", 1)[0] for _ in range(3)] == [errno.EAGAIN] * 3
    full.unlink()
    assert ask(helper, "echo", 2) == (0, (2,))
    assert descriptors() == before


def test_arguments_and_answers_of_any_length(helper: Helper) -> None:
    before = descriptors()
    numbers = tuple(range(100_000))
    assert ask(helper, "echo", LONG, numbers) == (0, (LONG, numbers))
    assert descriptors() == before


def test_descriptors_beside_a_long_message(helper: Helper) -> None:
    reader, writer = os.pipe()
    with helper.begin("echo", (LONG,), (writer,)) as channel:
        message = channel.receive()
    assert result(message) == (0, (LONG,))
    (copy,) = message.fds
    os.write(copy, b"text")
    assert os.read(reader, 10) == b"text"
    for fd in (reader, writer, copy):
        os.close(fd)


@pytest.mark.parametrize("data", [b"?", marshal.dumps(("echo",)), marshal.dumps(("none", ()))])
def test_a_message_that_means_nothing(
    helper: Helper, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, jobs_end = Channel.pair()
    with ours, jobs_end:
        helper._channel.send(data, (jobs_end.fileno(),))
        jobs_end.close()
        assert result(ours.receive()) == (errno.EIO, None)
    helper._channel.send(data)  # and nobody to answer to
    assert ask(helper, "echo", 1) == (0, (1,))


def test_a_message_that_is_cut(helper: Helper) -> None:
    ours, jobs_end = Channel.pair()
    with ours, jobs_end:
        helper._channel._send(bytes(MAX_MESSAGE + 1), (jobs_end.fileno(),))
        jobs_end.close()
        assert result(ours.receive()) == (errno.EIO, None)
    assert ask(helper, "echo", 1) == (0, (1,))


def test_a_module_that_cannot_be_imported(
    full: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def find(name: str) -> NoReturn:
        raise MemoryError if name == "memory" else ImportError(name)

    monkeypatch.setattr(jobs, "find", find)
    helper = Helper.start()
    assert ask(helper, "memory")[0] == errno.ENOMEM
    assert ask(helper, "module")[0] == errno.EIO
    helper._channel.send(GOODBYE)
    assert os.wait()[1] == 0


@pytest.mark.parametrize("code", [0, 524, 1000, -1])
def test_an_errno_that_is_none(helper: Helper, code: int) -> None:
    assert ask(helper, "refuse", code)[0] == errno.EIO


def test_a_helper_that_is_gone(helper: Helper) -> None:
    before = descriptors()
    helper._channel._socket.shutdown(2)
    for _ in range(3):
        with pytest.raises(OSError, match="the helper is gone") as caught:
            helper.begin("echo", (), ())
        assert caught.value.errno == errno.EIO
    assert descriptors() == before
