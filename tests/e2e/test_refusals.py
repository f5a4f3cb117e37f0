"""A start that fails: status 125, and one sentence with the cause and the remedy."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.user import CHECKOUT, Result, Run, User

pytestmark = pytest.mark.e2e

PYTHON = "/usr/bin/python3" if os.geteuid() == 0 else sys.executable
REFUSING = ["env", f"PYTHONPATH={CHECKOUT}:{CHECKOUT / 'src'}", PYTHON]
REFUSING += ["-m", "tests.support.refusing"]

# What a start calls: what the sentence names, what not, and what a start does without.
NAMED = ["unshare", "setns", "mount", "open_tree", "move_mount", "pidfd_open", "seccomp", "prctl"]
NAMED += ["clone", "statx", "readlink", "landlock_restrict_self"]
UNNAMED = ["socketpair", "sendmsg", "recvmsg", "mkdir", "symlink", "fchdir", "fchmod", "pipe2"]
PATHS = {"mkdir": "/run", "symlink": "/dev"}
NEEDLESS = {"EPERM": ["fsopen", "chroot", "landlock_create_ruleset"]}
NEEDLESS["ENOSYS"] = ["fsopen", "chroot", "clone3"]
REMEDIES = ("seccomp", "apparmor", "security module", "Linux 5", "AppArmor")


def sentence(result: Result) -> str:
    """The one line that a refused start prints."""
    assert (result.returncode, result.stdout) == (125, ""), result
    lines = result.stderr.removeprefix(ONE_ID).splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("loopfs: ")
    return lines[0]


# What else it prints where /etc/subuid has ids for the user: who refuses calls has no_new_privs.
ONE_ID = (
    "loopfs: in the sandbox there is only your own user and group: "
    "newuidmap does not work under no_new_privs\n"
)


@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
def test_each_call_of_a_start(run_as_user: Run, loopfs_bin: list[str], code: str) -> None:
    def start(call: str) -> Result:
        return run_as_user([*REFUSING, code, call, *loopfs_bin, "run", "--", "true"])

    calls = [*NAMED, *UNNAMED, *NEEDLESS[code]]
    with ThreadPoolExecutor(4) as pool:
        results = dict(zip(calls, pool.map(start, calls), strict=True))
    for call in NEEDLESS[code]:
        result = results.pop(call)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", ONE_ID), call
    for call, result in results.items():
        said = sentence(result)
        assert call in said if call in NAMED else PATHS.get(call, "") in said
        if call != "sendmsg":  # then nobody can say why
            assert any(remedy in said for remedy in REMEDIES), said


def test_process_1_that_fails_while_it_answers_for_dev(
    run_as_user: Run, loopfs_bin: list[str]
) -> None:
    """Nobody waits for its answer. No profile refuses poll(2): it stands for any failure there."""
    result = run_as_user([*REFUSING, "EPERM", "poll", *loopfs_bin, "run", "--", "true"])
    assert (result.returncode, result.stdout) == (125, "")
    assert result.stderr.splitlines()[-1].startswith("loopfs: no sandbox can be made")


def test_a_security_module(run_as_user: Run, loopfs_bin: list[str]) -> None:
    """AppArmor's profiles of containers have "deny mount", which is EACCES."""
    words = [*REFUSING, "EACCES", "mount", *loopfs_bin, "run", "--", "true"]
    said = sentence(run_as_user(words))
    assert "mount: Permission denied" in said
    assert "apparmor" in said or "security module" in said


def test_root_that_cannot_map_root(root: User, loopfs_bin: list[str]) -> None:
    """As in a container without capabilities (Linux 5.12)."""
    drop = ["setpriv", "--bounding-set=-setfcap", "--inh-caps=-all", *loopfs_bin, "run", "true"]
    said = sentence(root.run(drop))
    assert "CAP_SETFCAP" in said and "SETFCAP,SETUID,SETGID" in said.replace(" and ", ",")


def test_root_that_maps_only_itself(root: User, loopfs_bin: list[str]) -> None:
    drop = ["setpriv", "--bounding-set=-setuid,-setgid", "--inh-caps=-all", *loopfs_bin, "run"]
    result = root.run([*drop, "cat", "/proc/self/uid_map", "/proc/self/gid_map"])
    assert (result.returncode, result.stdout.split()) == (0, ["0", "0", "1"] * 2)
    (said,) = result.stderr.splitlines()
    assert "only your own user and group" in said and "CAP_SETUID" in said


def test_newuidmap_that_cannot_be_executed(
    run_as_user: Run, loopfs_bin: list[str], workdir: Path
) -> None:
    """With file capabilities that the container's bounding set lacks it is EPERM."""
    tool = workdir / "newuidmap"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o644)
    words = ["env", f"PATH={workdir}", *loopfs_bin]
    result = run_as_user([*words, "run", "--", "/usr/bin/id", "-u"])
    assert (result.returncode, result.stdout) == (0, "0\n")
    assert result.stderr.startswith("loopfs: in the sandbox there is only your own user: newuidmap")
    assert "cannot be executed (Permission denied)" in result.stderr
    assert run_as_user([*words, "doctor"]).stderr == ""


@pytest.mark.parametrize(
    ("lacking", "words"),
    [
        ("mknod -m 600 /mnt/fuse c 10 229; mount --bind /mnt/fuse /dev/fuse", "chmod 0666"),
        ("mknod -m 666 /mnt/fuse c 255 0; mount --bind /mnt/fuse /dev/fuse", "/dev/fuse"),
        ("mkdir /mnt/dev; touch /mnt/dev/null; mount --bind /mnt/dev /dev", "/dev/null"),
        ("mount -o remount,nodev,bind /mnt; mount --bind /mnt /dev", "/dev/null"),
    ],
)
def test_a_node_that_is_missing(
    root: User, user: User, loopfs_bin: list[str], lacking: str, words: str
) -> None:
    drop = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
    script = f'mount -t tmpfs none /mnt; {lacking}; exec "$@"'
    command = ["unshare", "-m", "sh", "-ec", script, "sh", *drop, *loopfs_bin, "run", "true"]
    assert words in sentence(root.run(command))


# What mounting takes besides, as doctor names it. setns and others are refused at the start.
MOUNTING = ["setns", "open_tree", "move_mount", "mount_setattr", "umount2", "pidfd_getfd", "fsopen"]
MOUNTING += ["fsconfig", "fsmount", "process_vm_readv"]


def test_doctor_names_what_is_refused(run_as_user: Run, loopfs_bin: list[str]) -> None:
    def examined(calls: str) -> Result:
        return run_as_user([*REFUSING, "EPERM", calls, *loopfs_bin, "doctor"])

    with ThreadPoolExecutor(4) as pool:
        results = dict(zip(MOUNTING, pool.map(examined, MOUNTING), strict=True))
    for call, result in results.items():
        assert (result.returncode, result.stderr) == (1, ""), call
        said = " ".join(result.stdout.split())  # however its lines are filled
        assert f"{call}: Operation not permitted" in said
    # Nothing asks for these by name; a sandbox does not work without.
    result = examined("memfd_create,eventfd2")
    assert result.returncode == 1
    assert "a sandbox  " in result.stdout and "binding a device" in result.stdout


def test_without_chroot(run_as_user: Run, loopfs_bin: list[str], workdir: Path) -> None:
    """Only who has another root than its mount namespace takes it."""
    script = """
        truncate -s 4M disk.img; mkfs.vfat disk.img >/dev/null; mkdir mnt
        mount -o loop disk.img mnt; echo text >mnt/file; umount mnt; umount mnt 2>/dev/null ||
        unshare -m sh -ec 'mount -o loop disk.img mnt; cat mnt/file'
    """
    refusing = [*REFUSING, "EPERM", "chroot", *loopfs_bin]
    result = run_as_user([*refusing, "run", "--", "sh", "-ec", script], cwd=workdir)
    assert (result.returncode, result.stdout, result.stderr) == (0, "text\n", ONE_ID)
    result = run_as_user([*refusing, "doctor"])
    assert result.returncode == 0
    assert "chroot: Operation not permitted" in result.stdout
