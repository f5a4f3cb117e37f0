"""``loopfs run --log FILE`` and ``-v``: the records, and that errors of the log have no effect."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.calls import CALLS
from tests.support.sandbox import PRELUDE
from tests.support.user import Result, Run, User

pytestmark = pytest.mark.e2e

Records = list[dict[str, Any]]
Logged = Callable[..., tuple[Result, Records]]


@pytest.fixture
def logged(loopfs_run: Run, image: Path) -> Logged:
    """Run a script beside disk.img and mnt by ``loopfs run --log log``; what the log has."""
    (image.parent / "mnt").mkdir(mode=0o777)

    def run(script: str, *options: str) -> tuple[Result, Records]:
        result = loopfs_run(PRELUDE + script, "--log", "log", *options)
        lines = (image.parent / "log").read_text("ascii").splitlines()
        return result, [json.loads(line) for line in lines]

    return run


def calls(records: Records, *names: str) -> Records:
    return [record for record in records if record.get("call") in names]


def test_a_job_from_its_start_to_its_end(logged: Logged, workdir: Path) -> None:
    script = "mount -o loop disk.img mnt; ls mnt; umount mnt; exit 3"
    result, records = logged(script)
    assert (result.returncode, result.stdout, result.stderr) == (3, "lost+found\n", "")
    assert stat.S_IMODE((workdir / "log").stat().st_mode) == 0o600
    first, *between, last = records
    assert (first["event"], first["argv"]) == ("start", ["sh", "-c", PRELUDE + script])
    assert (last["event"], last["status"]) == ("end", 3)
    mount, umount = calls(between, "mount", "umount2", "umount", "fsconfig")[-2:]
    assert (mount["comm"], umount["comm"]) == ("mount", "umount")
    assert (mount["decision"], mount["value"], mount["engine"]) == ("return", 0, "ext4")
    assert mount["args"]["source"].startswith("/dev/loop")
    assert mount["args"]["fstype"] == "ext4"
    assert (umount["decision"], umount["value"]) == ("return", 0)
    assert umount["args"]["target"] == str(workdir / "mnt")
    fstat = calls(between, "fstat", "newfstatat", "statx")
    assert {record["decision"] for record in fstat} == {"continue", "return"}
    assert all(record["microseconds"] >= 0 for record in between)


def test_a_mount_that_fails(logged: Logged) -> None:
    options = "--engine", "xfs=deny"
    result, records = logged("mount -i -t xfs -o loop disk.img mnt || exit 32", *options)
    assert result.returncode == 32
    last = calls(records, "mount", "fsconfig")[-1]
    assert (last["decision"], last["errno"]) == ("fail", "EPERM")
    assert last["args"]["fstype"] == "xfs"
    assert "engine" not in last


def test_why_a_mount_is_refused(logged: Logged) -> None:
    result, records = logged("mount -t ext4 -o loop disk.img mnt || :", "--engine", "ext4=deny")
    (why,) = (record["why"] for record in records if "why" in record)
    assert why == "cannot mount ext4: the policy denies it"
    assert f"loopfs: {why}" in result.stderr.splitlines()


def test_what_is_left_to_the_kernel(logged: Logged, workdir: Path) -> None:
    result, records = logged("mount -t tmpfs -o size=1m,nosuid none mnt; umount mnt")
    assert (result.returncode, result.stderr) == (0, "")
    mount, umount = calls(records, "mount", "fsopen", "umount", "umount2")
    assert (mount["decision"], umount["decision"]) == ("continue", "continue")
    assert mount["args"].get("fstype", mount["args"].get("fsname")) == "tmpfs"
    assert umount["args"]["target"] == str(workdir / "mnt")


def test_the_new_mount_api(logged: Logged, workdir: Path) -> None:
    (workdir / "calls.py").write_text(
        f"{CALLS}\n"
        "import sys\n"
        "fd = opened('ext4', source=sys.argv[1])\n"
        "config(fd, CREATE)\n"
        "config(call('fsopen', 'tmpfs', 0), STRING, 'size', '1m')\n"
        "config(opened('ext4'), STRING, 'no such option', 'x')\n"
    )
    result, records = logged("python3 calls.py $(losetup -f --show disk.img)")
    assert (result.stdout, result.stderr) == ("0\n0\nEINVAL\n", "")
    first, source, create, tmpfs, size, _, bad = calls(records, "fsopen", "fsconfig")
    assert first["decision"] == "descriptor"
    assert first["args"] == {"fsname": "ext4", "flags": "FSOPEN_CLOEXEC"}
    assert source["args"]["key"] == "source"
    assert (create["args"]["cmd"], create["engine"]) == ("FSCONFIG_CMD_CREATE", "ext4")
    assert create["args"]["source"] == source["args"]["value"]
    assert (create["decision"], create["args"]["fstype"]) == ("return", "ext4")
    assert (tmpfs["decision"], size["decision"]) == ("continue", "continue")
    assert (size["args"]["key"], size["args"]["value"]) == ("size", "1m")
    assert (bad["decision"], bad["errno"]) == ("fail", "EINVAL")


# --- standard error ------------------------------------------------------------------------


def names(result: Result) -> list[str]:
    """The calls and events that were shown."""
    words = [line.split(" ") for line in result.stderr.splitlines()]
    assert all(first == "loopfs:" for first, *_ in words)
    return [name for _, name, *_ in words]


def test_what_v_shows(loopfs_run: Run) -> None:
    script = "d=$(mktemp -d); mount -t tmpfs none $d; stat -f $d >/dev/null; umount $d; rmdir $d"
    result = loopfs_run(script, "-v")
    assert result.returncode == 0
    start, *shown, end = names(result)
    assert (start, end) == ("start", "end")
    assert set(shown) <= {"mount", "umount", "umount2", "fsopen", "fsconfig", "fspick"}
    assert " decision=continue " in result.stderr
    everything = set(names(loopfs_run(script, "-vv")))
    assert everything > {"start", "statfs", "end"}
    assert everything & {"fstat", "newfstatat", "statx"}
    assert everything == set(names(loopfs_run(script, "-v", "-v")))


def test_both(logged: Logged) -> None:
    result, records = logged("losetup -f", "-v")
    assert names(result) == ["start", "end"]
    assert calls(records, "fstat", "newfstatat", "statx")


def test_a_hostile_name_is_one_line(loopfs_run: Run) -> None:
    script = "umount \"$(printf 'a\\nloopfs: mount \\033[31m')\" 2>/dev/null || :"
    result = loopfs_run(script, "-v")
    assert names(result) == ["start", "umount2", "end"]
    assert "\x1b" not in result.stderr


# --- when there is none, and when it cannot be written ---------------------------------------


def test_without_it_nothing_is_imported_or_said(loopfs_run: Run) -> None:
    script = "umount /none 2>/dev/null; exit 0"
    result = loopfs_run(script, env={"PYTHONPROFILEIMPORTTIME": "1"})
    modules = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "loopfs.intercept.umount" in modules
    assert not modules & {"loopfs.intercept.log", "json"}
    silent = loopfs_run(script)
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("name", "problem"), [("none/log", "No such file or directory"), (".", "Is a directory")]
)
def test_a_log_that_cannot_be_opened(
    loopfs_run: Run, workdir: Path, name: str, problem: str
) -> None:
    result = loopfs_run("touch ran", "--log", name)
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr == f"loopfs: the log {name} cannot be opened: {problem}\n"
    assert not (workdir / "ran").exists()


def test_a_log_of_another_user(loopfs_run: Run, workdir: Path, needs_root: None) -> None:
    (workdir / "roots").write_text("kept")
    (workdir / "roots").chmod(0o644)
    result = loopfs_run("true", f"--log={workdir}/roots")
    assert result.returncode == 125
    assert "cannot be opened: Permission denied" in result.stderr
    assert (workdir / "roots").read_text() == "kept"


def test_a_full_disk(loopfs_run: Run, image: Path) -> None:
    script = "mkdir mnt; mount -o loop disk.img mnt && ls mnt && umount mnt; exit 7"
    result = loopfs_run(script, "--log", "/dev/full")
    assert (result.returncode, result.stdout) == (7, "lost+found\n")
    assert result.stderr == (
        "loopfs: the log /dev/full cannot be written: No space left on device; it ends here\n"
    )


@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_a_standard_error_that_is_closed_or_full(
    loopfs_bin: list[str], run_as_user: Run, image: Path, stream: str
) -> None:
    script = "mkdir mnt; mount -o loop disk.img mnt && ls mnt && umount mnt; exit 7"
    words = [*loopfs_bin, "run", "-vv", "--log", "log", "--", "sh", "-c", script]
    result = run_as_user(f"{shlex.join(words)} {stream}", cwd=image.parent)
    assert (result.returncode, result.stdout) == (7, "lost+found\n")
    assert json.loads((image.parent / "log").read_text().splitlines()[-1])["status"] == 7


def test_a_standard_error_that_is_not_read(user: User, loopfs_bin: list[str], image: Path) -> None:
    script = "mkdir mnt; mount -o loop disk.img mnt && ls mnt && umount mnt; exit 7"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [*loopfs_bin, "run", "-vv", "--", "sh", "-c", script],
            cwd=image.parent,
            env=user.environment(),
            stdout=subprocess.PIPE,
            stderr=writer,
            timeout=60,
            check=False,
            user=None if user.is_self else user.uid,
            group=None if user.is_self else user.gid,
            extra_groups=None if user.is_self else [],
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stdout) == (7, b"lost+found\n")


def test_the_command_has_no_descriptor_of_it(logged: Logged) -> None:
    """Nor can it ask process 1, which forked it, for one."""
    result, _ = logged("ls -l /proc/self/fd; ! ls /proc/1/fd 2>/dev/null")
    assert result.returncode == 0
    assert "/log" not in result.stdout
