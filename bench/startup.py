"""(a) How long a sandbox takes to start, run true and end.

podman keeps a process ("pause") that holds a user's namespace; after the first call it only joins
that namespace. Both cases are shown: the first call makes a namespace, as loopfs does each time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .measure import CommandError, Goal, Measure, Sampler, SkippedError
from .runner import Stage

GOAL = 0.5


def measures(stage: Stage) -> list[Measure]:
    podman = _Podman(stage)

    def ours() -> float:
        return _duration(lambda: stage.run_in_loopfs(["true"]))

    return [
        Measure(
            "run true",
            "s",
            ours,
            {
                "unshare": _command(stage, ["unshare", "-Urm", "true"]),
                "bwrap": _command(
                    stage,
                    ["bwrap", "--unshare-all", "--share-net", "--dev-bind", "/", "/", "true"],
                ),
                "podman unshare": podman.joining,
            },
            Goal(GOAL, "podman unshare"),
        ),
        Measure(
            "run true, podman's first",
            "s",
            ours,
            {"podman unshare": podman.first},
            Goal(GOAL, "podman unshare"),
        ),
    ]


def _duration(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _command(stage: Stage, command: list[str]) -> Sampler:
    def sampler() -> float:
        try:
            return _duration(lambda: stage.run_as_user(command))
        except FileNotFoundError:
            raise SkippedError("not installed") from None

    return sampler


class _Podman:
    """podman with a home and a runtime directory of its own, so that nothing is left behind."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._home = stage.new_directory("podman-home")
        self._runtime = stage.new_directory("podman-run")
        self._runtime.chmod(0o700)

    def joining(self) -> float:
        """podman unshare while its pause process exists (from the second call on)."""
        # The pause process must not outlive us: it is ended after each sample, and a call that is
        # not timed starts it again.
        try:
            self._unshare()
            return _duration(self._unshare)
        finally:
            self._end_pause()

    def first(self) -> float:
        """podman unshare without a pause process: it makes the namespace."""
        try:
            return _duration(self._unshare)
        finally:
            self._end_pause()

    def _unshare(self) -> None:
        environment = {"HOME": str(self._home), "XDG_RUNTIME_DIR": str(self._runtime)}
        try:
            self._stage.run_as_user(["podman", "unshare", "true"], environment)
        except FileNotFoundError:
            raise SkippedError("not installed") from None
        except CommandError as problem:
            raise SkippedError(f"does not work here: {problem}") from None

    def _end_pause(self) -> None:
        note = self._runtime / "libpod" / "tmp" / "pause.pid"
        with suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int(note.read_text())
            # The user can write the pid file: signal only a process of that user.
            pidfd = os.pidfd_open(pid)
            try:
                if Path(f"/proc/{pid}").stat().st_uid == self._stage.user.pw_uid:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
            note.unlink()
