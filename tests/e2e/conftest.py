"""Fixtures for the end-to-end tests: scripts in a sandbox, and the same as real root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.calls import calls, places
from tests.e2e.native import Transcript, detach_all, transcript
from tests.support.sandbox import PRELUDE, Lines, Start, image, inside, started
from tests.support.user import Run, User

__all__ = [
    "Compare",
    "Lines",
    "Start",
    "calls",
    "image",
    "in_both",
    "inside",
    "places",
    "root",
    "started",
]

Compare = Callable[[str], tuple[Transcript, Transcript]]


@pytest.fixture
def root(needs_root: None) -> User:
    """The root user of the machine."""
    return User("root", 0, 0, "/root")


@pytest.fixture
def in_both(loopfs_run: Run, root: User, workdir: Path, kernel_loops: None) -> Iterator[Compare]:
    """Run a script in a sandbox, and as root on the kernel's loop devices.

    The two transcripts (native first) have the same names for what differs by nature: the
    directory and the numbers of the devices.
    """
    places = {name: workdir / name for name in ("native", "sandbox")}

    def run(script: str) -> tuple[Transcript, Transcript]:
        for place in places.values():
            place.mkdir()
            place.chmod(0o777)
        words = ["unshare", "--mount", "sh", "-c", PRELUDE + script]
        native = root.run(words, cwd=places["native"])
        ours = loopfs_run(PRELUDE + script, cwd=places["sandbox"])
        return transcript(native, places["native"]), transcript(ours, places["sandbox"])

    try:
        yield run
    finally:
        detach_all(places["native"])
