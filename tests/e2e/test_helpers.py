"""Programs that serve a device themselves, started by mount(8) or by hand."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need

pytestmark = [pytest.mark.e2e, pytest.mark.may_skip]


def test_ntfs_3g(inside: Lines) -> None:
    """After umount(2) all is in the image and the device is free; it is claimed before that."""
    need(shutil.which("ntfs-3g") and shutil.which("mkfs.ntfs"), "no ntfs-3g")
    lines = inside("""
        truncate -s 32M n.img; mkfs.ntfs -q -F -Q n.img >log 2>&1; mkdir m two
        mount -o loop -t ntfs-3g n.img m; echo one >m/one; d=$(losetup -nO NAME -j n.img)
        mount --bind m two; umount m; cat two/one; umount two; ntfscat n.img one; losetup -a
        d=$(losetup -f --show n.img); ntfs-3g $d m; echo two >m/two
        try wipefs -a $d 2>&1 | tail -n 1; umount m; losetup -d $d; ntfscat n.img two; losetup -a
    """)
    assert lines == ["one", "one", "status 1", "two"]


def test_exfat_fuse(inside: Lines) -> None:
    need(shutil.which("mount.exfat-fuse") and shutil.which("mkfs.exfat"), "no exfat-fuse")
    lines = inside("""
        truncate -s 32M x.img; mkfs.exfat x.img >log 2>&1; mkdir m; d=$(losetup -f --show x.img)
        mount.exfat-fuse $d m 2>log; echo text >m/file; umount m; losetup -d $d; losetup -a
        mount -o loop x.img m; cat m/file; umount m; losetup -a
    """)
    assert lines == ["text"]


def test_no_descriptor(inside: Lines) -> None:
    """EBADF; a source that is no device of ours is the kernel's to refuse."""
    lines = inside("""
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img); mkdir m
        python3 -c '
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for source, data in ((sys.argv[1], b"fd=99,rootmode=40000"), ("/dev/null", b"")):
    libc.mount(source.encode(), b"m", b"fuseblk", 0, data)
    print(os.strerror(ctypes.get_errno()))' $d
        losetup -d $d
    """)
    assert lines == ["Bad file descriptor", "Block device required"]
