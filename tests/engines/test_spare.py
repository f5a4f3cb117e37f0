"""The spare job: forked while the helper is idle, so that the next job begins without a fork."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from loopfs.channel import Channel
from loopfs.engines import helper as helper_module
from loopfs.engines import jobs
from loopfs.engines.helper import ABORT, Helper, answer, result
from loopfs.lean import signal
from tests.support.parts import wait_until

A_WHILE = 0.1  # seconds, in which a spare job is made if one is to be


def echo(channel: Channel, fds: list[int], *arguments: object) -> None:
    answer(channel, 0, arguments, tuple(fds))


def wait(channel: Channel, fds: list[int]) -> None:
    answer(channel, 0)
    channel.receive()


class Started:
    """A helper of this process."""

    def __init__(self) -> None:
        before = children(os.getpid())
        self.helper = Helper.start()
        (self.pid,) = children(os.getpid()) - before

    def ask(self, job: str, *arguments: object) -> tuple[int, tuple[int, object]]:
        """The process that did it, which has ended, and its answer."""
        with self.helper.begin(job, arguments, ()) as channel:
            message = channel.receive()
        wait_until(lambda: ended(message.pid), "the job has ended")
        return message.pid, result(message)

    def spare(self) -> int:
        """The one that waits, once there is one."""
        return wait_until(lambda: next(iter(self.jobs()), 0), "there is a spare job")

    def jobs(self) -> set[int]:
        return {pid for pid in children(self.pid) if not ended(pid)}


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It exists when the helper has been idle and has imported what the jobs need."""
    seen = tmp_path / "imported"
    (tmp_path / "spare_marker.py").write_text(f"open({str(seen)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(helper_module, "_OF_JOBS", ("loopfs.engines.jobs", "spare_marker"))
    return seen


@pytest.fixture
def started(imported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    for name, job in {"echo": echo, "mount": echo, "wait": wait}.items():
        monkeypatch.setitem(jobs.JOBS, name, job)
    started = Started()
    yield started
    started.helper.dismiss()
    started.helper._channel.close()
    assert os.waitpid(started.pid, 0)[1] == 0, "the helper ends by itself"


def test_there_is_none_without_a_mount(started: Started, imported: Path) -> None:
    wait_until(imported.exists, "the helper has been idle")
    assert started.ask("echo", 1)[1] == (0, (1,))
    deadline = time.monotonic() + A_WHILE
    while time.monotonic() < deadline:
        assert not started.jobs()
        time.sleep(0.01)


def test_it_does_what_is_asked_next_and_has_a_successor(started: Started) -> None:
    started.ask("mount")
    for number in range(3):
        spare = started.spare()
        assert started.ask("echo", number) == (spare, (0, (number,)))


def test_another_job_does_not_wait_for_it(started: Started) -> None:
    started.ask("mount")
    spare = started.spare()
    with started.helper.begin("wait", (), ()) as slow:
        assert slow.receive().pid == spare
        pid, said = started.ask("echo", 1)
        assert (pid != spare, said) == (True, (0, (1,)))
        wait_until(lambda: started.jobs() - {spare}, "there is another spare job")
    wait_until(lambda: ended(spare), "it has ended with its job")


def test_who_kills_it_loses_nothing(started: Started) -> None:
    """Whether the helper has noticed yet when the next one comes."""
    for number in range(3):
        started.ask("mount")
        spare = started.spare()
        os.kill(spare, signal.SIGKILL)
        wait_until(lambda spare=spare: ended(spare), "it has ended")  # type: ignore[misc]
        pid, said = started.ask("mount", number)
        assert (pid != spare, said) == (True, (0, (number,)))


@pytest.fixture(params=[BlockingIOError(errno.EAGAIN, "no room"), RuntimeError("no thread")])
def unrehearsed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> NoReturn:
        raise request.param

    monkeypatch.setattr(jobs, "_rehearse", cannot)


def test_what_cannot_be_rehearsed_is_left(
    unrehearsed: None, started: Started, capfd: pytest.CaptureFixture[str]
) -> None:
    started.ask("mount")
    spare = started.spare()
    assert started.ask("echo", 1) == (spare, (0, (1,)))
    assert not capfd.readouterr().err


def test_a_message_that_means_nothing(started: Started, capfd: pytest.CaptureFixture[str]) -> None:
    started.ask("mount")
    started.spare()
    assert started.ask("none")[1] == (errno.EIO, None)
    assert started.ask("echo", 1)[1] == (0, (1,))


def test_it_has_nothing_open_but_what_the_helper_has(started: Started) -> None:
    started.ask("mount")
    spare = started.spare()

    def kinds(pid: int) -> set[str]:
        links = Path(f"/proc/{pid}/fd").iterdir()
        return {os.readlink(link).partition(":")[0] for link in links if int(link.name) > 2}

    if os.geteuid() == 0:  # it is not dumpable
        wait_until(lambda: kinds(spare) <= kinds(started.pid), "it waits")


def test_it_ends_with_the_helper(imported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs.JOBS, "mount", echo)
    started = Started()
    started.ask("mount")
    spare = started.spare()
    os.kill(started.pid, signal.SIGKILL)
    os.waitpid(started.pid, 0)
    wait_until(lambda: ended(spare), "it has ended")
    started.helper._channel.close()


@pytest.mark.parametrize("killed", [False, True])
def test_the_end_of_the_supervisor_reaches_the_helper(
    imported: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], killed: bool
) -> None:
    """Which ends its jobs then, and says why if the supervisor was killed."""
    monkeypatch.setitem(jobs.JOBS, "mount", wait)
    started = Started()
    slow = started.helper.begin("mount", (), ())
    job = slow.receive().pid
    wait_until(lambda: started.jobs() - {job}, "there is a spare job")
    if not killed:
        started.helper.dismiss(ABORT)
    started.helper._channel.close()
    assert os.waitpid(started.pid, 0)[1] == 0
    wait_until(lambda: ended(job), "the job has ended")
    assert ("was killed" in capfd.readouterr().err) == killed
    slow.close()
