"""Limits of devices: --max-devices, max_loop in /sys, descendant namespaces."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.skip import need
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# add DIRECTORY: make devices in an instance until there may be no more; how many.
ADD = """#!/usr/bin/python3
import errno, fcntl, sys
with open(sys.argv[1] + "/loop-control", "rb") as control:
    for made in range(int(sys.argv[2]) if sys.argv[2:] else 1000):
        try:
            fcntl.ioctl(control, 0x4C80, -1)
        except OSError as problem:
            assert problem.errno == errno.ENOSPC
            sys.exit(print(made))
print(made + 1)
"""

# Set the limit of one user namespace after the other, each of which ends.
MANY = """
import ctypes, os
os.setresgid(5, 5, 5)
os.setresuid(5, 5, 5)
for _ in range(70):
    if os.fork() == 0:
        assert ctypes.CDLL(None).unshare(0x10000000) == 0
        with open("/sys/module/loop/parameters/max_loop", "r+b", buffering=0) as file:
            assert file.read() != b"3\\n"
            file.write(b"3")
            file.seek(0)
            assert file.read() == b"3\\n"
        os._exit(0)
    assert os.wait()[1] == 0
"""

WITHIN = "unshare --user --map-root-user --mount sh -eu"


@pytest.fixture(autouse=True)
def _places(workdir: Path) -> None:
    need(os.path.exists("/sys/module/loop/parameters/max_loop"), "the kernel has no loop driver")
    for name in ("one", "two"):
        (workdir / name).mkdir(mode=0o777)
    (workdir / "add").write_text(ADD)
    (workdir / "add").chmod(0o755)


def lines_of(result: object) -> list[str]:
    assert (getattr(result, "returncode"), getattr(result, "stderr")) == (0, "")  # noqa: B009
    stdout: str = getattr(result, "stdout")  # noqa: B009
    return stdout.splitlines()


def test_user_namespaces_within_count(loopfs_run: Run) -> None:
    """All instances count, the reserve is the sandbox's own, and what goes is given back."""
    script = f"""
        cat > within <<'END'
            mount -t loop none one; mount -t loop none two; ./add one 2; ./add two
            {WITHIN} -c 'mount -t loop none two; ./add two'
END
        file=/sys/module/loop/parameters/max_loop; cat $file; stat -c '%a %U' $file
        {WITHIN} within; mount -t loop none one; ./add one 1; {WITHIN} within
        ./add /dev/loopfs; umount one; ./add /dev/loopfs
    """
    options = ("--max-devices", "8", "--reserve-devices=3")
    lines = lines_of(loopfs_run(f"set -eu; {script}", *options))
    assert lines == ["8", "644 root", "2", "3", "0", "1", "2", "2", "0", "7", "1"]


def test_a_namespaces_root_sets_its_limit(loopfs_run: Run) -> None:
    script = f"""
        cat > within <<'END'
            echo 4 > $file; cat $file; mount -t loop none one; ./add one; echo 1 > $file
            {WITHIN} -c 'cat $file; echo 8 > $file; mount -t loop none two; ./add two'
            umount one; mount -t loop none one; ./add one; echo 9 > $file || cat $file
END
        export file=/sys/module/loop/parameters/max_loop; {WITHIN} within 2>&1 | grep -v ": echo"
        cat $file; setpriv --reuid=5 --clear-groups sh -c 'cat $file; exec 2>&1; echo 3 > $file' |
            grep -o -e denied -e '^[0-9]*'
        echo 2 > $file; ./add /dev/loopfs; echo 3 > $file; ./add /dev/loopfs
    """
    lines = lines_of(loopfs_run(f"set -eu; {script}", "--max-devices=8"))
    within, own = lines[:6], lines[6:]
    assert within == ["4", "4", "1", "0", "1", "1"]
    assert own == ["8", "8", "denied", "2", "1"]


def test_limits_of_namespaces_that_are_gone_are_forgotten(
    loopfs_bin: list[str], run_as_user: Run, workdir: Path
) -> None:
    """A user could have no more than 56 of them at a time."""
    (workdir / "many").write_text(MANY)
    workdir.chmod(0o755)
    words = ["sh", "-c", 'ulimit -n 512; exec "$@"', "sh", *loopfs_bin, "run", "--"]
    assert lines_of(run_as_user([*words, "python3", "many"], cwd=workdir, timeout=30)) == []


def test_the_configuration_file(loopfs_run: Run, workdir: Path) -> None:
    (workdir / "config.toml").write_text("[devices]\nmax = 3\n")
    script = "./add /dev/loopfs; ! losetup -f >/dev/null 2>&1 || echo there is one"
    config = ("--config", "config.toml")
    assert lines_of(loopfs_run(script, *config, cwd=workdir)) == ["3", "there is one"]
    assert lines_of(loopfs_run(script, *config, "--max-devices=0", cwd=workdir)) == ["0"]
