"""The ordinary user that loopfs is run as, and how a test calls loopfs.

Under root the user is another account, which LOOPFS_TEST_USER names (in a worker but the first,
one that is derived from it); without root it is who runs the tests. Directories in
LOOPFS_TEST_PATH come first on its PATH: so other tools than the distribution's are tried.
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
MARK = "LOOPFS_TEST_RUN"  # a variable that whatever we start inherits, so that we know it again

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
        """What a login would give, and of the caller's only what Python needs, and the mark."""
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
        """As :meth:`start`, to its end.

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
    """The account that a worker runs loopfs as, under root."""
    return workers.user_of(os.environ.get("LOOPFS_TEST_USER", DEFAULT_NAME), worker)


def find_user() -> User | None:
    """The user that loopfs is run as; None under root when there is no such account."""
    try:
        if os.geteuid() == 0:
            account = pwd.getpwnam(user_name(workers.number()))
        else:
            account = pwd.getpwuid(os.geteuid())
    except KeyError:
        return None
    return User(account.pw_name, account.pw_uid, account.pw_gid, account.pw_dir)


def loopfs_command() -> list[str]:
    """How that user calls loopfs: LOOPFS_BIN as ./check sets it, else from this checkout."""
    if "LOOPFS_BIN" in os.environ:
        return [os.environ["LOOPFS_BIN"]]
    # The interpreter that runs the tests as root can lie where the user cannot go.
    python = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
    return ["env", f"PYTHONPATH={CHECKOUT / 'src'}", python, "-m", "loopfs"]
