"""Partitions with the distribution's tools: added, removed, mounted, keeping a disk busy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.e2e.jobs import MAKERS, SECTORS
from tests.support.skip import need
from tests.support.user import User

pytestmark = pytest.mark.e2e

DOS = r"label: dos\n,1M\n,4M,5\n,2M\n,1M\n,1M\n"
GPT = r"label: gpt\nsize=2M,name=first\nsize=3M,name=second\n"


def without_numbers(lines: list[str]) -> list[str]:
    """The number of the first device depends on what the host has."""
    return [re.sub(r"loop\d+", "loopN", line) for line in lines]


@pytest.fixture(autouse=True)
def _tools() -> None:
    need(shutil.which("sfdisk") is not None, "sfdisk is not installed")


def test_losetup_finds_partitions(inside: Lines) -> None:
    lines = without_numbers(
        inside(rf"""
        truncate -s 16M disk.img; printf '{DOS}' | sfdisk -q disk.img
        sfdisk -d disk.img | sed -n 's/.*img\([0-9]*\) : .* size= *\([0-9]*\),.*/\1 \2/p'
        d=$(losetup -f --show -P disk.img)
        for p in ${{d}}p*; do echo "${{p#${{d}}p}} $(blockdev --getsz $p)"; done
        stat -L -c '%F %t' ${{d}}p1; ls /dev/loopfs; losetup -d $d; ls ${{d}}*
    """)
    )
    table, found, rest = lines[:5], lines[5:10], lines[10:]
    table[1] = "2 2"  # of an extended partition there is room for a boot loader
    assert found == table
    assert rest[0] == "block special file 103"
    nodes = [f"loopNp{number}" for number in (1, 2, 3, 4, 5)]
    assert rest[1:] == ["loop-control", "loopN", *nodes, "/dev/loopN"]


@pytest.mark.parametrize("block_size", [512, 4096])
def test_gpt_with_blocks_of_both_sizes(inside: Lines, block_size: int) -> None:
    lines = without_numbers(
        inside(rf"""
        truncate -s 16M disk.img; d=$(losetup -f --show -P -b {block_size} disk.img)
        printf '{GPT}' | sfdisk -q --wipe always $d
        ls ${{d}}p*; blockdev --getsize64 ${{d}}p1 ${{d}}p2
        blockdev --getss ${{d}}p1; sfdisk --part-label $d 2
        losetup -d $d; d=$(losetup -f --show -P -b {block_size} disk.img); ls ${{d}}p*
        losetup -d $d
    """)
    )
    nodes = ["/dev/loopNp1", "/dev/loopNp2"]
    assert lines == [*nodes, str(2 << 20), str(3 << 20), str(block_size), "second", *nodes]


def test_partx_and_blockdev(inside: Lines) -> None:
    lines = without_numbers(
        inside(rf"""
        truncate -s 16M disk.img; printf '{GPT}' | sfdisk -q disk.img
        d=$(losetup -f --show disk.img); ls ${{d}}*
        partx -a $d; ls ${{d}}p*; partx -d --nr 1 $d; ls ${{d}}p*
        blockdev --rereadpt $d 2>&1 | sed 's/.*: //'
        partx -u $d; ls ${{d}}p*; lsblk -n --raw -o NAME,TYPE,SIZE $d; losetup -d $d
    """)
    )
    assert lines == [
        "/dev/loopN",
        "/dev/loopNp1",
        "/dev/loopNp2",
        "/dev/loopNp2",
        "Invalid argument",
        "/dev/loopNp1",
        "/dev/loopNp2",
        "loopN loop 16M",
        "loopNp1 part 2M",
        "loopNp2 part 3M",
    ]


def test_a_filesystem_on_a_partition(inside: Lines, workdir: Path) -> None:
    lines = without_numbers(
        inside(rf"""
        truncate -s 16M disk.img; printf '{GPT}' | sfdisk -q disk.img; mkdir mnt
        d=$(losetup -f --show -P disk.img); mkfs.ext4 -q ${{d}}p2; blkid -s TYPE -o value ${{d}}p2
        mount ${{d}}p2 mnt; echo hello > mnt/file; findmnt -n -o SOURCE,FSTYPE mnt
        losetup -d $d; losetup -n --raw -O AUTOCLEAR $d
        blockdev --rereadpt $d 2>&1 | sed 's/.*: //'
        umount mnt; losetup -a; ls ${{d}}*
        mount -o loop,ro,offset=$((3 * 1024 * 1024)) disk.img mnt; cat mnt/file; umount mnt
    """)
    )
    assert lines[:2] == ["ext4", "/dev/loopNp2 fuse.ext4"]
    assert lines[2:] == ["1", "Device or resource busy", "/dev/loopN", "hello"]


def test_parted_reads_and_writes_a_table(inside: Lines) -> None:
    need(shutil.which("parted", path="/usr/sbin:/sbin") is not None, "parted is not installed")
    lines = without_numbers(
        inside(r"""
        truncate -s 16M disk.img; d=$(losetup -f --show -P disk.img)
        parted -s $d mklabel msdos mkpart primary 1MiB 5MiB mkpart primary 5MiB 8MiB 2>&1 |
            grep -v udevadm || true
        partprobe $d 2>&1 | grep -v udevadm || true
        ls ${d}p*; parted -s -m $d unit s print | tail -n +3; losetup -d $d
    """)
    )
    assert lines == [
        "/dev/loopNp1",
        "/dev/loopNp2",
        "1:2048s:10239s:8192s:::;",
        "2:10240s:16383s:6144s:::;",
    ]


def test_a_table_is_read_anew_in_four_ways(inside: Lines) -> None:
    lines = without_numbers(
        inside(rf"""
        parts() {{ echo "$1: $(cd /dev; ls ${{d##*/}}p* 2>/dev/null | wc -l)"; }}
        truncate -s 16M disk.img; d=$(losetup -f --show -P disk.img)
        printf '{GPT}' | sfdisk -q $d; parts sfdisk
        blockdev --rereadpt $d; parts blockdev; partx -d $d; parts partx
        printf 'label: dos\n,1M\n,1M\n,1M\n' | sfdisk -q --no-reread --no-tell-kernel $d
        parts nobody
        partprobe $d 2>/dev/null; parts partprobe
        printf 'label: dos\n,1M\n' | sfdisk -q -w always $d; losetup -d $d; parts detached
        d=$(losetup -f --show -P disk.img); parts losetup; losetup -d $d; parts again
        d=$(losetup -f --show disk.img); parts 'without -P'; losetup -d $d
    """)
    )
    assert lines == [
        "sfdisk: 2",
        "blockdev: 2",
        "partx: 0",
        "nobody: 0",
        "partprobe: 3",
        "detached: 0",
        "losetup: 1",
        "again: 0",
        "without -P: 0",
    ]


@pytest.mark.usefixtures("kernel_loops")
def test_a_disk_made_without_root_is_the_kernels_to_mount(
    inside: Lines, root: User, workdir: Path
) -> None:
    """A boot partition and a root filesystem, which the kernel finds at their offsets."""
    made = inside(r"""
        truncate -s 64M disk.img; mkdir mnt; d=$(losetup -f --show -P disk.img)
        printf 'label: dos\n,16M,c,*\n,,83\n' | sfdisk -q $d
        mkfs.vfat -n BOOT ${d}p1 >/dev/null; seq 5000 >kernel
        mcopy -i ${d}p1 kernel ::/kernel 2>/dev/null  # it says that there is no geometry
        mkfs.ext4 -q -L rootfs ${d}p2; mount ${d}p2 mnt; mkdir -p mnt/etc/deep mnt/bin
        seq 100000 >mnt/etc/deep/numbers; ln -s deep/numbers mnt/etc/link; cp /bin/sh mnt/bin/sh
        chmod 4755 mnt/bin/sh; chown 12:34 mnt/etc/deep; setfattr -n user.note -v text mnt/etc \
            2>/dev/null || :
        (cd mnt; find . ! -name lost+found -printf '%p %m %U:%G %l\n' | sort
         cksum etc/deep/numbers bin/sh)
        umount mnt; losetup -d $d
    """)
    offset = (16 << 20) + (1 << 20)
    script = rf"""
        set -eu; e2fsck -fn 'disk.img?offset={offset}' >log 2>&1 || cat log
        dd if=disk.img of=boot bs=1M skip=1 count=16 status=none; fsck.vfat -n boot >log || cat log
        mcopy -i boot ::/kernel - | cmp - kernel
        mount -t ext4 -o loop,offset={offset} disk.img mnt
        (cd mnt; find . ! -name lost+found -printf '%p %m %U:%G %l\n' | sort
         cksum etc/deep/numbers bin/sh)
        echo more >>mnt/etc/deep/numbers; umount mnt
        e2fsck -fn 'disk.img?offset={offset}' >log 2>&1 || cat log
    """
    seen = root.run(["unshare", "--mount", "sh", "-c", script], cwd=workdir)
    assert (seen.returncode, seen.stderr) == (0, "")
    assert seen.stdout.splitlines() == made
    assert len(made) > 8
    again = inside(f"""
        mount -o loop,offset={offset} disk.img mnt; tail -n 1 mnt/etc/deep/numbers; umount mnt
    """)
    assert again == ["more"]


@pytest.mark.parametrize(
    ("maker", "sector"), [(maker, sector) for maker in MAKERS for sector in SECTORS[maker]]
)
def test_partitions_are_there_when_the_tool_has_ended(
    inside: Lines, maker: str, sector: int
) -> None:
    """Of a device that looks for them; no kernel of a container's host does that."""
    lines = without_numbers(
        inside(f"""
        truncate -s 32M disk.img; d=$(losetup -f --show -P -b {sector} disk.img)
        ({MAKERS[maker]}) >log 2>&1; for p in ${{d}}p*; do
            size=$(blockdev --getsize64 $p); echo $p: $((size / 1024)) KiB of $(blockdev --getss $p)
            test $size -gt 4096 || continue
            mkfs.ext4 -q $p 2>/dev/null; blkid -o value -s TYPE $p
        done; losetup -d $d; ls ${{d}}*
        d=$(losetup -f --show -P -b {sector} disk.img); (cd /dev; ls ${{d##*/}}p*); losetup -d $d
    """)
    )
    boot = max(1, sector // 1024)  # KiB of an extended partition
    sizes = {1: 2048, 2: 3072} if "GPT" in maker else {1: 1024, 2: boot, 5: 2048, 6: 1024}
    if maker.startswith("sfdisk, MBR"):
        sizes = {1: 1024, 2: boot, 3: 2048, 4: 1024, 5: 1024}
    shown = []
    for number, size in sizes.items():
        shown += [f"/dev/loopNp{number}: {size} KiB of {sector}"]
        shown += ["ext4"] if size > boot else []
    assert lines == [*shown, "/dev/loopN", *(f"loopNp{number}" for number in sizes)]


def test_lsblk_looks_at_the_filesystem(inside: Lines) -> None:
    """There is no udevd whose database it could read: it would show nothing."""
    seen, probed = inside("""
        truncate -s 16M disk.img; printf 'label: gpt\nsize=8M,name=one\n' | sfdisk -q disk.img
        d=$(losetup -f --show -P disk.img); mkfs.ext4 -q -L label ${d}p1
        lsblk -n -d --raw -o FSTYPE,LABEL,UUID,PARTLABEL,PARTUUID ${d}p1
        for tag in TYPE LABEL UUID PART_ENTRY_NAME PART_ENTRY_UUID; do
            blkid -p -s $tag -o value ${d}p1
        done | xargs
        udevadm info --query=name ${d}p1 >log; losetup -d $d
    """)
    assert seen == probed
