"""loopfs run as root, in user namespaces, in bubblewrap and in a chroot."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.skip import need
from tests.support.user import Result, Run, User

pytestmark = pytest.mark.e2e

JOB = """
d=$(losetup -f --show disk.img); mkfs.ext4 -q $d; losetup -d $d; mkdir mnt
mount -o loop disk.img mnt; echo text >mnt/file; chown 7:8 mnt/file 2>/dev/null || :
umount mnt; losetup -f; id -u; dd if=disk.img of=copy.img status=none
"""


ONE_ID = (
    "loopfs: in the sandbox there is only your own user and group:"
    " newuidmap does not work under no_new_privs\n"
)


def checked(result: Result, workdir: Path, run_as_user: Run, complaint: str = "") -> list[str]:
    """The lines a job has printed, after a look at what it has left in the image."""
    assert (result.returncode, result.stderr) == (0, complaint)
    check = run_as_user(["e2fsck", "-f", "-n", workdir / "disk.img"])
    assert check.returncode == 0, check.stdout
    read = run_as_user(["debugfs", "-R", "cat file", workdir / "disk.img"])
    assert read.stdout == "text\n"
    return result.stdout.splitlines()


@pytest.fixture
def disk(workdir: Path, user: User) -> Path:
    path = workdir / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 << 20)
    shutil.chown(path, user.uid, user.gid)
    return path


def test_as_root(root: User, loopfs_bin: list[str], disk: Path, run_as_user: Run) -> None:
    """The same way as others: in a user namespace, with every id as itself."""
    script = JOB + "cat /proc/self/uid_map; stat -c %u:%g disk.img; readlink /proc/self/ns/user"
    words = [*loopfs_bin, "run", "--", "sh", "-ec", script]
    device, uid, *rest = checked(root.run(words, cwd=disk.parent), disk.parent, run_as_user)
    assert device.startswith("/dev/loop")
    assert uid == "0"
    assert rest[0].split() == Path("/proc/self/uid_map").read_text().split()
    assert rest[1] == f"{disk.stat().st_uid}:{disk.stat().st_gid}"
    assert rest[2] != str(Path("/proc/self/ns/user").readlink())
    assert "User:     7   Group:     8" in stat_of_file(disk, run_as_user)


def stat_of_file(disk: Path, run_as_user: Run) -> str:
    return run_as_user(["debugfs", "-R", "stat file", disk]).stdout


@pytest.mark.parametrize("options", ["-Ur", "-Urm", "-Urmpf --mount-proc"])
def test_inside_a_user_namespace(
    run_as_user: Run, loopfs_bin: list[str], disk: Path, options: str
) -> None:
    words = ["unshare", *options.split(), *loopfs_bin, "run", "--", "sh", "-ec", JOB]
    lines = checked(run_as_user(words, cwd=disk.parent), disk.parent, run_as_user)
    assert lines[1:] == ["0"]


@pytest.mark.may_skip("bubblewrap is not among the packages that the tests install")
@pytest.mark.parametrize("options", ["--unshare-user", "--unshare-user --unshare-pid --proc /proc"])
def test_inside_bubblewrap(
    run_as_user: Run, loopfs_bin: list[str], disk: Path, options: str
) -> None:
    need(shutil.which("bwrap"), "bwrap is not installed")
    words = ["bwrap", "--dev-bind", "/", "/", *options.split(), *loopfs_bin]
    result = run_as_user([*words, "run", "--", "sh", "-ec", JOB], cwd=disk.parent)
    assert checked(result, disk.parent, run_as_user, ONE_ID)[1:] == ["0"]


def test_namespaces_made_inside(loopfs_run: Run, disk: Path, run_as_user: Run) -> None:
    """What the command makes itself: a mount namespace and a chroot go on working."""
    script = f"unshare -m sh -ec '{JOB}'; mountpoint -q mnt || echo not mounted here"
    lines = checked(loopfs_run(script), disk.parent, run_as_user)
    assert lines[1:] == ["0", "not mounted here"]


def test_in_a_chroot(loopfs_run: Run, disk: Path, run_as_user: Run) -> None:
    script = f"""
        mkdir root; mount --rbind / root; mount --rbind "$PWD" root/mnt
        chroot root sh -ec 'cd /mnt; {JOB}'
    """
    lines = checked(loopfs_run(script), disk.parent, run_as_user)
    assert lines[1:] == ["0"]


def test_what_a_chroot_into_a_bind_mount_of_the_root_names(loopfs_run: Run) -> None:
    """It looks like the root, and paths there lead elsewhere."""
    script = """
        truncate -s 1M disk.img; mkfs.vfat disk.img >disk.log; mkdir mnt root
        mount --rbind / root; mount --rbind "$PWD" root/mnt
        chroot root mount -o loop /mnt/disk.img /mnt/mnt
        mountpoint -q root/mnt/mnt; ! mountpoint -q mnt
    """
    result = loopfs_run(["sh", "-ec", script])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_two_of_one_image(run_as_user: Run, loopfs_bin: list[str], disk: Path) -> None:
    """As root can on one kernel: two devices on one file, here of two instances."""
    script = """
        "$@" run -- sh -c 'd=$(losetup -f --show disk.img); echo from one >$d; echo $d; echo >one
            until test -e two; do :; done; losetup -d $d' >said.one &
        until test -e one; do :; done
        "$@" run -- sh -c 'd=$(losetup -f --show disk.img); echo $d; head -n 1 $d
            losetup -a | wc -l; echo >two' >said.two
        wait; cat said.one said.two
    """
    result = run_as_user(["sh", "-ec", script, "sh", *loopfs_bin], cwd=disk.parent)
    assert (result.returncode, result.stderr) == (0, "")
    first, second, text, count = result.stdout.splitlines()
    assert (first, text, count) == (second, "from one", "1")
