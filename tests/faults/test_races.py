"""Concurrent calls."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Lines, Program

pytestmark = pytest.mark.e2e


def test_both_faces_of_a_node_at_once(program: Program) -> None:
    assert program("races", "faces") == []


def test_no_process_gets_a_device_of_another_one(program: Program) -> None:
    numbers = program("races", "free_devices")
    assert len(set(numbers)) == len(numbers) == 64


def test_descriptors_that_are_closed_meanwhile(program: Program) -> None:
    assert program("races", "closing") == []


def test_fifty_mounts_at_once(inside: Lines) -> None:
    """Each has its own image; afterwards all is written and every device is free."""
    lines = inside("""
        truncate -s 4M disk.img; mkfs.ext4 -q disk.img
        one() {
            cp disk.img $1.img; mkdir $1
            mount -o loop $1.img $1 && echo "in $1" >$1/file && umount $1
        }
        for n in $(seq 50); do one $n & done; wait
        grep -c "$PWD.* fuse.ext4" /proc/self/mountinfo || losetup -a
        for n in $(seq 50); do debugfs -R "cat file" $n.img 2>/dev/null; done
    """)
    assert lines == ["0", *(f"in {n}" for n in range(1, 51))]


def test_mounts_while_another_process_calls_stat(inside: Lines) -> None:
    """Each look can drop the name by which the device was opened for the engine."""
    lines = inside("""
        truncate -s 4M disk.img; mkfs.ext4 -q disk.img; mkdir mnt
        d=$(losetup -f --show disk.img)
        while :; do stat $d /dev/loopfs/*; done >/dev/null & looker=$!
        for n in $(seq 20); do mount $d mnt; findmnt -no SOURCE mnt; umount mnt; done | uniq
        kill $looker; echo $d
    """)
    source, device = lines
    assert source == device
