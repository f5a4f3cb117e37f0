"""The end of a sandbox: with mounted filesystems, killed, and beside other sandboxes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines, Start
from tests.support.patience import scaled
from tests.support.rounds import rounds
from tests.support.sandbox import content, repair
from tests.support.user import Run, User

pytestmark = pytest.mark.e2e

PATIENCE = scaled(30.0)  # seconds


# --- still mounted -------------------------------------------------------------


@pytest.mark.parametrize("ending", ["exit 0", "exit 3", "kill -KILL $$"])
def test_what_is_still_mounted_is_written(
    loopfs_run: Run, image: Path, run_as_user: Run, ending: str
) -> None:
    result = loopfs_run(f"mkdir mnt; mount -o loop disk.img mnt; seq 100000 >mnt/file; {ending}")
    assert result.returncode == {"exit 0": 0, "exit 3": 3}.get(ending, 128 + signal.SIGKILL)
    assert result.stderr == ""
    assert content(image, "file", run_as_user).splitlines()[-1] == "100000"


def test_whatever_way_it_is_mounted(inside: Lines, image: Path, run_as_user: Run) -> None:
    """Busy, over one another, bound elsewhere, lazily unmounted, in another namespace."""
    inside("""
        cp disk.img two.img; cp disk.img three.img; cp disk.img four.img; mkdir mnt other
        mount -o loop disk.img mnt; exec 3>mnt/file; echo one >&3
        mount --bind mnt other; mkdir mnt/in; mount -o loop two.img mnt/in; echo two >mnt/in/file
        mkdir lazy; mount -o loop three.img lazy; exec 4>lazy/file; echo three >&4; umount -l lazy
        mkdir own; setsid unshare -m sh -c 'mount -o loop four.img own; echo four >own/file
            echo >ready; exec sleep 1000' >/dev/null 2>&1 &
        until test -e ready; do :; done
    """)
    names = {"disk": "one", "two": "two", "three": "three", "four": "four"}
    found = {n: content(image.with_name(f"{n}.img"), "file", run_as_user).strip() for n in names}
    assert found == names


def test_wherever_it_is_mounted(
    inside: Lines, image: Path, workdir: Path, run_as_user: Run
) -> None:
    """Where no path leads any more, and with a device that keeps the filesystem from ending."""
    inside("""
        cp disk.img two.img; mkdir hidden hidden/mnt mnt
        mount -o loop two.img hidden/mnt; exec 3>hidden/mnt/file; mount -t tmpfs none hidden
        mount -o loop disk.img mnt; mount -t tmpfs none mnt; umount mnt; mount --make-rshared /
        truncate -s 1M mnt/file; d=$(losetup -f --show mnt/file); echo inner >$d
        e=$(losetup -f --show $d); exec 4<>$e; echo two >&3; mount -t tmpfs none mnt
    """)
    assert content(workdir / "two.img", "file", run_as_user) == "two\n"
    assert content(image, "file", run_as_user).startswith("inner\n")


def test_devices_that_are_still_attached(inside: Lines, workdir: Path) -> None:
    inside("""
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img); e=$(losetup -f --show $d)
        exec 3<>$e; echo text >&3
    """)
    assert (workdir / "disk.img").read_bytes()[:5] == b"text\n"


# --- killed ----------------------------------------------------------------------


def test_a_supervisor_that_is_killed_leaves_nothing(
    started: Start, workdir: Path, run_as_user: Run
) -> None:
    """What had been synced is in the images; the leak check looks for the rest."""
    process = started("""
        truncate -s 16M disk.img raw.img; mkfs.ext4 -q -F disk.img; mkdir mnt
        mount -o loop disk.img mnt; echo synced >mnt/file; sync mnt/file
        d=$(losetup -f --show raw.img); echo synced | dd of=$d conv=fsync status=none
        (setsid sh -c 'while :; do seq 1000 >mnt/more; done' 2>/dev/null &)
        echo ready; while :; do dd if=/dev/zero of=$d bs=64K seek=1 count=8 status=none; done
    """)
    process.send_signal(signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    # Whoever still has the other end of a pipe has not ended.
    _, complaint = process.communicate(timeout=PATIENCE)
    # Until the workload is killed as well, its trapped calls fail (ENOSYS), and dd may say so.
    said = [line for line in complaint.splitlines() if not line.startswith("dd: ")]
    assert len(said) == 1
    assert said[0].startswith("loopfs: the supervisor was killed")
    assert (workdir / "raw.img").read_bytes()[:7] == b"synced\n"
    repair(workdir / "disk.img", run_as_user)
    assert content(workdir / "disk.img", "file", run_as_user) == "synced\n"
    assert list((workdir / "mnt").iterdir()) == []


# --- side by side ------------------------------------------------------------------


@pytest.mark.usefixtures("hosts_loops")
def test_many_sandboxes_at_once(user: User, loopfs_bin: list[str], workdir: Path) -> None:
    """All have a device of the same name, each its own image; all are alive at one time."""
    script = """
        cd $1; truncate -s $((4 + $1))M disk.img; d=$(losetup -f --show disk.img); echo $d
        mkfs.ext4 -q $d; mkdir mnt; mount $d mnt; echo "of $1" >mnt/file; read line
        cat mnt/file; losetup -a | wc -l; blockdev --getsize64 $d; umount mnt; losetup -d $d
    """
    processes = []
    for number in range(rounds(20, 50)):
        (workdir / str(number)).mkdir()
        os.chown(workdir / str(number), user.uid, user.gid)
        words = [*loopfs_bin, "run", "--", "sh", "-ec", script, "sh", str(number)]
        processes.append(user.start(words, cwd=workdir))
    names = {process.stdout.readline() for process in processes if process.stdout}
    assert len(names) == 1, names
    for number, process in enumerate(processes):
        output, complaint = process.communicate("\n", PATIENCE)
        assert (process.returncode, complaint) == (0, "")
        assert output.splitlines() == [f"of {number}", "1", str((4 + number) << 20)]


def test_the_end_of_a_pid_namespace_spares_engines(
    inside: Lines, image: Path, run_as_user: Run
) -> None:
    inside("mkdir mnt; unshare -mpf sh -c 'mount -o loop disk.img mnt; seq 100000 >mnt/file'")
    assert content(image, "file", run_as_user).splitlines()[-1] == "100000"
