"""A sandbox inside a sandbox: the outer supervisor serves both."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.support.parts import children_of, parts_of
from tests.support.patience import scaled
from tests.support.sandbox import content
from tests.support.user import Result, Run

pytestmark = pytest.mark.e2e

Nested = Callable[..., Result]
PRELUDE = "truncate -s 8M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt\n"


@pytest.fixture
def nested(loopfs_run: Run, loopfs_bin: list[str]) -> Nested:
    """Run a shell script by a ``loopfs run`` that another one runs, which is at ``$@``."""

    def run(script: str, *options: str, before: str = "", after: str = "") -> Result:
        inner = " ".join([*loopfs_bin, "run", *options])
        words = f"{PRELUDE}{before}\n{inner} -- sh -ec '{script}'; echo status $?\n{after}"
        return loopfs_run(words)

    return run


def test_the_main_job(nested: Nested, workdir: Path, run_as_user: Run) -> None:
    """With devices of its own, whose numbers nobody else has, and none of those around it."""
    result = nested(
        "d=$(losetup -f --show disk.img); mkfs.ext4 -q $d; losetup -d $d; readlink $d || echo none;"
        " mount -o loop disk.img mnt; findmnt -no SOURCE mnt; echo text >mnt/file; umount mnt;"
        " ls /dev/loopfs; id -u; losetup -f --show disk.img; readlink /dev/loop[0-9]*",
        before="truncate -s 1M other.img; outer=$(losetup -f --show other.img); echo $outer",
        after="losetup -d $outer; ls -d /dev/loop[0-9]*",
    )
    assert result.stderr == ""
    outer, removed, source, *names, uid, inner, link, status, left = result.stdout.splitlines()
    assert (removed, source) == (link, inner) == (f"loopfs/{inner[5:]}", inner)
    assert names == ["loop-control", inner[5:]]
    assert (uid, status, left) == ("0", "status 0", outer)
    assert inner != outer
    assert content(workdir / "disk.img", "file", run_as_user) == "text\n"


def test_what_is_still_mounted_is_written(nested: Nested) -> None:
    """When the inner one returns, not only when the outer one does."""
    result = nested(
        "mount -o loop disk.img mnt; seq 100000 >mnt/file; exec 3>mnt/busy; sleep 1000 & exit 3",
        after='debugfs -R "cat file" disk.img 2>/dev/null | tail -n 1; losetup -a',
    )
    assert (result.stdout, result.stderr) == ("status 3\n100000\n", "")


def test_once_more_inside(nested: Nested, loopfs_bin: list[str]) -> None:
    inner = " ".join([*loopfs_bin, "run"])
    job = "mount -o loop disk.img mnt; echo deep >mnt/file; umount mnt"
    result = nested(f'{inner} -- sh -ec "{job}"; mount -o loop disk.img mnt; cat mnt/file')
    assert (result.stdout, result.stderr) == ("deep\nstatus 0\n", "")


def test_by_another_user_of_the_sandbox(loopfs_run: Run, loopfs_bin: list[str]) -> None:
    inner = " ".join([*loopfs_bin, "run"])
    job = "mount -o loop disk.img mnt; id -u >mnt/file; ls -ln /dev/loopfs/loop-control; umount mnt"
    result = loopfs_run(f"""
        {PRELUDE} chown 1:1 disk.img mnt .
        setpriv --reuid 1 --regid 1 --clear-groups {inner} -- sh -ec '{job}'; echo status $?
        chown 0:0 .; debugfs -R 'cat file' disk.img 2>/dev/null
    """)
    assert result.stderr == ""
    node, *rest = result.stdout.splitlines()
    assert node.split()[2:4] == ["0", "0"]
    assert rest == ["status 0", "0"]


def test_without_an_instance(nested: Nested) -> None:
    result = nested("! test -e /dev/loopfs; mount -t loop none mnt; ls mnt", "--bare")
    assert result.stdout.splitlines() == ["loop-control", "status 0"]


@pytest.mark.parametrize(
    "options", ["--number-from 0", "--engine ext4=deny", "-v", "--log file", "--max-devices 5"]
)
def test_what_is_for_the_outer_one_to_choose(nested: Nested, options: str) -> None:
    result = nested("true", *options.split())
    assert result.stdout == "status 125\n"
    (sentence,) = result.stderr.splitlines()
    assert sentence.startswith(
        f"loopfs: {options.split(maxsplit=1)[0]} can only be given to the outer sandbox"
    )


@pytest.mark.parametrize("victim", ["supervisor", "child", "init"])
def test_the_inner_one_is_killed(
    started: Start, workdir: Path, loopfs_bin: list[str], victim: str
) -> None:
    """Nothing of it is left, and the outer one goes on."""
    inner = " ".join([*loopfs_bin, "run"])
    job = "mount -o loop disk.img mnt; echo text >mnt/file; echo ready; exec sleep 1000"
    process = started(f"""
        {PRELUDE} {inner} -- sh -ec '{job}' & wait $! || :
        while losetup -a | grep .; do sleep 0.01; done; mount -o loop disk.img mnt; echo mounted
    """)
    (command,) = children_of(parts_of(process.pid).init)
    (inner_supervisor,) = children_of(command)
    os.kill(getattr(parts_of(inner_supervisor), victim), signal.SIGKILL)
    output, complaint = process.communicate(timeout=scaled(30))
    assert output.splitlines()[-1:] == ["mounted"], complaint
    assert process.returncode == 0
