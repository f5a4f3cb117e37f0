"""Every ioctl of :mod:`.surface` has the same result as with the kernel's driver.

What differs is in :mod:`.known`, as rules.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.differential.known import SURFACE, Rule
from tests.differential.surface.asker import WORDS, build
from tests.differential.surface.commands import commands
from tests.differential.surface.nodes import CONTROL, INCAPABLE_CONTROL, KINDS
from tests.support import host, workers
from tests.support.skip import need
from tests.support.user import CHECKOUT, User

Answers = dict[str, dict[str, dict[str, object]]]  # by width, node, step
SIDES = ("kernel", "ours")
TIMEOUT = 400.0  # seconds; it takes about twenty-five
SHOWN = 20  # of the steps that differ
# As in test_as_kernel: an interpreter for everybody, without site-packages.
ASK = ["env", f"PYTHONPATH={CHECKOUT}", "/usr/bin/python3", "-B", "-S"]
ASK += ["-m", "tests.differential.surface"]
_WRITES = 1 << 30  # _IOC_WRITE: the kernel may copy an argument from the caller

pytestmark = [
    pytest.mark.may_skip(reason="another architecture, or no compiler"),
    pytest.mark.timeout(2 * TIMEOUT),
]


class Difference(NamedTuple):
    """One step with its two answers; ``copied`` as in :class:`.known.Rule`."""

    step: str
    kernel: str
    ours: str
    copied: bool

    def follows(self, rule: Rule) -> bool:
        return (
            fnmatchcase(self.step, rule.steps)
            and fnmatchcase(self.kernel, rule.kernel)
            and fnmatchcase(self.ours, rule.ours)
            and (self.copied or not rule.copied)
        )


class Runs(NamedTuple):
    """What the kernel and ours have answered, and what was left on the host."""

    kernel: Answers
    ours: Answers
    left: list[str]

    def differences(self, width: str, node: str) -> Iterator[Difference]:
        kernel, ours = self.kernel[width][node], self.ours[width][node]
        assert list(kernel) == list(ours), "not the same steps"
        copied = {c.name for c in commands(WORDS[width]) if c.number & _WRITES}
        for step, answer in kernel.items():
            if answer != ours[step]:
                name = f"{width}/{node}/{step}"
                yield Difference(
                    name, _text(answer), _text(ours[step]), step.split(": ")[0] in copied
                )

    def all_differences(self) -> Iterator[Difference]:
        for width, nodes in self.kernel.items():
            for node in nodes:
                yield from self.differences(width, node)


def _text(answer: object) -> str:
    """An answer, of which a mere errno or number is just that."""
    return str(answer[0]) if isinstance(answer, list) and len(answer) == 1 else str(answer)


@pytest.fixture(scope="module")
def runs(kernel_loops: None, user: User, loopfs_bin: list[str]) -> Runs:
    """Both sides asked, at the same time."""
    need(shutil.which("gcc") and platform.machine() == "x86_64", "needs gcc for x86-64")
    before = host.look(user)
    place = tempfile.mkdtemp(prefix=workers.prefix(), dir="/var/tmp")
    try:
        os.chown(place, user.uid, user.gid)
        build(place)
        with Path(place, "kernel.json").open("wb") as output:
            kernel = subprocess.Popen([*ASK, place], stdout=output)
        try:
            script = 'exec "$@" > ours.json'
            command = [*loopfs_bin, "run", "--", "sh", "-c", script, "sh", *ASK, place]
            result = user.run(command, cwd=place, timeout=TIMEOUT)
            assert result.returncode == 0, result.stderr
        finally:
            assert kernel.wait(TIMEOUT) == 0
        kernels, ours = (json.loads(Path(place, f"{n}.json").read_bytes()) for n in SIDES)
    finally:
        shutil.rmtree(place)
    return Runs(kernels, ours, host.wait_for_leftovers_to_go(user, before))


@pytest.mark.parametrize("width", WORDS)
@pytest.mark.parametrize("node", [CONTROL, INCAPABLE_CONTROL, *KINDS])
def test_answers_are_the_kernels(runs: Runs, width: str, node: str) -> None:
    need(width in runs.kernel, f"the kernel runs no {width} programs")
    assert len(runs.kernel[width][node]) > 700
    surprising = [
        f"{difference.step}\n  kernel {difference.kernel}\n  ours   {difference.ours}"
        for difference in runs.differences(width, node)
        if not any(difference.follows(rule) for rule in SURFACE)
    ]
    if surprising:
        found = f"{len(surprising)} differ"
        pytest.fail("\n".join([found, *surprising[:SHOWN]]), pytrace=False)


@pytest.mark.parametrize("rule", [rule for rule in SURFACE if rule.everywhere], ids=str)
def test_known_differences_are_there(runs: Runs, rule: Rule) -> None:
    """A rule that nothing follows any more must go, or it hides the next difference."""
    assert any(difference.follows(rule) for difference in runs.all_differences())


def test_nothing_is_left(runs: Runs) -> None:
    assert runs.left == []
