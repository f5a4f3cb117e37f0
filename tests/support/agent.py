"""`loopfs agent` as a process of a test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.parts import wait_until
from tests.support.patience import scaled
from tests.support.user import User


class Agent:
    """An agent that listens.

    Args:
        words: the command of loopfs.
        user: that runs it.
        directory: of its socket and its log.
    """

    def __init__(self, words: Sequence[str], user: User, directory: Path) -> None:
        self._words = words
        self._user = user
        self.socket = directory / "agent"
        self._log = directory / "agent.log"
        self.start()

    def start(self) -> None:
        """Start the agent, or another one in its place."""
        command = [*self._words, "agent", "--socket", str(self.socket)]
        said = self.said().count("listens on")
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=self._user.environment(),
                start_new_session=True,
                user=None if self._user.is_self else self._user.uid,
                group=None if self._user.is_self else self._user.gid,
                extra_groups=None if self._user.is_self else [self._user.gid],
            )
        wait_until(lambda: self.said().count("listens on") > said, "the agent listens")

    def said(self) -> str:
        """Return its standard error."""
        return self._log.read_text() if self._log.exists() else ""

    def profile(self, base: Path | None = None) -> dict[str, Any]:
        """Return the seccomp profile for containers that it serves."""
        options = ["--base", str(base)] if base is not None else []
        command = [*self._words, "seccomp-profile", *options, "--agent", str(self.socket)]
        result = self._user.run(command)
        assert (result.returncode, result.stderr) == (0, "")
        profile = json.loads(result.stdout)
        assert isinstance(profile, dict)
        return profile

    def connect(self) -> socket.socket:
        """Connect to its socket, as a container runtime does."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(scaled(20))
        connection.connect(str(self.socket))
        return connection

    def processes(self) -> list[int]:
        """Return the process ids of the agent and of the processes that it has started."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError, NotADirectoryError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if entry.name.isdigit() and os.fsencode(self.socket) in words:
                    found.append(int(entry.name))
        return found

    def end(self) -> None:
        """Send SIGTERM; check that it exits with 0 and that nothing remains."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
        assert not self.socket.exists()
        wait_until(lambda: not self.processes(), "all processes of the agent have ended")
        assert not self.socket.with_name("agent.d").exists()


@contextmanager
def agent(words: Sequence[str], user: User, directory: Path) -> Iterator[Agent]:
    """Yield an agent; end it with the context."""
    made = Agent(words, user, directory)
    try:
        yield made
        made.end()
    finally:
        for pid in made.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        made.process.wait(20)
