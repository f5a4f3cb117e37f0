"""A sandbox that runs tests/faults/programs/records.py, and the kill of one of its processes."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.parts import Parts, children_of, engines_of, jobs_of, parts_of, wait_until
from tests.support.patience import scaled
from tests.support.user import CHECKOUT, User

# The exit status of "loopfs run" when one of these is killed, and the sandbox ends with it.
ENDS = {"supervisor": -signal.SIGKILL, "child": 137, "init": 137, "command": 137}
# Without one of these it goes on: writers and tools are the workload's, a job is the helper's.
LASTS = ("helper", "job", "engine", "writer", "tool")

PATIENCE = scaled(30.0)  # seconds: a sandbox that takes so long has hung
# The user may not be able to read what is in the virtual environment of who runs the tests.
PYTHON = ("env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'src'}", "/usr/bin/python3", "-B", "-S")
WORKLOAD = (*PYTHON, "-m", "tests.faults.programs.records")


class Trace:
    """A running sandbox, and the output of its workload."""

    def __init__(self, user: User, loopfs: Sequence[str], place: Path, fstype: str) -> None:
        self.process = user.start([*loopfs, "run", "--", *WORKLOAD, fstype], cwd=place)
        assert self.process.stdout is not None
        self.lines: list[str] = []
        self._pipe = self.process.stdout.fileno()
        self._rest = b""  # of a line that has not come as a whole
        self._read = 0  # lines that read_until has passed
        self._deadline = time.monotonic() + PATIENCE

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill it if it has not ended."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:  # which closes the pipes
            pass

    def finish(self) -> tuple[int, str]:
        """End the workload; return its exit status and its standard error.

        Raises:
            TimeoutError: it has hung.
        """
        assert self.process.stdin is not None and self.process.stderr is not None
        self.process.stdin.close()
        while self.fill():
            pass
        return self.process.wait(PATIENCE), self.process.stderr.read()

    def read_until(self, start: str, times: int = 1) -> bool:
        """Wait for ``times`` more lines with this beginning; return False at end of file."""
        while times > 0:
            if self._read == len(self.lines) and not self.fill():
                return False
            for line in self.lines[self._read :]:
                self._read += 1
                times -= line.startswith(start)
                if times == 0:
                    break
        return True

    def skip(self) -> None:
        """Skip all lines received so far."""
        if select.select([self._pipe], [], [], 0)[0]:
            self.fill()
        self._read = len(self.lines)

    def fill(self) -> bool:
        """Wait for more lines; return False at end of file, when all writers have ended."""
        if not select.select([self._pipe], [], [], max(0, self._deadline - time.monotonic()))[0]:
            raise TimeoutError(f"it has hung; its last line was {self.lines[-1:]}")
        data = os.read(self._pipe, 1 << 20)  # all that a pipe holds
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode() for line in lines]
        return bool(data)


def kill_one(trace: Trace, victim: str, clock: str, number: int) -> None:
    """Kill a process at the given moment, and check that the others continue if they should.

    Args:
        victim: one of ENDS or LASTS.
        clock: the writer whose lines are counted; "start" counts processes.
        number: how many.
    Raises:
        AssertionError: they do not.
        TimeoutError: nothing happens any more.
    """
    supervisor = trace.process.pid
    if clock == "start":
        wait_until(lambda: len(descendants(supervisor)) >= number, "the sandbox starts")
        os.kill(supervisor, signal.SIGKILL)
        return
    assert trace.read_until(clock), "the workload did not begin"
    parts = parts_of(supervisor)
    (command,) = children_of(parts.init)
    assert trace.read_until(clock, number - 1), "the workload ended by itself"
    deadline = time.monotonic() + PATIENCE
    while not kill_any(candidates(victim, parts, command)):
        assert time.monotonic() < deadline, f"there never was a {victim}"
        trace.skip()  # so that the workload does not block on a full pipe
    trace.skip()
    assert victim in ENDS or goes_on(trace, victim), "the workload did not go on"


def goes_on(trace: Trace, victim: str) -> bool:
    """Wait until both writers make progress; without a helper nothing can be mounted."""
    asked = ["raw writing", "raw synced"]
    if victim != "helper":
        asked += ["files writing", "files synced"]
    return all(trace.read_until(line) for line in asked)


def candidates(victim: str, parts: Parts, command: int) -> list[int]:
    """Return the current processes of a kind of victim."""
    if victim == "command":
        return [command]
    if victim == "writer":
        return children_of(command)
    if victim == "tool":
        return [tool for writer in children_of(command) for tool in children_of(writer)]
    if victim == "engine":
        return engines_of(parts.helper)
    if victim == "job":
        engines = engines_of(parts.helper)
        return [pid for pid in jobs_of(parts.helper) if pid not in engines]
    return [int(getattr(parts, victim))]


def kill_any(pids: Sequence[int]) -> bool:
    """Kill the last of them; return False if none is left."""
    try:
        os.kill(pids[-1], signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def descendants(pid: int) -> list[int]:
    """Return all descendants of a process."""
    children = children_of(pid)
    return children + [further for child in children for further in descendants(child)]
