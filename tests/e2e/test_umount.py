"""umount(8) with all its options, compared with real root on the kernel's loop devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Compare, Lines
from tests.support.sandbox import content
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# free: the loop device goes with the last user of the mount, which natively may take a moment.
SETUP = """
truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt two 'a b'; ln -s mnt link
free() { n=0; until test -z "$(losetup -j "$1")"; do n=$((n + 1)); test $n -lt 1000; done; }
mounted() { grep -c " $PWD/" /proc/self/mountinfo || :; }
mount -o loop disk.img mnt; d=$(losetup -n -O NAME -j disk.img)
"""


@pytest.mark.parametrize(
    "command",
    [
        "umount mnt",
        'umount "$PWD/mnt"',
        "umount mnt/",
        "umount two/../mnt/.",
        "umount link",
        "umount $d",
        "umount disk.img",
        'umount "$PWD/disk.img"',
        "umount -f mnt",
        "umount -l mnt",
        "umount -d mnt",
        "umount -n mnt",
        "umount -i mnt",
        "umount -A mnt",
        "umount -R mnt",
    ],
)
def test_one_mount(in_both: Compare, workdir: Path, run_as_user: Run, command: str) -> None:
    script = f"echo text >mnt/file; try {command}; mounted; try umount mnt; free disk.img"
    native, ours = in_both(SETUP + script)
    assert native.status == 0
    assert ours == native
    assert content(workdir / "sandbox/disk.img", "file", run_as_user) == "text\n"


@pytest.mark.parametrize(
    "script",
    [
        # Of several.
        "cp disk.img 2.img; mount -o loop 2.img two; try umount mnt two; free disk.img; free 2.img",
        "try umount mnt two; free disk.img",
        # One below another: the outer is busy, and -R takes both.
        """cp disk.img 2.img; mkdir mnt/in; mount -o loop 2.img mnt/in; mkdir mnt/in/tmp
        mount -t tmpfs none mnt/in/tmp; try umount mnt; try umount -R mnt
        mounted; free disk.img; free 2.img""",
        # One over another: the upper goes first.
        """mkfs.ext4 -q -F 2.img 4M 2>said; mount -o loop 2.img mnt; echo text >mnt/file
        try umount mnt; test ! -e mnt/file; free 2.img; try umount mnt; free disk.img""",
        # One at two places.
        "mount --bind mnt two; try umount $d; mounted; try umount $d; mounted; free disk.img",
        "mount --bind mnt two; try umount -A $d; mounted; free disk.img",
        # Busy.
        """exec 3>mnt/file; try umount mnt; try umount -f mnt; try umount $d; try umount disk.img
        echo text >&3; cat mnt/file; exec 3>&-; try umount mnt; free disk.img""",
        "cd mnt; try umount ../mnt; try umount .; cd ..; try umount mnt; free disk.img",
        # Lazily: the device goes with the last descriptor.
        """exec 3>mnt/file; try umount -l mnt; mounted; echo text >&3; losetup -n -O BACK-FILE $d
        try umount mnt; exec 3>&-; free disk.img""",
        "cd mnt; try umount -l .; echo text >file; cat file; cd ..; mounted; free disk.img",
        # A name with a space, names that mean nothing.
        "umount mnt; mount -o loop disk.img 'a b'; try umount 'a b'; free disk.img",
        "try umount no/such; try umount /dev/no-such; try umount two; try umount -q two",
    ],
)
def test_several(in_both: Compare, script: str) -> None:
    native, ours = in_both(SETUP + script)
    assert native.status == 0
    assert ours == native


def test_all_of_a_type(inside: Lines, image: Path) -> None:
    """findmnt and umount see the type as FUSE tells it."""
    lines = inside("""
        mkdir mnt two; cp disk.img 2.img; mount -o loop disk.img mnt; mount -o loop 2.img two
        findmnt -n -o FSTYPE mnt; try umount -a -t fuse.ext4; findmnt mnt || losetup -a
    """)
    assert lines == ["fuse.ext4", "status 0"]


def test_where_a_mount_was_refused_is_free_when_it_returns(calls: Lines) -> None:
    lines = calls("""
import subprocess
os.truncate(os.open("zeros", os.O_CREAT | os.O_RDWR), 1 << 20)
bind = ["losetup", "-f", "--show", "zeros"]
device = subprocess.run(bind, stdout=subprocess.PIPE, check=True).stdout.strip()
refused = 0
for _ in range(40):
    assert libc.mount(b"none", b"one", b"tmpfs", 0, None) == 0
    os.chdir("one")
    os.mkdir("inner")
    assert libc.mount(device, b"inner", b"ext4", 0, None) == -1
    os.chdir("..")
    if libc.umount2(b"one", 0):
        refused += 1
        assert libc.umount2(b"one", 2) == 0
subprocess.run(["losetup", "-d", device], check=True)
print(refused)
""")
    assert lines == ["0"]


def test_what_is_around_it_is_free_when_it_returns(calls: Lines) -> None:
    """The job of the helper that has unmounted it has ended: it was in that directory."""
    lines = calls("""
def mounted():
    assert libc.mount(b"none", b"one", b"tmpfs", 0, None) == 0
    os.mkdir("one/inner")
    assert libc.mount(b"none", b"one/inner", b"loop", 0, None) == 0
refused = 0
for _ in range(40):
    mounted()
    assert libc.umount2(b"one/inner", 0) == 0
    if libc.umount2(b"one", 0):
        refused += 1
        assert libc.umount2(b"one", 2) == 0
print(refused)
""")
    assert lines == ["0"]


def test_by_a_program_that_passes_flags(inside: Lines, image: Path) -> None:
    """umount2(2) itself; flags that are unknown or contradict one another are EINVAL."""
    lines = inside("""
        mkdir mnt; ln -s mnt link; mount -o loop disk.img mnt
        python3 -c 'import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for place, flags in (("mnt", 16), ("mnt", 5), ("link", 8), ("none", 0), ("mnt", 8), ("mnt", 0)):
    failed = libc.umount2(place.encode(), flags)
    print(os.strerror(ctypes.get_errno()) if failed else "unmounted")'
    """)
    invalid = "Invalid argument"
    assert lines == [invalid, invalid, invalid, "No such file or directory", "unmounted", invalid]


def test_the_device_of_a_mount_that_has_gone_by_itself(in_both: Compare) -> None:
    """With its namespace, or with the last file of a mount that was detached: whoever opens the
    device, or binds its image, finds everything in it, and nobody who has it."""
    script = """
        truncate -s 16M disk.img; mkdir mnt; mkfs.ext4 -qF disk.img
        device=$(losetup -f --show disk.img); look() { debugfs -R "cat $1" $device 2>/dev/null; }
        unshare -m sh -c "mount $device mnt; echo 1 >mnt/1"; look 1
        mount $device mnt; exec 5>mnt/2; umount -l mnt; echo 2 >&5; exec 5>&-; look 2
        unshare -m sh -c "mount $device mnt; echo 3 >mnt/3; kill -9 \\$\\$" || look 3
        losetup -d $device; losetup -j disk.img
        unshare -m sh -c "mount -o loop disk.img mnt; echo 4 >mnt/4"
        device=$(losetup -f --show disk.img); e2fsck -fn $device >log 2>&1; look 4
        losetup -d $device
        mkdir tree; mount -t tmpfs none tree; mkdir tree/mnt; mount -o loop disk.img tree/mnt
        echo 5 >tree/mnt/5; umount -l tree; debugfs -R "cat 5" disk.img 2>/dev/null
    """
    native, ours = in_both(script)
    assert ours.lines() == native.lines()
    assert ours.output == list("12345")
