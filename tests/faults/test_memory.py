"""Arguments in memory that cannot be read or blocks.

The programs end with a device that is attached, written and detached as ever.
"""

from __future__ import annotations

import signal

import pytest

from tests.faults.conftest import Program
from tests.support.skip import need

pytestmark = pytest.mark.e2e


def test_memory_that_the_caller_may_not_use_itself(program: Program) -> None:
    """Writing by /proc/PID/mem would go into read-only pages, and into code."""
    answers = program("memory", "protected")
    assert answers.pop("kept") == "kept"
    assert set(answers.values()) == {"EFAULT"}, answers


def test_arguments_in_pages_of_the_device_itself(program: Program) -> None:
    """To copy them, the server must answer reads while it answers the call."""
    answers = program("memory", "own_pages")
    assert answers == {
        "set": 0,
        "name": "from the device",
        "configure": 0,
        "openat2": True,
        "mount": "EINVAL",  # there is no ext4 on it
        "get": 0,
        "stored": "from the device",
        "fstat": 0,
        "size": 0,
        "is size": True,
        "clear": 0,
    }


def test_arguments_that_never_come(program: Program) -> None:
    """In a file whose server does not answer: its instance may wait, no other does."""
    answers = program("memory", "stalled")
    assert answers.pop("others were answered")
    assert answers.pop("still waiting")
    assert set(answers.values()) == {"EFAULT"}, answers


def test_callers_that_are_killed_while_their_arguments_are_awaited(program: Program) -> None:
    """Each of them dies at once, and whoever comes next is answered."""
    answers = program("memory", "killed")
    assert len(answers) == 24
    assert set(answers.values()) == {signal.SIGKILL}, answers


def test_a_backing_file_that_never_answers(program: Program) -> None:
    answers = program("memory", "stalled_backing")
    assert answers == {"still waiting": True, "read": "EIO"}


def test_memory_under_userfaultfd(program: Program) -> None:
    answers = program("memory", "userfault")
    need("unavailable" not in answers, f"no userfaultfd(2) for users: {answers}")
    assert set(answers.values()) == {"EFAULT"}, answers


def test_descriptors_of_other_things_as_backing_file(program: Program) -> None:
    """The device was bound before any was looked at, which is what the kernel finds first."""
    assert program("memory", "files") == {"answers": ["EBUSY"]}
