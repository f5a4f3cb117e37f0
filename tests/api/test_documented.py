"""The examples of docs/python.md, exactly as printed there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.api.programs import python, run_program
from tests.support.user import CHECKOUT, User

pytestmark = pytest.mark.e2e

PAGE = (CHECKOUT / "docs/python.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for text in EXAMPLES if "import pytest" not in text]
TESTS = [text for text in EXAMPLES if "import pytest" in text]


def test_the_programs(user: User, workdir: Path) -> None:
    """One after the other: they use each other's images."""
    said = [run_program(user, workdir, text).stdout for text in PROGRAMS]
    assert len(said) == 5
    assert said[0] == "hello\n\n"
    assert said[1] == "2 no-such-command: No such file or directory\n"
    assert said[2].startswith("vfat from /dev/loop")


def test_the_tests(user: User, workdir: Path) -> None:
    (text,) = TESTS
    (workdir / "test_example.py").write_text(text)
    words = [*python(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", "tmp"]
    result = user.run([*words, "test_example.py"], cwd=workdir, timeout=50)
    assert (result.returncode, "2 passed" in result.stdout) == (0, True), result.stdout
