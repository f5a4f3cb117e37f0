"""A thread of a job in the caller's namespaces, while the other threads are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NoReturn, cast

import pytest

from loopfs.engines.caller import Caller
from loopfs.engines.inside import Inside
from tests.support.patience import scaled
from tests.support.user import CHECKOUT

PATIENCE = scaled(30.0)  # seconds


class There:
    """What a caller is for it: where it is brought, and a pidfd."""

    def __init__(self, place: Path, pidfd: int = -1) -> None:
        self.place = place
        self.pidfd = pidfd

    def enter(self) -> None:
        os.chdir(self.place)


def test_the_rest_of_the_process_stays_where_it_is(tmp_path: Path) -> None:
    before = Path.cwd()
    inside = Inside(cast("Caller", There(tmp_path)))
    assert inside.call(os.getcwd) == str(tmp_path)
    assert inside.call(threading.get_native_id) != threading.get_native_id()
    assert Path.cwd() == before
    inside.end()
    assert Path.cwd() == before


def test_what_is_raised_there_is_raised_here(tmp_path: Path) -> None:
    inside = Inside(cast("Caller", There(tmp_path)))

    def refuse() -> NoReturn:
        raise FileNotFoundError("there")

    with pytest.raises(FileNotFoundError, match="there"):
        inside.call(refuse)
    assert inside.call(lambda: 7) == 7
    inside.end()


def test_a_caller_that_lives_ends_nothing(tmp_path: Path) -> None:
    pidfd = os.pidfd_open(os.getpid())
    inside = Inside(cast("Caller", There(tmp_path, pidfd)))
    for _ in range(3):
        with inside.watching():
            pass
    assert inside.call(lambda: 7) == 7
    inside.end()
    os.close(pidfd)


SCRIPT = """
import os, sys, time
from pathlib import Path
from loopfs.engines.inside import Inside
from tests.engines.test_inside import There

inside = Inside(There(Path("/"), os.pidfd_open(int(sys.argv[1]))))
with inside.watching():
    print("works", flush=True)
    while True:  # as a parser that an image has misled
        pass
"""


def test_no_work_is_done_for_a_caller_that_has_ended() -> None:
    caller = subprocess.Popen(["sleep", "1000"])
    command = [sys.executable, "-c", SCRIPT, str(caller.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as job:
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "works\n"
            caller.send_signal(signal.SIGKILL)
            caller.wait()
            assert job.wait(PATIENCE) == 1
        finally:
            job.kill()
            caller.kill()
            caller.wait()
