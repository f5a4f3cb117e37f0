"""rm, mv and others in /dev/loopfs (patch 2/8)."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Lines

pytestmark = pytest.mark.e2e


def test_rm_removes_a_device_that_nobody_uses(inside: Lines) -> None:
    lines = inside("""
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img); n=${d#/dev/}
        try rm /dev/loopfs/$n | sed "s,$n,N,"; losetup -d $d
        rm /dev/loopfs/$n; ls /dev/loopfs; ls $d 2>/dev/null || echo gone
        test $(losetup -f) = $d && echo again
    """)
    busy = "rm: cannot remove '/dev/loopfs/N': Device or resource busy"
    assert lines == [busy, "status 1", "loop-control", "gone", "again"]


def test_mv_renames_a_device(inside: Lines) -> None:
    lines = inside("""
        truncate -s 16M disk.img; d=$(losetup -f); n=${d#/dev/}
        mv /dev/loopfs/$n /dev/loopfs/disk; ls /dev/loopfs; ls $d 2>/dev/null || echo no link
        losetup /dev/loopfs/disk disk.img; mkfs.ext4 -q /dev/loopfs/disk
        stat -c %t /dev/loopfs/disk; mkdir mnt; mount /dev/loopfs/disk mnt; ls mnt; umount mnt
        mv /dev/loopfs/disk /dev/loopfs/$n; losetup -n -O BACK-FILE $d | sed 's,.*/,,'
    """)
    assert lines == ["disk", "loop-control", "no link", "7", "lost+found", "disk.img"]


def test_nothing_else_can_be_made_or_moved_there(inside: Lines) -> None:
    lines = inside("""
        here=$PWD; touch x; cd /dev/loopfs; losetup -f >/dev/null
        for c in 'touch new' 'mkdir new' 'ln -s a new' 'mknod new b 7 99' 'mv loop-control new' \\
            "mv -T $here/x new" 'rm loop-control'; do try $c | tail -n 1; done; ls | wc -l
    """)
    assert lines == [*["status 1"] * 7, "2"]
