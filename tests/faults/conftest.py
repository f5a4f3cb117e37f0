"""Fixtures for the tests of faults: kills, hostile input, races."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.sandbox import Lines, Start, image, inside, started
from tests.support.user import CHECKOUT, Run

__all__ = ["Lines", "Program", "Start", "image", "inside", "program", "started"]

# An interpreter that every user can run, without site-packages, which may hold a "tests".
PYTHON = ["env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'src'}", "/usr/bin/python3", "-B", "-S"]
TIMEOUT = 100.0

Program = Callable[..., Any]


@pytest.fixture
def program(loopfs_run: Run, run_as_user: Run) -> Program:
    """Run a module of tests/faults/programs in a sandbox; return its JSON output.

    With ``natively`` it runs outside, as root of a user and mount namespace.
    """

    def run(name: str, *arguments: str, natively: bool = False) -> Any:
        words = [*PYTHON, "-m", f"tests.faults.programs.{name}", *arguments]
        if natively:
            result = run_as_user(["unshare", "-Urm", *words], timeout=TIMEOUT)
        else:
            result = loopfs_run(words, timeout=TIMEOUT)
        assert (result.returncode, result.stderr) == (0, ""), result.stdout
        return json.loads(result.stdout)

    return run
