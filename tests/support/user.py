"""The ordinary user that runs loopfs in the tests, and the command to call loopfs.

Under root the user is another account, which LOOPFS_TEST_USER names (in workers except the first
one, a name derived from it); without root it is the user who runs the tests. Directories in
LOOPFS_TEST_PATH come first in its PATH, to test other tools than those of the distribution.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.support import workers
from tests.support.patience import scaled

CHECKOUT = Path(__file__).resolve().parents[2]
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
if "LOOPFS_TEST_PATH" in os.environ:
    SEARCH_PATH = f"{os.environ['LOOPFS_TEST_PATH']}:{SEARCH_PATH}"
TIMEOUT = 60.0
DEFAULT_NAME = "loopfs-test"
MARK = "LOOPFS_TEST_RUN"  # a variable by which processes started by the tests are recognized

Result = subprocess.CompletedProcess[str]
Run = Callable[..., Result]


class User(NamedTuple):
    """An account, and running commands as it."""

    name: str
    uid: int
    gid: int
    home: str

    @property
    def is_self(self) -> bool:
        return self.uid == os.geteuid()

    def environment(self) -> dict[str, str]:
        """Return the variables of a login, those that Python needs, and the mark."""
        variables = {
            "PATH": SEARCH_PATH,
            "HOME": self.home,
            "USER": self.name,
            "LOGNAME": self.name,
            "LC_ALL": "C.UTF-8",
        }
        for name in ("PYTHONPATH", "PYTHONPYCACHEPREFIX", MARK):
            if name in os.environ:
                variables[name] = os.environ[name]
        return variables

    def start(
        self,
        command: str | Sequence[str | Path],
        *,
        cwd: str | Path = "/",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command, or a shell script if it is a string, in a session of its own.

        Args:
            env: added to :meth:`environment`.
        """
        return subprocess.Popen(
            ["sh", "-c", command] if isinstance(command, str) else command,
            cwd=cwd,
            env=self.environment() | dict(env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            user=None if self.is_self else self.uid,
            group=None if self.is_self else self.gid,
            extra_groups=None if self.is_self else os.getgrouplist(self.name, self.gid),
        )

    def run(
        self,
        command: str | Sequence[str | Path],
        *,
        cwd: str | Path = "/",
        input: str = "",
        timeout: float = TIMEOUT,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command as :meth:`start` does, and wait for its end.

        Args:
            timeout: seconds; LOOPFS_TIMEOUT_SCALE multiplies them.
        Raises:
            subprocess.TimeoutExpired: after the whole process group was killed.
        """
        process = self.start(command, cwd=cwd, env=env)
        try:
            output, complaint = process.communicate(input, scaled(timeout))
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        return Result(process.args, process.returncode, output, complaint)


def user_name(worker: int | None) -> str:
    """Return the account as which a worker runs loopfs, under root."""
    return workers.user_of(os.environ.get("LOOPFS_TEST_USER", DEFAULT_NAME), worker)


def find_user() -> User | None:
    """Return the user that runs loopfs; None under root if there is no such account."""
    try:
        if os.geteuid() == 0:
            account = pwd.getpwnam(user_name(workers.number()))
        else:
            account = pwd.getpwuid(os.geteuid())
    except KeyError:
        return None
    return User(account.pw_name, account.pw_uid, account.pw_gid, account.pw_dir)


def loopfs_command() -> list[str]:
    """Return the command of loopfs: LOOPFS_BIN as ./check sets it, else from this checkout."""
    if "LOOPFS_BIN" in os.environ:
        return [os.environ["LOOPFS_BIN"]]
    # The user may be unable to access the interpreter that runs the tests as root.
    python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
    return ["env", f"PYTHONPATH={CHECKOUT / 'src'}", python, "-m", "loopfs"]
