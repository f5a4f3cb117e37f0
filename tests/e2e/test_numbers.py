"""The first number of a sandbox's devices: after the host's, or the one that is given."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.user import Run

pytestmark = pytest.mark.e2e

LISTS = """
ls -d /sys/block/loop* /sys/class/block/loop* /sys/devices/virtual/block/loop*
for n in /sys/dev/block/*; do readlink $n; done | grep /loop || :
losetup -l -n -O NAME,BACK-FILE; lsblk -n -o NAME /dev/loop0
"""


def test_a_hard_coded_name_works(loopfs_run: Run, image: Path) -> None:
    """And the host's devices of such names are neither there nor in the way."""
    script = f"""
        set -eu
        losetup /dev/loop0 disk.img && mkdir mnt && mount /dev/loop0 mnt && ls mnt && umount mnt
        {LISTS} losetup -d /dev/loop0; losetup -f
    """
    result = loopfs_run(script, "--number-from", "0")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("lost+found", "/dev/loop0")
    assert set(re.findall(r"\bloop\d+\b", result.stdout)) == {"loop0"}


def test_names_are_the_same_in_every_run(loopfs_run: Run, image: Path) -> None:
    script = "losetup -f --show disk.img; losetup -f --show disk.img"
    for _ in range(2):
        assert loopfs_run(script, "--number-from=40").stdout == "/dev/loop40\n/dev/loop41\n"


@pytest.mark.usefixtures("hosts_loops")
def test_by_default_the_hosts_devices_are_shown(loopfs_run: Run) -> None:
    hosts = {path.name for path in Path("/sys/block").glob("loop*")}
    inside = loopfs_run("ls /sys/block").stdout.split()
    assert hosts <= set(inside)


def test_a_number_that_is_none(loopfs_run: Run) -> None:
    result = loopfs_run("true", "--number-from", "-1")
    assert result.returncode == 2
    assert "--number-from needs a number from 0 to 1048575, not '-1'" in result.stderr


def test_proc_partitions_hides_and_shows_the_same(
    loopfs_run: Run, kernel_loop: str, workdir: Path
) -> None:
    """The host's loop device is there by default, and not with --number-from."""
    image = workdir / "host.img"
    image.write_bytes(bytes(1 << 20))
    subprocess.run(["losetup", kernel_loop, image], check=True)
    try:
        script = f"grep -w {Path(kernel_loop).name} /proc/partitions; wc -l </proc/self/mounts"
        shown = loopfs_run(script).stdout.splitlines()
        hidden = loopfs_run(script, "--number-from", "5000").stdout.splitlines()
    finally:
        subprocess.run(["losetup", "-d", kernel_loop], check=True)
    assert (len(shown), len(hidden)) == (2, 1)
