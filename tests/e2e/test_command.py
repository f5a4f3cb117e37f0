"""The command: exit status, signals, streams, and inherited state."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines, Start
from tests.support.patience import scaled
from tests.support.user import SEARCH_PATH, Run

pytestmark = pytest.mark.e2e

PATIENCE = scaled(30.0)  # seconds


# --- exit status -------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["true"], 0),
        (["false"], 1),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["sh", "-c", "kill -SEGV $$"], 128 + signal.SIGSEGV),
    ],
)
def test_exit_status(loopfs_run: Run, command: list[str], status: int) -> None:
    result = loopfs_run(command)
    assert (result.returncode, result.stdout, result.stderr) == (status, "", "")


def test_no_such_command(loopfs_run: Run) -> None:
    result = loopfs_run(["no-such-command", "-x"])
    assert (result.returncode, result.stdout) == (127, "")
    assert result.stderr == "loopfs: no-such-command: command not found\n"
    assert loopfs_run(["./no/such/command"]).returncode == 127


def test_a_command_that_cannot_be_executed(loopfs_run: Run, workdir: Path) -> None:
    (workdir / "text").write_text("text\n")
    (workdir / "script").write_text("#!/no/such/interpreter\n")
    (workdir / "script").chmod(0o755)
    for command in ("./text", "/"):
        result = loopfs_run([command])
        assert (result.returncode, result.stderr) == (
            126,
            f"loopfs: {command}: Permission denied\n",
        )
    assert loopfs_run(["./script"]).returncode in (126, 127)


@pytest.mark.parametrize("command", ["./greet", "greet"])
def test_a_script_without_an_interpreter_is_the_shells(
    loopfs_run: Run, workdir: Path, command: str
) -> None:
    """As env(1), bwrap and unshare(1) have it, by execvp(3)."""
    (workdir / "greet").write_text('echo "$1, $2"; exit 5\n')
    (workdir / "greet").chmod(0o755)
    path = {"PATH": f"{SEARCH_PATH}:{workdir}"}
    result = loopfs_run([command, "one", "two three"], env=path)
    assert (result.returncode, result.stdout, result.stderr) == (5, "one, two three\n", "")


# --- signals -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGQUIT"])
def test_a_signal_for_the_supervisor_reaches_the_command(started: Start, name: str) -> None:
    number = signal.Signals[name]
    process = started(f"trap 'echo caught; exit 7' {name[3:]}; echo ready; read line")
    process.send_signal(number)
    assert process.wait(PATIENCE) == 7
    assert process.communicate() == ("caught\n", "")


def test_a_command_that_a_forwarded_signal_ends(started: Start) -> None:
    process = started("echo ready; exec cat")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM


def test_a_command_that_ignores_a_signal_continues(started: Start) -> None:
    process = started("trap '' TERM; echo ready; read line; echo $line")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate("still here\n", PATIENCE)
    assert (process.returncode, output) == (0, "still here\n")


def test_the_command_has_the_callers_signal_mask(inside: Lines) -> None:
    blocked, ignored = inside("grep -E 'SigBlk|SigIgn' /proc/self/status")
    assert int(blocked.split()[1], 16) == int(ignored.split()[1], 16) == 0


def test_children_left_behind_end_with_the_command(inside: Lines, workdir: Path) -> None:
    # They ignore what they can; the leak check looks for them.
    script = """
        (trap '' TERM HUP INT; echo >one; exec sleep 1000) >/dev/null 2>&1 &
        setsid sh -c 'echo >two; exec sleep 1000' >/dev/null 2>&1 &
        until test -e one && test -e two; do :; done
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; mount -o loop disk.img mnt
        setsid sh -c 'cd mnt; exec 3>file; echo >../three; exec sleep 1000' >/dev/null 2>&1 &
        until test -e three; do :; done
    """
    inside(script)
    assert (workdir / "three").exists()


def test_orphans_are_reaped(inside: Lines) -> None:
    script = """
        for n in 1 2 3 4 5; do (sh -c 'exit 0' & exec true); done; i=0
        while grep -qs '^State:.Z' /proc/[0-9]*/status && test $i -lt 1000; do i=$((i + 1)); done
        test $i -lt 1000 && echo reaped
    """
    assert inside(script) == ["reaped"]


# --- what is passed on -------------------------------------------------------


def test_streams(loopfs_run: Run) -> None:
    result = loopfs_run("cat; echo error >&2", input="line\n" * 10000)
    assert (result.returncode, result.stderr) == (0, "error\n")
    assert result.stdout == "line\n" * 10000


def test_environment_and_directory(loopfs_run: Run, run_as_user: Run, workdir: Path) -> None:
    (workdir / "below").mkdir()
    how = {"cwd": workdir / "below", "env": {"ODD": "a\nb", "PATH": "/usr/bin:/opt/x"}}
    script = "pwd; umask; env -0"
    ours, plain = loopfs_run(script, **how), run_as_user(script, **how)
    assert ours.stderr == plain.stderr == ""

    def without_path(text: str) -> list[str]:
        """Nor what podman is told, where it is installed."""
        fields = text.split("\0")
        return sorted(f for f in fields if not f.startswith(("PATH=", "_CONTAINERS_")))

    assert without_path(ours.stdout) == without_path(plain.stdout)
    (path,) = (field for field in ours.stdout.split("\0") if field.startswith("PATH="))
    assert path == "PATH=/usr/bin:/opt/x:/usr/local/sbin:/usr/sbin:/sbin"


def test_tools_of_root_are_found_on_a_users_path(loopfs_run: Run) -> None:
    result = loopfs_run("command -v losetup", env={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    assert (result.returncode, result.stdout.rpartition("/")[2]) == (0, "losetup\n")


def test_a_descriptor_that_the_caller_passes(run_as_user: Run, loopfs_bin: list[str]) -> None:
    """As under env: and nothing else is open in the command."""
    script = '"$@" run -- sh -c "cat <&3; ls /proc/self/fd" 3</etc/hostname'
    result = run_as_user(["sh", "-c", script, "sh", *loopfs_bin])
    assert (result.returncode, result.stderr) == (0, "")
    plain = run_as_user("cat /etc/hostname; exec ls /proc/self/fd 3</etc/hostname")
    assert result.stdout == plain.stdout


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(run_as_user: Run, loopfs_bin: list[str], closed: str) -> None:
    script = f'"$@" run -- sh -c "losetup -f >/dev/null && exit 5" {closed}'
    result = run_as_user(["sh", "-c", script, "sh", *loopfs_bin])
    assert (result.returncode, result.stdout, result.stderr) == (5, "", "")


def test_output_into_a_closed_pipe(run_as_user: Run, loopfs_bin: list[str]) -> None:
    script = '{ "$@" run -- yes; echo $? >&2; } | head -n 1'
    result = run_as_user(["sh", "-c", script, "sh", *loopfs_bin])
    assert (result.stdout, result.stderr) == ("y\n", f"{128 + signal.SIGPIPE}\n")


@pytest.mark.parametrize("arguments", [["--no-such-option", "true"], ["-vvv", "true"], ["--log"]])
def test_wrong_use(run_as_user: Run, loopfs_bin: list[str], arguments: list[str]) -> None:
    result = run_as_user([*loopfs_bin, "run", *arguments])
    assert (result.returncode, result.stdout) == (2, "")
    assert arguments[0] in result.stderr
    assert result.stderr.endswith("; see 'loopfs run --help'\n")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [[], ["--"]])
def test_without_a_command_there_is_a_shell(
    run_as_user: Run, loopfs_bin: list[str], words: list[str]
) -> None:
    """As unshare(1): $SHELL, else /bin/sh."""
    shell = {"SHELL": "/bin/bash" if words else ""}
    script = "echo $0; ls /dev/loop-control; exit 4"
    result = run_as_user([*loopfs_bin, "run", *words], input=script, env=shell)
    name = shell["SHELL"] or "/bin/sh"
    said = (result.returncode, result.stdout, result.stderr)
    assert said == (4, f"{name}\n/dev/loop-control\n", "")
