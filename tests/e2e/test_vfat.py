"""vfat by the engine `vfat`: mount(8) and unmodified programs, as an ordinary user."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need
from tests.support.user import Run

pytestmark = pytest.mark.e2e

FORMATS = {"12": "4M", "16": "32M", "32": "66M"}


@pytest.fixture(autouse=True)
def _tools() -> None:
    need(shutil.which("mkfs.fat") and shutil.which("mcopy"), "dosfstools or mtools is missing")


def made(bits: str) -> str:
    size = FORMATS[bits]
    return f"truncate -s {size} disk.img; mkfs.fat -F {bits} disk.img >/dev/null; mkdir mnt\n"


@pytest.mark.parametrize("bits", FORMATS)
def test_a_tree_goes_in_and_comes_out(inside: Lines, bits: str) -> None:
    lines = inside(
        made(bits)
        + r"""
        mkdir -p 'tree/A long directory name' tree/b; head -c 100000 /dev/urandom >tree/b/data
        for n in $(seq 30); do echo $n >"tree/A long directory name/File number $n.txt"; done
        echo x >tree/naïve; echo y >tree/README
        mount -o loop,iocharset=utf8 disk.img mnt; findmnt -n -o FSTYPE mnt
        cp -r tree/. mnt; mv mnt/b mnt/c; mv mnt/c mnt/b; rm mnt/README; echo y >mnt/README
        umount mnt; losetup -a; fsck.fat -n disk.img >log || cat log
        mount -o loop,ro,iocharset=utf8 disk.img mnt; diff -r tree mnt; umount mnt
        mtype -i disk.img '::/A long directory name/File number 7.txt'
        """
    )
    assert lines == ["fuse.vfat", "7"]


def test_remount(inside: Lines) -> None:
    """The engine, too, writes nothing, or begins to."""
    lines = inside(
        made("32")
        + """
        d=$(losetup -f --show disk.img); mount -o ro $d mnt; try touch mnt/one; ls mnt
        echo zero >zero; mcopy -i $d zero :: 2>log; mount -o remount,rw mnt; cat mnt/zero
        echo one >mnt/one; mount -o remount,ro mnt; try touch mnt/two
        fsck.fat -n disk.img >log || cat log
        mount -o remount,rw mnt; echo two >mnt/two; umount mnt; losetup -d $d
        fsck.fat -n disk.img >log || cat log; for n in zero one two; do mtype -i disk.img ::$n; done
        """
    )
    refusals = [f"touch: cannot touch 'mnt/{n}': Read-only file system" for n in ("one", "two")]
    assert lines == [refusals[0], "status 1", "zero", refusals[1], "status 1", "zero", "one", "two"]


def test_the_mounting_user_owns_the_files(inside: Lines) -> None:
    """fsuid, fsgid and umask of mount(2)'s caller are the defaults; options go before them."""
    lines = inside(
        made("16")
        + """
        see() { stat -c '%u:%g %a' mnt mnt/f; umount mnt; }
        mount -o loop disk.img mnt; touch mnt/f; see
        (umask 077; mount -o loop disk.img mnt); see
        mount -o loop,uid=7,gid=8,fmask=0137,dmask=0027 disk.img mnt; see
        """
    )
    assert lines == ["0:0 755", "0:0 755", "0:0 700", "0:0 700", "7:8 750", "7:8 640"]


def test_options_are_refused_as_by_the_driver(inside: Lines) -> None:
    lines = inside(
        made("16")
        + """
        d=$(losetup -f --show disk.img)
        for o in nosuch uid=x umask=9 codepage=1 shortname=odd; do
            mount -t vfat -o $o $d mnt 2>/dev/null && echo $o && umount mnt || :
        done
        for o in flush quiet showexec utf8 tz=UTC check=s nfs errors=continue codepage=850; do
            mount -t vfat -o $o $d mnt && umount mnt
        done
        mkfs.ext4 -q -F $d; mount -t vfat $d mnt 2>/dev/null || echo refused; losetup -d $d
        """
    )
    assert lines == ["refused"]


def test_msdos_has_short_names_only(inside: Lines) -> None:
    lines = inside(
        made("12")
        + """
        d=$(losetup -f --show disk.img)
        mount -t vfat $d mnt; touch "mnt/Long name.text"; umount mnt
        mount -t msdos -o shortname=win95 $d mnt 2>/dev/null || echo refused
        mount -t msdos -o dots $d mnt; findmnt -n -o FSTYPE mnt; stat -f -c '%T %l' mnt
        touch mnt/Configuration.text mnt/.hid; ls -A mnt; cat mnt/CONFIGUR.TEX; umount mnt
        losetup -d $d; mdir -a -b -i disk.img; fsck.fat -n disk.img >log || cat log
        """
    )
    assert lines[:3] == ["refused", "fuse.msdos", "msdos 72"]
    assert lines[3:6] == [".hid", "configur.tex", "longna~1.tex"]
    assert lines[6:] == ["::/Long name.text", "::/CONFIGUR.TEX", "::/HID"]


def test_what_is_synced_is_in_the_image(inside: Lines) -> None:
    """By fsync(2) of a file, of one open for reading, of a directory, by syncfs(2) and sync(2)."""
    lines = inside(
        made("16")
        + r"""
        mount -o loop disk.img mnt
        image() { cp disk.img copy; mtype -i copy "::/$1"; }
        dd if=/dev/zero bs=1 count=0 of=mnt/w conv=fsync status=none
        echo one >mnt/one; sync mnt/one; image one
        echo two >mnt/two; sync mnt; image two
        echo three >mnt/three; sync -f mnt; image three
        echo four >mnt/four; sync; image four
        python3 -c '
import mmap, os
fd = os.open("mnt/five", os.O_RDWR | os.O_CREAT)
os.write(fd, bytes(5))
pages = mmap.mmap(fd, 5)
pages[:] = b"five\n"
os.sync()'
        image five; umount mnt; fsck.fat -n disk.img >log || cat log
        """
    )
    assert lines == ["one", "two", "three", "four", "five"]


def test_a_full_disk_fails_with_enospc_and_is_not_damaged(inside: Lines) -> None:
    lines = inside(
        made("12")
        + """
        mount -o loop disk.img mnt
        dd if=/dev/zero of=mnt/big bs=64k 2>&1 | grep -o 'No space left'
        df --output=avail mnt | tail -1
        rm mnt/big; echo small >mnt/small; umount mnt; fsck.fat -n disk.img >log || cat log
        mtype -i disk.img ::/small
        """
    )
    assert [line.strip() for line in lines] == ["No space left", "0", "small"]


def test_an_esp_in_a_gpt_beside_a_root(inside: Lines) -> None:
    """What image builders do: two partitions, the one mounted in the other."""
    need(shutil.which("sfdisk") is not None, "sfdisk is not installed")
    lines = inside(
        r"""
        truncate -s 80M disk.img
        printf 'label: gpt\nsize=40M,type=uefi\ntype=linux\n' | sfdisk -q disk.img
        d=$(losetup -fP --show disk.img); mkfs.fat -F 32 -n ESP ${d}p1 >/dev/null 2>&1
        mkfs.ext4 -q ${d}p2; mkdir root; mount ${d}p2 root
        mkdir -p root/boot/efi; mount ${d}p1 root/boot/efi
        mkdir -p root/boot/efi/EFI/BOOT root/etc; echo loader >root/boot/efi/EFI/BOOT/BOOTX64.EFI
        echo 'LABEL=ESP /boot/efi vfat umask=077 0 1' >root/etc/fstab
        umount -R root; losetup -d $d
        dd if=disk.img of=esp bs=1M skip=1 count=40 status=none; fsck.fat -n esp >log || cat log
        mtype -i esp ::/EFI/BOOT/BOOTX64.EFI
        """
    )
    assert lines == ["loader"]


def test_the_reason_of_a_failing_engine_is_reported(loopfs_run: Run) -> None:
    """A root directory that begins at a cluster that there is not."""
    result = loopfs_run(
        made("32")
        + r"""
        printf '\360\377\377\017' | dd of=disk.img bs=1 seek=44 conv=notrunc status=none
        mount -t vfat -o loop disk.img mnt; echo $?; losetup -a; ls mnt
        """
    )
    sentence = "loopfs: cannot mount vfat: vfat: cluster 268435440 in a chain does not exist"
    assert sentence in result.stderr.splitlines()
    assert result.stdout == "32\n"
