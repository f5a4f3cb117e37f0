"""mknod(1): a loop device in /dev; the kernel's answer everywhere else."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Lines

pytestmark = pytest.mark.e2e


def test_in_dev(inside: Lines) -> None:
    """It makes the device, by any path to /dev; one that is there is EEXIST; no others are made."""
    lines = inside("""
        truncate -s 1M disk.img; mknod /dev/loop533 b 7 533; losetup /dev/loop533 disk.img
        losetup -nO NAME -j disk.img; losetup -d /dev/loop533
        cd /dev; mknod ./loop534 b 7 534; test -b /dev/loop534
        try mknod /dev/loop533 b 7 533; try mknod /dev/loop535 b 7 536; try mknod disk b 7 537
        try mknod /dev/sda7 b 8 7; try mknod /dev/null c 1 3; ls | grep 53[5-9] || echo none
    """)
    refused = "mknod: {}: Operation not permitted"
    there = "mknod: {}: File exists"
    words = [
        "/dev/loop533",
        there.format("/dev/loop533"),
        refused.format("/dev/loop535"),
        refused.format("disk"),
        refused.format("/dev/sda7"),
        there.format("/dev/null"),
    ]
    wanted = [words[0]]
    for word in words[1:]:
        wanted += [word, "status 1"]
    assert lines == [*wanted, "none"]


def test_elsewhere(inside: Lines) -> None:
    """Where the kernel says EPERM it does; fifos and sockets are not asked about."""
    lines = inside("""
        mkdir dev; try mknod dev/loop538 b 7 538; mkfifo fifo; mknod pipe p; ls
    """)
    assert lines == [
        "mknod: dev/loop538: Operation not permitted",
        "status 1",
        "dev",
        "fifo",
        "pipe",
    ]


def test_without_the_right(inside: Lines) -> None:
    """Another user of the sandbox may not write to /dev."""
    lines = inside("try setpriv --reuid 1 --clear-groups mknod /dev/loop539 b 7 539")
    assert lines == ["mknod: /dev/loop539: Permission denied", "status 1"]
