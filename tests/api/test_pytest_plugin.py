"""The pytest plugin: results of a file of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.api.programs import python
from tests.support.user import Result, User

pytestmark = pytest.mark.e2e

TESTS = """
import os, sys, signal
import pytest

@pytest.fixture(scope="module")
def shared():
    made = [os.getpid()]
    yield made
    assert os.getpid() == made[0]
    print("torn down once")

def inside():
    return os.getuid() == 0 and os.path.exists("/dev/loop-control") and os.getpid() < 10

@pytest.mark.loopfs
def test_passes(shared, tmp_path, record_property):
    assert inside() and shared[0] != os.getpid()
    (tmp_path / "file").write_text("x")
    record_property("seen", 1)

@pytest.mark.loopfs(bare=True)
def test_fails(shared, capsys):
    print("what it printed")
    one, two = os.path.exists("/dev/loop-control"), True
    assert one == two

@pytest.mark.loopfs
@pytest.mark.xfail(strict=True)
def test_xfails():
    raise ValueError

@pytest.mark.loopfs
def test_skips():
    pytest.skip("because")

@pytest.mark.loopfs
def test_dies():
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.loopfs(engines={"ext4": "x"})
def test_means_nothing():
    pass

@pytest.mark.loopfs
def test_is_too_slow():
    signal.pause()

def test_outside(shared, loopfs_mounted, loopfs_sandbox):
    assert os.getpid() == shared[0] and not inside()
    mounted = loopfs_mounted()
    assert loopfs_sandbox.run(["mountpoint", "-q", mounted]).returncode == 0
"""


def run(user: User, directory: Path, *arguments: str, input: str = "") -> Result:
    words = [*python(), "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", "tmp", *arguments]
    return user.run([*words, "test_it.py"], cwd=directory, timeout=50, input=input)


def test_outcomes(user: User, workdir: Path) -> None:
    (workdir / "test_it.py").write_text(TESTS)
    options = ["-o", "junit_family=legacy", "--junitxml=out.xml", "-rs", "-v"]
    (workdir / "conftest.py").write_text(
        "import signal, pytest\n"
        "@pytest.fixture(autouse=True)\n"
        "def limit(request):\n"
        "    def late(*_): pytest.fail('too late')\n"
        "    signal.signal(signal.SIGALRM, late)\n"
        "    slow = request.node.name == 'test_is_too_slow'\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.3 if slow else 0)\n"
        "    yield\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    result = run(user, workdir, *options)
    found = {
        line.split()[0].removeprefix("test_it.py::"): line.split()[1]
        for line in result.stdout.splitlines()
        if line.startswith("test_it.py::")
    }
    assert found == {
        "test_passes": "PASSED",
        "test_fails": "FAILED",
        "test_xfails": "XFAIL",
        "test_skips": "SKIPPED",
        "test_dies": "FAILED",
        "test_means_nothing": "FAILED",
        "test_is_too_slow": "FAILED",
        "test_outside": "PASSED",
    }, result.stdout
    for words in (
        "assert False == True",  # the values are shown
        "ended by signal 9 (Killed), without a result",
        "there is no engine 'x'",
        "too late",
        "SKIPPED [1] test_it.py:34: because",
    ):
        assert words in result.stdout, result.stdout
    assert "what it printed" in result.stdout
    assert result.stderr == ""
    assert 'name="seen"' in (workdir / "out.xml").read_text()
    assert (workdir / "tmp/test_passes0/file").read_text() == "x"


def test_pdb(user: User, workdir: Path) -> None:
    (workdir / "test_it.py").write_text(
        "import os, pytest\n"
        "@pytest.mark.loopfs\n"
        "def test_it():\n"
        "    number = 6\n"
        "    breakpoint()\n"
        "    assert number == 6\n"
    )
    result = run(user, workdir, "-s", input="p 'uid', os.getuid(), number * 7\nc\n")
    assert "('uid', 0, 42)" in result.stdout, result.stdout + result.stderr
    assert result.returncode == 0
