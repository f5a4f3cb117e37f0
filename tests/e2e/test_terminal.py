"""A sandbox on a terminal: recipients of ^C and ^Z, and job control in a shell."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.parts import children_of, wait_until
from tests.support.patience import scaled
from tests.support.user import User

pytestmark = pytest.mark.e2e

PATIENCE = scaled(10.0)  # seconds
BASH = ["bash", "--norc", "--noprofile", "--noediting", "-i"]


class Terminal:
    """A pseudo-terminal and a command of the user that it controls.

    Args:
        command: gets a session of its own, with the terminal.
    """

    def __init__(self, user: User, command: list[str], cwd: Path) -> None:
        self.master, slave = os.openpty()
        os.fchown(slave, user.uid, -1)
        self.seen = ""
        # setsid(1) does not fork here: the process that is started leads no group.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            cwd=cwd,
            env=user.environment() | {"PS1": "", "TERM": "dumb"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            user=None if user.is_self else user.uid,
            group=None if user.is_self else user.gid,
            extra_groups=None if user.is_self else [],
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until ``pattern`` is on the terminal after what was waited for before."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.master], [], [], deadline - time.monotonic())
            assert ready, f"there is no {pattern!r} in {self.seen!r}"
            try:
                self.seen += os.read(self.master, 4096).decode(errors="replace")
            except OSError:  # the last process has closed the terminal
                raise AssertionError(f"there is no {pattern!r} in {self.seen!r}") from None
        self.seen = self.seen[match.end() :]
        return match

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait()
        self.hang_up()


Open = Callable[[list[str]], Terminal]


@pytest.fixture
def on_terminal(user: User, loopfs_bin: list[str], workdir: Path) -> Iterator[Open]:
    """Start a command by ``loopfs run`` on a terminal of its own."""
    terminals: list[Terminal] = []

    def start(words: list[str]) -> Terminal:
        terminals.append(Terminal(user, [*loopfs_bin, "run", "--", *words], workdir))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.close()


def test_the_terminal_is_the_callers(on_terminal: Open) -> None:
    script = 'test "$(tty)" -ef /dev/stdin && stty size && echo to the terminal >/dev/tty; exit 4'
    terminal = on_terminal(["sh", "-c", script])
    terminal.wait_for("0 0")
    terminal.wait_for("to the terminal")
    assert terminal.wait() == 4


def test_interrupt_from_the_keyboard(on_terminal: Open) -> None:
    terminal = on_terminal(["sh", "-c", "echo ready; exec cat"])
    terminal.wait_for("ready")
    terminal.type("\x03")
    assert terminal.wait() == 128 + signal.SIGINT


def test_interrupt_comes_once_and_the_commands_status_counts(on_terminal: Open) -> None:
    script = "trap 'n=$((n + 1))' INT; echo ready; until read line; do :; done; exit 4$n"
    terminal = on_terminal(["sh", "-c", script])
    terminal.wait_for("ready")
    terminal.type("\x03")
    terminal.wait_for(r"\^C")
    terminal.type("\n")
    assert terminal.wait() == 41


def test_quit_from_the_keyboard(on_terminal: Open) -> None:
    terminal = on_terminal(["sh", "-c", "ulimit -c 0; echo ready; exec cat"])
    terminal.wait_for("ready")
    terminal.type("\x1c")
    assert terminal.wait() == 128 + signal.SIGQUIT


def test_hangup_reaches_the_command(on_terminal: Open, workdir: Path) -> None:
    """The kernel tells the session's leader alone, which may be the supervisor (ssh -t)."""
    script = "trap 'echo hung up >said; exit 9' HUP; echo ready; while :; do read line; done"
    terminal = on_terminal(["sh", "-c", script])
    terminal.wait_for("ready")
    terminal.hang_up()
    assert terminal.wait() == 9
    assert (workdir / "said").read_text() == "hung up\n"


def test_a_change_of_the_window(on_terminal: Open) -> None:
    script = """
        trap 'n=$((n + 1))' WINCH; echo ready; until read line; do :; done; stty size; exit 4$n
    """
    terminal = on_terminal(["sh", "-c", script])
    terminal.wait_for("ready")
    termios.tcsetwinsize(terminal.master, (33, 77))
    terminal.type("\n")
    terminal.wait_for("33 77")
    assert terminal.wait() == 41


def test_background_jobs_and_the_terminal(on_terminal: Open) -> None:
    """Of a shell inside: they may write, unless the terminal is set to stop them."""
    terminal = on_terminal(BASH)
    terminal.type("echo from the $((2 - 1))st &\n")
    terminal.wait_for("from the 1st")
    terminal.type("wait; stty tostop; (echo from the $((1 + 1))nd; exit 3) &\n")
    terminal.type("until jobs | grep Stopped; do :; done\n")
    terminal.wait_for("Stopped")
    terminal.type("fg\n")
    terminal.wait_for("from the 2nd")
    terminal.type("exit $?\n")
    assert terminal.wait() == 3


def test_a_sandbox_in_the_background(user: User, loopfs_bin: list[str], workdir: Path) -> None:
    """It may write to the terminal, and stops when it reads from it."""
    terminal = Terminal(user, BASH, workdir)
    try:
        script = "echo here $((1 + 1)); read line; echo got $line"
        terminal.type(shlex.join([*loopfs_bin, "run", "sh", "-c", script]) + " &\n")
        terminal.wait_for("here 2")
        terminal.type("until jobs | grep Stopped; do :; done\n")
        terminal.wait_for("Stopped")
        terminal.type("fg\n")
        terminal.wait_for(r"fg\s+.* run sh ")
        terminal.type("words\n")
        terminal.wait_for("got words")
        terminal.type("exit 6\n")
        assert terminal.wait() == 6
    finally:
        terminal.close()


def test_a_shell_with_job_control(on_terminal: Open) -> None:
    terminal = on_terminal(BASH)
    terminal.type("set -o | grep monitor; echo up; cat\n")
    terminal.wait_for(r"monitor\s+on\s+up\s")
    terminal.type("echoed\n")
    terminal.wait_for(r"echoed\s+echoed")
    terminal.type("\x1a")
    terminal.wait_for(r"Stopped\s+cat")
    terminal.type("fg\n")
    terminal.wait_for(r"fg\s+cat\s")
    terminal.type("again\n")
    terminal.wait_for(r"again\s+again")
    terminal.type("\x03")
    terminal.wait_for(r"\^C\r\n")  # bash has thrown away what it was doing
    terminal.type("echo status $?\n")
    terminal.wait_for(r"status 130\s")
    terminal.type("exit 6\n")
    assert terminal.wait() == 6


def _states(pid: int) -> dict[str, str]:
    """Return the states of a process and its descendants (proc_pid_stat(5)) by their names."""
    try:
        _, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")
        name, _, rest = rest.rpartition(") ")
        states = {name: rest[0]}
        for child in children_of(pid):
            states |= _states(child)
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return states


def test_a_callers_shell_can_stop_and_go_on(
    user: User, loopfs_bin: list[str], workdir: Path
) -> None:
    """^Z stops the sandbox as a whole, as it stops any job; fg goes on with it."""
    terminal = Terminal(user, BASH, workdir)
    try:
        terminal.type(shlex.join([*loopfs_bin, "run", "sh", "-c", "echo up; exec cat"]) + "\n")
        terminal.wait_for(r"\sup\s")
        terminal.type("echoed\n")
        terminal.wait_for(r"echoed\s+echoed")
        terminal.type("\x1a")
        terminal.wait_for(r"Stopped")
        # bash has seen that its child has stopped; what cat reads until it has, too, is lost.
        wait_until(lambda: _states(terminal.process.pid).get("cat") == "T", "cat has stopped")
        terminal.type("fg\n")
        terminal.wait_for(r"fg\s+.* run sh ")
        terminal.type("again\n")
        terminal.wait_for(r"again\s+again")
        terminal.type("\x04echo status $?\n")
        terminal.wait_for(r"status 0\s")
        terminal.type("exit 6\n")
        assert terminal.wait() == 6
    finally:
        terminal.close()


def test_settings_of_the_terminal_are_left_alone(on_terminal: Open) -> None:
    terminal = on_terminal(["sh", "-c", "stty -echo; echo ready; read line"])
    terminal.wait_for("ready")
    assert not termios.tcgetattr(terminal.master)[3] & termios.ECHO
    terminal.type("\n")
    assert terminal.wait() == 0
    assert not termios.tcgetattr(terminal.master)[3] & termios.ECHO
