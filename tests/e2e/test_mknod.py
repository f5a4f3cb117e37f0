"""mknod(1): a loop device in /dev, any device in an image; elsewhere the kernel's result."""

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


MADE = """
    truncate -s 16M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
    mkdir mnt/dev; mkdir -m 777 mnt/open; cd mnt/dev; umask 027
    mknod null c 1 3; mknod -m 666 zero c 1 5; mknod full c 1 7; mknod tty c 5 0; mknod sda b 8 1
    mknod ../dev/big c 500 70000; try mknod null c 1 3; try mknod no/null c 1 3
    stat -c '%n %F %a %t:%T %u:%g %h' *
    echo text >null; wc -c <null; head -c 3 zero | od -An -tx1; cmp -n 500000 zero /dev/zero
    try sh -c 'echo text >full'; try cat sda; try cat tty
    chown 7:8 null; stat -Lc '%F %u:%g %a %t:%T' - <null; ln null hard; mv hard moved
    chmod 611 moved; stat -c '%F %a %h' null; stat -c '%F %a %h' - <moved
    try setpriv --reuid 1 --clear-groups mknod ../open/null c 1 3
    setpriv --reuid 7 --clear-groups sh -c 'echo >null; echo >full' 2>&1 || :
    mount --bind /dev/zero null; stat -c %t:%T null; stat -c %t:%T null; head -c 1 null | wc -c
    umount null; stat -c %F null; rm moved
"""
KEPT = """
    cd ..; tar -C dev -c . | tar -C open -x; cp -a dev again
    for d in dev open again; do (cd $d; stat -c '%n %F %a %u:%g %h %t:%T' *); done | sort |
        uniq -c | awk '$1 != 3'
    cd ..; umount mnt; e2fsck -fn disk.img >log 2>&1 || cat log
    for name in null sda big; do
        debugfs -R "stat /dev/$name" disk.img 2>/dev/null | grep -Eo 'Type: .*Mode|Device.*:.*'
    done
    mount -o loop disk.img mnt; stat -c '%F %a %t:%T' mnt/again/null; umount mnt
"""
SEEN = """
    mknod: null: File exists
    status 1
    mknod: no/null: No such file or directory
    status 1
    big character special file 640 1f4:11170 0:0 1
    full character special file 640 1:7 0:0 1
    null character special file 640 1:3 0:0 1
    sda block special file 640 8:1 0:0 1
    tty character special file 640 5:0 0:0 1
    zero character special file 666 1:5 0:0 1
    0
    00 00 00
    sh: 1: echo: echo: I/O error
    status 1
    cat: sda: Permission denied
    status 1
    cat: tty: No such device or address
    status 1
    character special file 7:8 640 1:3
    character special file 611 2
    character special file 611 2
    mknod: ../open/null: Operation not permitted
    status 1
    sh: 1: cannot create full: Permission denied
    1:5
    1:5
    1
    character special file
    Type: character special    Mode
    Device major/minor number: 01:03 (hex 01:03)
    Type: block special    Mode
    Device major/minor number: 08:01 (hex 08:01)
    Type: character special    Mode
    Device major/minor number: 500:70000 (hex 1f4:11170)
    character special file 611 1:3
"""


def test_in_an_image(inside: Lines) -> None:
    """The node is in the image, for tar and cp too; those of the memory devices open."""
    lines = inside(MADE + KEPT)
    assert [line.strip() for line in lines] == [line.strip() for line in SEEN.strip().splitlines()]
