"""The distribution's unmodified tools on devices of a sandbox."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need
from tests.support.user import Run

pytestmark = pytest.mark.e2e


# --- losetup -----------------------------------------------------------------


def test_losetup_lists_devices_of_this_sandbox_only(
    inside: Lines, workdir: Path, first_number: int
) -> None:
    lines = inside("""
        truncate -s 1M one.img two.img; d=$(losetup -f --show one.img)
        e=$(losetup -r -f --show -o 4096 --sizelimit 8192 two.img); losetup -a | cut -d: -f1,3
        losetup -l -n --raw -O NAME,BACK-FILE,OFFSET,SIZELIMIT,RO,AUTOCLEAR; losetup | wc -l
        losetup -n -O NAME -j two.img -l; losetup $e | cut -d: -f1
        losetup -l --json | grep -c '"name"'
        losetup -D; losetup -a; losetup -f
    """)
    here = str(workdir)
    d, e = (f"/dev/loop{first_number + step}" for step in (0, 1))
    assert sorted(lines[2:4]) == sorted(
        (f"{d} {here}/one.img 0 0 0 0", f"{e} {here}/two.img 4096 8192 1 0")
    )
    assert lines[4:7] == ["3", e, e]
    assert lines[7:] == ["2", d]


def test_losetup_on_a_named_device(inside: Lines) -> None:
    """losetup makes the node that it is asked for, as LOOP_CTL_ADD allows it."""
    lines = inside("""
        truncate -s 1M disk.img; losetup /dev/loop77 disk.img; ls -L /dev/loop77
        losetup -n -l -O NAME; losetup -d /dev/loop77; losetup -a
    """)
    assert lines == ["/dev/loop77"] * 2


def test_many_devices(inside: Lines) -> None:
    lines = inside("""
        for n in $(seq 40); do truncate -s ${n}K $n.img; losetup -f $n.img; done
        losetup -a | wc -l; ls /dev/loopfs | wc -l; losetup -D; losetup -a
    """)
    assert lines == ["40", "41"]


def test_attaching_from_many_processes_at_once(inside: Lines) -> None:
    """losetup -f races with itself: each tries until it has a device of its own."""
    lines = inside("""
        for n in 1 2 3 4 5 6 7 8; do
            truncate -s ${n}M $n.img; losetup -f --show $n.img >$n.out 2>&1 &
        done; wait; cat ?.out | sort -u | wc -l
        for n in 1 2 3 4 5 6 7 8; do blockdev --getsize64 $(cat $n.out); done
    """)
    assert lines == ["8", *(str(n << 20) for n in range(1, 9))]


# --- what looks at devices -----------------------------------------------------


def test_blkid(inside: Lines) -> None:
    lines = inside("""
        truncate -s 4M disk.img; d=$(losetup -f --show disk.img); blkid -p $d || echo nothing
        mkfs.ext4 -q -L name -U 01234567-89ab-cdef-0123-456789abcdef $d
        blkid -p -o value -s TYPE -s LABEL -s UUID $d; blkid -o value -s LABEL $d
        wipefs -n -O TYPE --noheadings $d; lsblk -b -n -d -o NAME,SIZE,TYPE,RO $d 2>/dev/null || :
        losetup -d $d
    """)
    assert lines[0] == "nothing"
    assert set(lines[1:4]) == {"ext4", "name", "01234567-89ab-cdef-0123-456789abcdef"}
    assert lines[4:6] == ["name", "ext4"]


@pytest.mark.may_skip("not all of them are among the packages that the tests install")
@pytest.mark.parametrize(
    ("tool", "size"),
    [
        ("mkfs.ext2 -q", 4),
        ("mkfs.ext3 -q", 4),
        ("mkswap", 4),
        ("mkfs.minix", 4),
        ("mkfs.vfat", 4),
        ("mkfs.xfs -q", 320),
        ("mkfs.btrfs -q", 128),
        ("sfdisk -q --label gpt", 4),
    ],
)
def test_what_writes_to_a_device_writes_to_the_image(inside: Lines, tool: str, size: int) -> None:
    need(
        shutil.which(tool.split(maxsplit=1)[0]) and size,
        f"{tool.split(maxsplit=1)[0]} is not installed",
    )
    lines = inside(f"""
        truncate -s {size}M disk.img; d=$(losetup -f --show disk.img)
        echo ,1M | {tool} $d >log 2>&1 || cat log; blkid -p -o export $d | grep TYPE >on.device
        cmp $d disk.img; losetup -d $d; blkid -p -o export disk.img | grep TYPE | cmp - on.device
    """)
    assert lines == []


# --- data ----------------------------------------------------------------------


def test_dd(inside: Lines, workdir: Path) -> None:
    """What a write has returned for is in the image, seen by others at once."""
    inside("""
        truncate -s 4M disk.img; seq 1000000 | head -c 3M >data; d=$(losetup -f --show disk.img)
        dd if=data of=$d bs=64K conv=fsync status=none; cmp -n 3145728 data disk.img
        dd if=data of=$d bs=1M oflag=direct status=none
        dd if=$d bs=1M iflag=direct status=none | cmp - disk.img
        dd if=data of=$d bs=777 seek=3 oflag=dsync count=5 conv=notrunc status=none; cmp $d disk.img
        exec 3<>$d; echo buffered >&3; head -c 8 disk.img | grep -qx buffered; exec 3>&-
        losetup -d $d
    """)
    assert (workdir / "disk.img").stat().st_size == 4 << 20


def test_mmap(inside: Lines) -> None:
    lines = inside("""
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img)
        python3 -c 'import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
with mmap.mmap(fd, 1 << 20) as area:
    area[8192:8197] = b"hello"
    area.flush()
    os.pwrite(fd, b"world", 40960)
    print(area[40960:40965].decode())' $d
        head -c 8197 disk.img | tail -c 5; losetup -d $d
    """)
    assert lines == ["world", "hello"]


# --- filesystem tools ----------------------------------------------------------


def test_e2fsck_and_resize2fs(inside: Lines, workdir: Path, run_as_user: Run) -> None:
    lines = inside("""
        truncate -s 8M disk.img; mkfs.ext4 -q -F disk.img; truncate -s 16M disk.img; mkdir mnt
        d=$(losetup -f --show disk.img); mount $d mnt; seq 10000 >mnt/file; umount mnt
        e2fsck -f -p $d >log; resize2fs $d >log 2>&1; tune2fs -L renamed $d >log
        debugfs -w -R 'sif file links_count 5' $d 2>/dev/null
        e2fsck -f -y $d >log 2>&1 || echo mended $?
        mount $d mnt; tail -n 1 mnt/file; stat -f -c '%b' mnt; umount mnt; losetup -d $d
        e2label disk.img
    """)
    assert lines[0] == "mended 1"
    assert lines[1] == "10000"
    assert int(lines[2]) > 12 << 10
    assert lines[3] == "renamed"
    check = run_as_user(["e2fsck", "-f", "-n", "disk.img"], cwd=workdir)
    assert check.returncode == 0, check.stdout


def test_debugfs_and_dumpe2fs(inside: Lines) -> None:
    lines = inside("""
        truncate -s 8M disk.img; d=$(losetup -f --show disk.img); mkfs.ext4 -q $d
        echo text >file
        debugfs -w -R 'write file file' $d >log 2>&1; dumpe2fs -h $d 2>log | grep -c UUID
        mkdir mnt; mount -r $d mnt; cat mnt/file; umount mnt; losetup -d $d
    """)
    assert lines == ["1", "text"]


# --- busybox -------------------------------------------------------------------


def test_busybox(inside: Lines, image: Path) -> None:
    """Statically linked: nothing but system calls can be met."""
    need(shutil.which("busybox"), "busybox is not installed")
    lines = inside("""
        mkdir mnt; d=$(busybox losetup -f); busybox losetup $d disk.img
        busybox losetup $d | cut -d' ' -f3; busybox mount -t ext4 $d mnt; echo text >mnt/file
        busybox umount mnt; busybox losetup -d $d
        busybox mount -t ext4 -o loop disk.img mnt; cat mnt/file
        busybox grep -c " $PWD/mnt fuse.ext4 " /proc/mounts; busybox umount mnt; losetup -a
        busybox mount -o loop,ro disk.img mnt; busybox cat mnt/file; busybox umount -d mnt
        losetup -a
    """)
    assert lines == ["disk.img", "text", "1", "text"]


def test_an_image_in_an_image(inside: Lines) -> None:
    """The backing file of the second device is served by the engine of the first."""
    lines = inside("""
        mkfs.ext4 -q -F outer.img 32M >log; mkdir one two; mount -o loop outer.img one
        truncate -s 8M one/inner.img; mkfs.ext4 -q -F one/inner.img
        mount -o loop one/inner.img two; seq 100000 >two/file; losetup -a | wc -l
        umount two; umount one
        mount -o loop,ro outer.img one; mount -o loop,ro one/inner.img two; tail -n 1 two/file
        umount two; umount one; losetup -a; e2fsck -fn outer.img >log 2>&1
    """)
    assert lines == ["2", "100000"]


def test_busybox_shell(loopfs_run: Run) -> None:
    need(shutil.which("busybox"), "busybox is not installed")
    result = loopfs_run(["busybox", "sh", "-c", "truncate -s 1M a; losetup -f a && losetup -a"])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(": 0 a\n")


def test_names_in_sys_vanish_with_the_device(inside: Lines) -> None:
    """Although the kernel has been allowed to remember them."""
    lines = inside("""
        truncate -s 4M disk.img; echo ,1M | sfdisk -q disk.img; d=$(losetup -P -f --show disk.img)
        n=${d##*/}; m=$(cat /sys/block/$n/dev); p=$(cat /sys/class/block/${n}p1/dev)
        list() { (cd /sys; ls -d block/$n class/block/${n}* devices/virtual/block/$n dev/block/$m \\
            dev/block/$p 2>/dev/null | wc -l); }
        cat /sys/block/$n/${n}p1/size
        list; sfdisk -q --delete $d; list; losetup -d $d; list; rm /dev/loopfs/$n; list
        losetup -f; list
    """)
    size, *counts, free, again = lines
    assert (size, counts) == ("2048", ["6", "4", "4", "0"])
    assert (free.startswith("/dev/loop"), again) == (True, "4")
