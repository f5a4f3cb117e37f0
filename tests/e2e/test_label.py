"""The label of a mounted ext filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Compare, Lines
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# The ioctls on what is mounted at mnt: errnos, and what 256 bytes of 0xff are then.
PROGRAM = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
GET, SET = 0x81009431, 0x41009432
def call(what, fd, command, argument):
    code = libc.ioctl(fd, ctypes.c_ulong(command), argument)
    print(what, errno.errorcode[ctypes.get_errno()] if code else 0)
def get(what, fd):
    buffer = ctypes.create_string_buffer(b"\\xff" * 256, 256)
    call(what, fd, GET, buffer)
    print(buffer.raw[:20].hex(), set(buffer.raw[20:]))
def set_(what, fd, name):
    call(what, fd, SET, ctypes.create_string_buffer(name, len(name)))
root = os.open("mnt", os.O_RDONLY)
get("root", root)
call("null", root, GET, None); call("null", root, SET, None)
for name in (b"a" * 16 + b"\\0", b"a" * 17, b"ab\\0" + b"c" * 14, b"\\0" * 17):
    set_(name, root, name); get(name, root)
file = os.open("mnt/file", os.O_WRONLY | os.O_CREAT)
set_("file", file, b"by file".ljust(17, b"\\0"))
get("file", file)
os.mkfifo("mnt/fifo"); fifo = os.open("mnt/fifo", os.O_RDWR); get("fifo", fifo)
get("path", os.open("mnt", os.O_PATH)); get("none", 99)
os.close(fifo); os.close(file)
libc.mount(None, b"mnt", None, 0x1021, None)  # MS_REMOUNT | MS_BIND | MS_RDONLY
for name in (b"new".ljust(17, b"\\0"), b"n" * 17): set_("read-only", root, name)
call("read-only", root, SET, None); get("read-only", root)
os.close(root)
"""


def test_the_ioctls_are_the_kernels(in_both: Compare) -> None:
    native, ours = in_both(f"""
        truncate -s 16M disk.img; mkfs.ext4 -q -F -L before disk.img; mkdir mnt
        mount -o loop disk.img mnt; cat >program.py <<'END'
{PROGRAM}
END
        python3 program.py; setpriv --bounding-set -all --inh-caps -all python3 -c '
import fcntl, os
fd = os.open("mnt", os.O_RDONLY)
print(fcntl.ioctl(fd, 0x81009431, bytes(256))[:8])
try: fcntl.ioctl(fd, 0x41009432, bytes(256))
except OSError as problem: print(problem.strerror)'
        umount mnt; e2label disk.img; e2fsck -fn disk.img >log 2>&1
    """)
    assert ours == native


@pytest.mark.parametrize("size", ["-b 1024 disk.img 64M", "-b 4096 disk.img 64M", "disk.img 1G"])
def test_e2label(inside: Lines, workdir: Path, run_as_user: Run, size: str) -> None:
    """The engine writes its superblock again; with more block groups there are copies of it."""
    lines = inside(f"""
        mkfs.ext4 -q -F {size} >log; dev=$(losetup -f --show disk.img)
        mkdir mnt; mount $dev mnt
        echo one >mnt/one; sync mnt/one; e2label $dev first; e2label $dev; e2label disk.img
        echo two >mnt/two; sync mnt/two; e2label disk.img
        tune2fs -L second $dev >log; echo three >mnt/three; umount mnt; losetup -d $dev
        e2label disk.img; e2fsck -fn disk.img >log 2>&1
    """)
    assert lines == ["first", "first", "first", "second"]
    assert run_as_user(["debugfs", "-R", "cat three", workdir / "disk.img"]).stdout == "three\n"


def test_other_writes_are_refused(inside: Lines) -> None:
    """With status 0 they were lost, or destroyed the image."""
    lines = inside("""
        mkfs.ext4 -q -F disk.img 64M >log; dev=$(losetup -f --show disk.img)
        mkdir mnt; mount $dev mnt
        for option in '-O ^has_journal' '-U random' '-c 7' '-e panic'; do
            yes | tune2fs $option $dev >log 2>&1 && echo "$option: done" || :
        done
        for seek in 2 1144 1160 2044 4096 65536; do
            echo garbage! | dd of=$dev bs=1 seek=$seek conv=notrunc status=none 2>/dev/null &&
                echo $seek || :
        done
        echo text >mnt/file; umount mnt; losetup -d $dev; e2fsck -fn disk.img >log 2>&1
        tune2fs -l disk.img | grep -c has_journal
    """)
    # What the engine takes over; the boot block; the label, and where it was mounted last.
    assert lines == ["-c 7: done", "-e panic: done", "2", "1144", "1160", "1"]
