"""The engines that are a job of ours, which has the image itself: what mounts, programs and other
openers of the device see of that."""

from __future__ import annotations

import os
import select
import shutil
import signal
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines, Start
from tests.support.parts import parts_of, wait_until
from tests.support.patience import scaled
from tests.support.skip import need
from tests.support.user import Run

pytestmark = pytest.mark.e2e

PATIENCE = scaled(30.0)  # seconds
MADE = "truncate -s 4M disk.img; mkfs.fat disk.img >/dev/null; mkdir mnt\n"


@pytest.fixture(autouse=True)
def _tools() -> None:
    need(shutil.which("mkfs.fat") and shutil.which("mcopy"), "dosfstools or mtools is missing")


@pytest.mark.usefixtures("needs_root")  # to see what it has open
def test_no_program_is_started_and_nothing_of_the_callers_is_kept(started: Start) -> None:
    process = started(f"{MADE} mount -o loop disk.img mnt; echo ready; read line; umount mnt")
    parts = parts_of(process.pid)
    (engine,) = parts.engines
    command = Path(f"/proc/{parts.helper}/cmdline").read_bytes()
    assert Path(f"/proc/{engine}/cmdline").read_bytes() == command
    (userns, mounts) = (os.readlink(f"/proc/{engine}/ns/{name}") for name in ("user", "mnt"))
    assert mounts == os.readlink(f"/proc/{parts.helper}/ns/mnt")
    assert userns == os.readlink(f"/proc/{parts.init}/ns/user")
    files = {os.readlink(entry) for entry in Path(f"/proc/{engine}/fd").iterdir()}
    places = {file for file in files if file.startswith("/")}
    assert {os.path.basename(place) for place in places} == {"null", "fuse", "disk.img"}
    assert os.readlink(f"/proc/{engine}/cwd") == "/"
    process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0


def test_an_opener_of_the_device_reads_what_is_written(inside: Lines) -> None:
    """When it is synced, and when it is unmounted; meanwhile nobody else writes."""
    lines = inside(
        MADE
        + r"""
        d=$(losetup -f --show disk.img); exec 7<$d; look() { mtype -i $d ::/f 2>/dev/null; }
        mount $d mnt; echo one >mnt/f; sync -f mnt; look; echo two >mnt/f; sync mnt/f; look
        dd if=/dev/zero of=$d bs=512 count=1 conv=notrunc 2>&1 | grep -o busy
        echo three >mnt/f; umount mnt; look; grep -c . $d >/dev/null; losetup -d $d
        exec 7<&-; losetup -a; mtype -i disk.img ::/f
        """
    )
    assert lines == ["one", "two", "busy", "three", "three"]


def test_one_superblock_for_all_mounts(inside: Lines) -> None:
    lines = inside(
        MADE
        + """
        mkdir more; d=$(losetup -f --show disk.img); mount $d mnt; mount $d more; echo x >mnt/f
        cat more/f; umount mnt; echo y >>more/f; cat more/f
        mount -o ro $d mnt 2>/dev/null || echo busy
        unshare -Urm mount -t vfat $d mnt 2>/dev/null || echo busy
        mount --bind more mnt; umount more; cat mnt/f; umount mnt; losetup -d $d; losetup -a
        """
    )
    assert lines == ["x", "x", "y", "busy", "busy", "x", "y"]


def test_it_ends_with_the_last_mount_namespace(inside: Lines) -> None:
    lines = inside(
        MADE
        + """
        d=$(losetup -f --show disk.img); unshare -m sh -c "mount $d mnt; echo x >mnt/f"
        mount $d mnt; cat mnt/f; umount -l mnt; losetup -d $d; losetup -a
        """
    )
    assert lines == ["x"]


def test_whatever_root_the_caller_has(inside: Lines) -> None:
    """No program of ours or the host's is there."""
    lines = inside(
        MADE
        + """
        mkdir -p root/dev root/mnt; mount --bind /dev root/dev; d=$(losetup -f --show disk.img)
        python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chroot("root")
os.chdir("/")
assert libc.mount(sys.argv[1].encode(), b"/mnt", b"vfat", 0, b"codepage=850") == 0
open("/mnt/f", "w").write("x")
assert libc.umount2(b"/mnt", 0) == 0' $d
        umount root/dev; mount $d mnt; cat mnt/f; umount mnt; losetup -d $d
        """
    )
    assert lines == ["x"]


def test_whatever_ids_the_caller_has(inside: Lines) -> None:
    """Its job takes them on for what it looks up, in one thread of two."""
    lines = inside(
        MADE
        + """
        chmod 777 . mnt; d=$(losetup -f --show disk.img)
        setpriv --reuid 1 --regid 1 --clear-groups --inh-caps=+sys_admin --ambient-caps=+sys_admin \
            python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None)
assert libc.mount(sys.argv[1].encode(), b"mnt", b"vfat", 0, None) == 0
open("mnt/f", "w").write("x")
status = os.stat("mnt/f")
print(status.st_uid, status.st_gid)
assert libc.umount2(b"mnt", 0) == 0' $d
        losetup -d $d; losetup -a; mtype -i disk.img ::/f
        """
    )
    assert lines == ["1 1", "x"]


def test_a_device_on_another_device_is_served(inside: Lines) -> None:
    """Its file is the other's node, which is not lent."""
    lines = inside(
        MADE
        + """
        d=$(losetup -f --show disk.img); e=$(losetup -f --show $d); mount $e mnt; echo x >mnt/f
        umount mnt; losetup -d $e; mount $d mnt; cat mnt/f; umount mnt; losetup -d $d
        """
    )
    assert lines == ["x"]


def test_its_transfers_are_in_the_statistics(inside: Lines) -> None:
    lines = inside(
        MADE
        + """
        d=$(losetup -f --show disk.img)
        written() { awk '{ print $7 }' /sys/block/${d#/dev/}/stat; }
        begun=$(written); mount $d mnt; head -c 1M /dev/zero >mnt/f; sync -f mnt
        echo $(($(written) - begun >= 2048)); begun=$(written)
        head -c 1M /dev/zero >mnt/g; umount mnt; echo $(($(written) - begun >= 2048)); losetup -d $d
        """
    )
    assert lines == ["1", "1"]


def test_an_engine_that_is_killed(started: Start, workdir: Path, run_as_user: Run) -> None:
    """Its users get errors, the mount can be taken away, the device is free, nothing is lost."""
    process = started(
        MADE
        + """
        d=$(losetup -f --show disk.img); mount $d mnt; echo synced >mnt/file; sync mnt/file
        echo ready; read line; cat mnt/file 2>&1; umount mnt; echo "status $?"
        fsck.fat -a $d >/dev/null; mount $d mnt; cat mnt/file; umount mnt; losetup -d $d
        """
    )
    (engine,) = wait_until(lambda: parts_of(process.pid).engines, "there is an engine")
    pidfd = os.pidfd_open(engine)
    os.kill(engine, signal.SIGKILL)
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)
    output, complaint = process.communicate("\n", timeout=PATIENCE)
    gone = "cat: mnt/file: Transport endpoint is not connected"
    assert (output.splitlines(), complaint) == ([gone, "status 0", "synced"], "")


@pytest.mark.parametrize("victim", ["supervisor", "helper", "init"])
def test_it_ends_with_the_sandbox(
    started: Start, workdir: Path, run_as_user: Run, victim: str
) -> None:
    """Nobody is left who would hold the image (the leak check), and what was synced is there."""
    process = started(
        MADE + "mount -o loop disk.img mnt; echo x >mnt/f; sync -f mnt; echo ready; read line"
    )
    os.kill(getattr(parts_of(process.pid), victim), signal.SIGKILL)
    process.communicate("\n", timeout=PATIENCE)
    assert run_as_user(["mtype", "-i", "disk.img", "::/f"], cwd=workdir).stdout == "x\n"


def test_a_caller_that_waits_for_a_mount_can_be_killed(started: Start) -> None:
    """The engine that its job would become ends with it."""
    process = started(
        MADE
        + """
        d=$(losetup -f --show disk.img); echo ready; read line
        for n in 1 2 3 4 5 6 7 8; do timeout -s KILL 0.0$n mount $d mnt; umount mnt 2>/dev/null
        done; while umount mnt 2>/dev/null; do :; done; mount $d mnt && umount mnt; losetup -d $d
        losetup -a; echo end
        """
    )
    output, _ = process.communicate("\n", timeout=PATIENCE)
    assert (output, process.returncode) == ("end\n", 0)
