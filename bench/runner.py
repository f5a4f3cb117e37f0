"""Running commands: ours as an unprivileged user, the native side as root.

A Stage is what the measures are played on: the user, how loopfs is called, and a scratch directory
that both sides can reach and that disappears with everything in it.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .measure import CommandError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TIMEOUT = 900.0  # mmdebstrap on a busy machine takes minutes
CHECKOUT = Path(__file__).resolve().parent.parent

# The time is taken inside the sandbox, so that its start is not measured; the native side runs the
# same script.
TIMED = """set -e
bench_start=$(date +%s%N)
{body}
bench_end=$(date +%s%N)
echo "elapsed-ns $((bench_end - bench_start))"
"""


@dataclass(frozen=True)
class Stage:
    """The user, the command of loopfs, and the scratch directory of a run."""

    user: pwd.struct_passwd
    loopfs: tuple[str, ...]
    loopfs_environment: dict[str, str]
    scratch: Path

    def run_as_root(self, command: Sequence[str]) -> str:
        """Run a command as root and return its standard output. Raises CommandError."""
        return _run(command, _environment(pwd.getpwuid(0), self.scratch), None, self.scratch)

    def run_as_user(self, command: Sequence[str], environment: dict[str, str] | None = None) -> str:
        """Run a command as the unprivileged user, with variables added to a minimal environment."""
        variables = _environment(self.user, self.scratch) | (environment or {})
        return _run(command, variables, self.user, self.scratch)

    def run_in_loopfs(self, command: Sequence[str], *options: str) -> str:
        """Run a command in a new sandbox of loopfs, started by the unprivileged user."""
        words = [*self.loopfs, "run", *options, "--", *command]
        return self.run_as_user(words, self.loopfs_environment)

    def start_in_loopfs(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command in a new sandbox, with pipes to and from it."""
        words = [*self.loopfs, "run", "--", *command]
        return subprocess.Popen(
            words,
            env=_environment(self.user, self.scratch) | self.loopfs_environment,
            cwd=self.scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            user=self.user.pw_uid,
            group=self.user.pw_gid,
            extra_groups=os.getgrouplist(self.user.pw_name, self.user.pw_gid),
        )

    def new_file(self, name: str, size: int) -> Path:
        """Make a file of ``size`` bytes in the scratch directory that belongs to the user."""
        path = self.scratch / name
        path.touch()
        os.truncate(path, size)
        self.give(path)
        return path

    def new_directory(self, name: str) -> Path:
        """Make a directory in the scratch directory that belongs to the user."""
        path = self.scratch / name
        path.mkdir()
        self.give(path)
        return path

    def give(self, path: Path) -> None:
        os.chown(path, self.user.pw_uid, self.user.pw_gid)


@contextmanager
def open_stage(user: str, loopfs: Sequence[str] | None, parent: Path) -> Iterator[Stage]:
    """Make a scratch directory under parent, yield the stage, remove the directory.

    loopfs None means: of this checkout if the user can import it, else the installed command.
    """
    account = pwd.getpwnam(user)
    if account.pw_uid == 0:
        raise CommandError(f"{user} is root; name an ordinary user with --user")
    scratch = Path(tempfile.mkdtemp(prefix="loopfs-bench-", dir=parent))
    try:
        os.chown(scratch, account.pw_uid, account.pw_gid)
        bare = Stage(account, (), {}, scratch)
        bare.new_directory("tmp")
        if loopfs is None:
            command, environment = _find_loopfs(bare)
        else:
            command, environment = tuple(loopfs), {}
        yield Stage(account, command, environment, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def timed_script(body: str, *arguments: str | Path) -> list[str]:
    """Return a shell command that runs body (arguments are $1, $2, ...) and prints its duration."""
    return ["sh", "-c", TIMED.format(body=body), "sh", *map(str, arguments)]


def elapsed_seconds(output: str) -> float:
    """Return the duration that a timed_script has printed."""
    found = re.search(r"^elapsed-ns (\d+)$", output, re.MULTILINE)
    if not found:
        raise CommandError(f"no elapsed time in {output!r}")
    return int(found[1]) / 1e9


def _find_loopfs(stage: Stage) -> tuple[tuple[str, ...], dict[str, str]]:
    # The user may be unable to access the interpreter that runs this as root.
    environment = {
        "PYTHONPATH": str(CHECKOUT / "src"),
        # The checkout is not the user's: without this each start would compile every module anew,
        # which no installed loopfs does.
        "PYTHONPYCACHEPREFIX": str(stage.new_directory("pycache")),
    }
    for interpreter in (sys.executable, "python3"):
        with suppress(CommandError, OSError):
            stage.run_as_user([interpreter, "-c", "import loopfs.cli"], environment)
            return (interpreter, "-m", "loopfs"), environment
    return ("loopfs",), {}


def _environment(account: pwd.struct_passwd, scratch: Path) -> dict[str, str]:
    return {
        "PATH": SEARCH_PATH,
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LOGNAME": account.pw_name,
        "LC_ALL": "C",
        "TMPDIR": str(scratch / "tmp"),
    }


def _run(
    command: Sequence[str],
    environment: dict[str, str],
    account: pwd.struct_passwd | None,
    directory: Path,
) -> str:
    # A session of its own, so that a command that hangs can be ended with all it started.
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
    )
    try:
        output, complaint = process.communicate(timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise CommandError(f"{command[0]}: no end after {TIMEOUT:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        last = complaint.strip().splitlines()[-1:] or output.strip().splitlines()[-1:]
        reason = last[0] if last else "no message"
        raise CommandError(f"{command[0]}: status {process.returncode}: {reason}")
    return output + complaint
