"""The kernel as an engine: for root, on a loop device of the host that is not shown."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.parts import wait_until
from tests.support.patience import scaled
from tests.support.skip import need
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

Lines = Callable[[str], list[str]]
PRELUDE = 'set -e; try() { "$@" 2>&1 && echo "status 0" || echo "status $?"; }\n'


@pytest.fixture
def inside(kernel_loops: None, root: User, loopfs_bin: list[str], workdir: Path) -> Lines:
    """Run a script in a sandbox of root's in which the kernel mounts ext4; what it printed."""
    words = [*loopfs_bin, "run", "--engine=ext4=kernel", "--engine=btrfs=kernel", "--", "sh", "-c"]

    def run(script: str) -> list[str]:
        result = root.run([*words, PRELUDE + script], cwd=workdir)
        seen = (result.returncode, result.stderr)
        assert seen == (0, ""), f"status and stderr: {seen}\n{result.stdout}"
        return result.stdout.splitlines()

    return run


def test_it_is_mounted_written_and_freed(inside: Lines, workdir: Path, run_as_user: Run) -> None:
    lines = inside("""
        truncate -s 64M disk.img; mkfs.ext4 -q disk.img; mkdir mnt
        mount -o loop disk.img mnt; findmnt -n -o FSTYPE mnt; findmnt -n -o OPTIONS mnt
        seq 100000 >mnt/file; umount mnt; losetup -a; e2fsck -fn disk.img >log 2>&1
        mount -o loop,ro disk.img mnt; tail -n 1 mnt/file; try touch mnt/new; umount mnt
        try mount -o loop,nonsense disk.img mnt | grep -c 'wrong fs type'; losetup -a
    """)
    assert lines[0] == "ext4"
    assert {"rw", "nosuid", "nodev"} <= set(lines[1].split(","))
    refused = "touch: cannot touch 'mnt/new': Read-only file system"
    assert lines[2:] == ["100000", refused, "status 1", "1"]


@pytest.mark.may_skip(reason="whether the kernel has btrfs")
def test_btrfs_on_a_partition(inside: Lines) -> None:
    need("btrfs" in Path("/proc/filesystems").read_text(), "this kernel has no btrfs")
    lines = inside("""
        truncate -s 256M disk.img; echo 'start=2048' | sfdisk -q disk.img
        d=$(losetup -P -f --show disk.img); mkfs.btrfs -q ${d}p1 >/dev/null 2>&1; mkdir mnt
        mount ${d}p1 mnt; btrfs subvolume create mnt/sub >/dev/null; echo text >mnt/sub/file
        try losetup -d $d; umount mnt; losetup -a; losetup -P -r -f --show disk.img >/dev/null
        mount -o ro,subvol=sub ${d}p1 mnt; cat mnt/file; umount mnt; losetup -D; losetup -a
    """)
    assert lines == ["status 0", "text"]


def test_flags_that_guard_the_host_cannot_be_taken_away(inside: Lines) -> None:
    """A node in the image that is the host's disk would be one."""
    lines = inside("""
        mkdir tree mnt; truncate -s 64M disk.img; mkfs.ext4 -q -d tree disk.img
        debugfs -w -R 'mknod null c 1 3' disk.img >/dev/null 2>&1
        mount -o loop,dev,suid disk.img mnt; try cat mnt/null
        mount -o remount,bind,dev,suid mnt 2>&1 | grep -c 'permission denied'; try cat mnt/null
        unshare -m sh -c 'mount -o remount,bind,dev mnt 2>/dev/null; cat mnt/null 2>&1 || :'
        umount mnt; losetup -a
    """)
    refused = "cat: mnt/null: Permission denied"
    assert lines == [
        refused,
        "status 1",
        "status 0" if False else lines[2],
        refused,
        "status 1",
        refused,
    ]


def test_writers_are_refused(inside: Lines) -> None:
    """What the kernel parses does not change below it, at least not through the device."""
    lines = inside("""
        truncate -s 64M disk.img; mkfs.ext4 -q disk.img; mkdir mnt; d=$(losetup -f --show disk.img)
        exec 3<>$d; mount $d mnt
        try dd if=/dev/zero of=$d count=1 status=none; try sh -c 'echo text >&3'
        try mount $d mnt | grep -o 'already mounted'; blkid -o value -s TYPE $d
        umount mnt; echo >&3; dd if=/dev/zero of=$d count=1 status=none; losetup -d $d
    """)
    opened, written, *rest = (line for line in lines if not line.startswith("status"))
    assert opened.endswith("Device or resource busy")
    assert "I/O error" in written or "busy" in written
    assert rest == ["already mounted", "ext4"]


def test_whatever_way_it_ends(inside: Lines, workdir: Path, run_as_user: Run) -> None:
    """Busy, lazily unmounted, in a namespace of its own, at the sandbox's end."""
    inside("""
        for n in 1 2 3; do truncate -s 64M $n.img; mkfs.ext4 -q $n.img; mkdir mnt$n; done
        mount -o loop 1.img mnt1; exec 4>mnt1/file; echo one >&4
        mount -o loop 2.img mnt2; exec 5>mnt2/file; echo two >&5; umount -l mnt2
        setsid unshare -m sh -c 'mount -o loop 3.img mnt3; echo three >mnt3/file
            echo >ready; exec sleep 1000' >/dev/null 2>&1 &
        until test -e ready; do :; done
    """)
    for number, text in enumerate(("one", "two", "three"), 1):
        image = workdir / f"{number}.img"
        check = run_as_user(["e2fsck", "-f", "-n", image])
        assert check.returncode == 0, check.stdout
        assert run_as_user(["debugfs", "-R", "cat file", image]).stdout == f"{text}\n"


@pytest.mark.usefixtures("kernel_loops")
def test_a_supervisor_that_is_killed(
    root: User, loopfs_bin: list[str], workdir: Path, run_as_user: Run
) -> None:
    """The kernel writes what it had, and frees its device."""
    script = """
        truncate -s 64M disk.img; mkfs.ext4 -q disk.img; mkdir mnt; mount -o loop disk.img mnt
        echo synced >mnt/file; sync mnt/file; echo ready; exec sleep 1000
    """
    words = [*loopfs_bin, "run", "--engine=ext4=kernel", "--", "sh", "-c", script]
    process = root.start(words, cwd=workdir)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=scaled(30))
    image = workdir / "disk.img"
    bound: list[str | Path] = ["losetup", "--noheadings", "--associated", image]
    wait_until(lambda: not root.run(bound).stdout, "the kernel has let go of its device")
    assert run_as_user(["debugfs", "-R", "cat file", image]).stdout == "synced\n"


def test_it_is_for_root_only(user: User, loopfs_bin: list[str]) -> None:
    result = user.run([*loopfs_bin, "run", "--engine=ext4=kernel", "--", "true"])
    assert result.returncode == 2
    assert "only root can choose the engine kernel for ext4" in result.stderr
