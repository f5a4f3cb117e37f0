"""/dev is a devtmpfs of the sandbox's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.sandbox import Lines
from tests.support.skip import need

TMPFS_MAGIC = "1021994"
BUSYBOX = "/bin/busybox"


@pytest.mark.usefixtures("image")
def test_devices_stand_in_it_as_nodes(inside: Lines) -> None:
    lines = inside(
        """
        printf 'label: dos\nsize=4M\nsize=4M\n' | sfdisk -q disk.img
        d=$(losetup -Pf --show disk.img); n=${d#/dev/}
        stat -c '%n %F %a' $d ${d}p1 /dev/loopfs/${n}p2 | sed "s,$n,N,"
        stat -c %i $d /dev/loopfs/$n | uniq | wc -l
        readlink -f ${d}p2 | sed "s,$n,N,"; find /dev -maxdepth 1 -type b | wc -l
        python3 -c "import os,sys; os.open(sys.argv[1], os.O_RDWR | os.O_NOFOLLOW)" $d
        losetup -d $d; rm $d; ls /dev/loopfs; stat -f -c %t /dev /dev/loopfs
        """
    )
    assert lines == [
        "/dev/N block special file 600",
        "/dev/Np1 block special file 600",
        "/dev/loopfs/Np2 block special file 600",
        "1",
        "/dev/Np2",
        "3",
        "loop-control",
        TMPFS_MAGIC,
        TMPFS_MAGIC,
    ]


def test_root_makes_there_what_it_makes_on_devtmpfs(inside: Lines) -> None:
    lines = inside(
        """
        mkdir -p /dev/disk/by-id; ln -s ../../null /dev/disk/by-id/n; echo x >/dev/disk/by-id/n
        echo text >/dev/file; echo more >>/dev/file; mv /dev/file /dev/disk/f; cat /dev/disk/f
        chmod 604 /dev/disk/f; chown 1:2 /dev/disk/f; ln /dev/disk/f /dev/g
        stat -c '%F %a %u:%g %h %s' /dev/g; truncate -s 3 /dev/g; cat /dev/disk/f; echo
        mkfifo /dev/initctl; echo through >/dev/initctl & cat /dev/initctl; wait
        python3 -c "
import socket
one, other = (socket.socket(socket.AF_UNIX) for _ in range(2))
one.bind('/dev/log'); one.listen(); other.connect('/dev/log')"
        stat -c %F /dev/log; rm /dev/log /dev/initctl /dev/g; rm -r /dev/disk; ls /dev/g || true
        """.replace("ls /dev/g || true", "test ! -e /dev/g")
    )
    assert lines == [
        "text",
        "more",
        "regular file 604 1:2 2 10",
        "tex",
        "through",
        "socket",
    ]


def test_what_is_kept_there_is_bounded(inside: Lines) -> None:
    lines = inside(
        """
        try dd if=/dev/zero of=/dev/big bs=64k count=32 2>&1 | grep -o 'No space.*'
        stat -c %s /dev/big; rm /dev/big
        python3 -c "
import errno, itertools, os
try:
    for n in itertools.count():
        os.mkdir(f'/dev/{n}')
except OSError as problem:
    print(errno.errorcode[problem.errno], 1000 < n < 40000)
for each in range(n):
    os.rmdir(f'/dev/{each}')
os.mkdir('/dev/again')"
        """
    )
    assert lines == ["No space left on device", str(1 << 20), "ENOSPC True"]


def test_a_bind_mount_that_is_not_recursive_has_nodes_that_open(inside: Lines) -> None:
    need(Path(BUSYBOX).exists(), "busybox-static is not installed")
    lines = inside(
        f"""
        mkdir -p root/dev; cp {BUSYBOX} root/busybox; mount --bind /dev root/dev
        cat >root/script <<'END'
        set -e
        busybox=/busybox; echo x >/dev/null; echo y >>/dev/null; $busybox wc -c </dev/null
        $busybox head -c 5000 /dev/zero | $busybox wc -c
        $busybox head -c 10 /dev/urandom | $busybox wc -c
        $busybox head -c 10 /dev/random | $busybox wc -c
        echo x >/dev/full || echo status $?
        $busybox stat -L -c '%F %t:%T' /dev/null /dev/loop-control
        test -c /dev/null; test -c /dev/tty
END
        chroot root /busybox sh /script 2>/dev/null; umount root/dev; stat -c %F /dev/null
        """
    )
    assert lines == [
        "0",
        "5000",
        "10",
        "10",
        "status 1",
        "character special file 1:3",
        "character special file a:ed",
        "character special file",
    ]


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("options", ["remount,bind,ro", "remount,ro"])
def test_a_read_only_one_loses_nothing(inside: Lines, options: str) -> None:
    lines = inside(
        f"mount -o {options} /dev"
        """
        findmnt -no VFS-OPTIONS /dev | tail -1 | cut -c 1-2
        mkdir mnt; d=$(losetup -f --show disk.img)
        stat -c %F $d; mount $d mnt; echo x >mnt/file; umount mnt; e2label $d new; blkid -s LABEL $d
        echo x >/dev/null; losetup -d $d; try touch /dev/x; ls /dev/loopfs | wc -l
        mount -o remount,rw /dev; touch /dev/x
        """.replace("blkid -s LABEL $d", "blkid -o value -s LABEL $d")
    )
    assert lines == [
        "ro",
        "block special file",
        "new",
        "touch: cannot touch '/dev/x': Read-only file system",
        "status 1",
        "2",
    ]


def test_a_user_namespace_opens_the_hosts_nodes(inside: Lines) -> None:
    lines = inside(
        "unshare -Urm unshare -Urm sh -ec '"
        "echo x >/dev/null; head -c 3 /dev/zero | wc -c; stat -c %F /dev/tty /dev/loop-control'"
    )
    assert lines == ["3", "character special file", "character special file"]


def test_a_file_that_has_the_name_before_the_device_stays(inside: Lines) -> None:
    lines = inside(
        """
        n=$(losetup -f); n=${n#/dev/loop}; n=$((n + 1)); echo mine >/dev/loop$n
        python3 -c "
import fcntl, sys
fcntl.ioctl(open('/dev/loop-control', 'r+b', 0), 0x4C80, int(sys.argv[1]))" $n
        cat /dev/loop$n; stat -c %F /dev/loopfs/loop$n; rm /dev/loop$n; stat -c %F /dev/loop$n
        """
    )
    assert lines == ["mine", "block special file", "block special file"]


def test_what_is_ours_is_not_renamed_or_removed(inside: Lines) -> None:
    lines = inside(
        """
        try rmdir /dev/loopfs; try mv -T /dev/loopfs /dev/x; try mkdir /dev/loopfs/x
        try rm /dev/null; try mv /dev/loop-control /dev/x; ls -A /dev | grep loop
        """
    )
    codes = [re.sub(r".*: ", "", line) for line in lines]
    busy, refused = "Device or resource busy", "Operation not permitted"
    expected = [busy, busy, refused, busy, refused]
    assert codes[:10] == [word for each in expected for word in (each, "status 1")]
    assert codes[10:] == ["loop-control", "loopfs"]


def test_it_can_be_unmounted(inside: Lines) -> None:
    """Who does it harms himself only: what he has open goes on, and the sandbox ends as ever."""
    lines = inside(
        """
        mkdir mnt; truncate -s 8M disk.img; mkfs.ext4 -q disk.img; mount -o loop disk.img mnt
        exec 3</dev/loopfs/loop-control; umount -l /dev/null; umount -l /dev
        echo text >mnt/file; umount mnt; losetup -j disk.img
        stat -L -c %t:%T /proc/self/fd/3 >/dev/null
        """
    )
    assert lines == []


@pytest.mark.may_skip("grub is not among the packages that the tests install")
def test_grub_install_finds_the_partition_table(inside: Lines) -> None:
    """What it puts into core.img follows from the nodes that it finds."""
    need(Path("/usr/lib/grub/i386-pc").is_dir(), "grub-pc-bin is not installed")
    lines = inside(
        """
        mkdir m; truncate -s 32M disk.img; printf 'label: dos\nstart=2048\n' | sfdisk -q disk.img
        d=$(losetup -Pf --show disk.img); mkfs.ext4 -q ${d}p1; mount ${d}p1 m; mkdir m/boot
        grub-install -v --target=i386-pc --boot-directory=m/boot $d >log 2>&1
        sed -n "s/.*grub-mkimage.*'auto' *//p" log; umount m; losetup -d $d
        """
    )
    assert set(lines[0].split()) == {"'ext2'", "'part_msdos'", "'biosdisk'"}
