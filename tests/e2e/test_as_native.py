"""Scripts give the same output in a sandbox and as root on the kernel's loop devices.

Messages and exit statuses are those of the unmodified tools, so they show what the tools were
told. Nothing here may act on devices that the script has not attached itself.
"""

from __future__ import annotations

from difflib import ndiff

import pytest

from tests.e2e.conftest import Compare
from tests.e2e.jobs import JOBS, TABLES

pytestmark = pytest.mark.e2e

LOSETUP = {
    "attach and detach": """
        truncate -s 1M disk.img
        d=$(losetup -f --show disk.img); blockdev --getsize64 --getro --getss --getbsz $d
        stat -L -c '%F %t %a' $d; try losetup -d $d; try losetup -d $d; blockdev --getsize64 $d
    """,
    "part of a file": """
        seq 100000 >disk.img; d=$(losetup -f --show -o 4096 --sizelimit 8192 disk.img)
        blockdev --getsize64 $d; cksum <$d; losetup -d $d
        d=$(losetup -f --show -o 512 disk.img); blockdev --getsize64 $d; cksum <$d; losetup -d $d
    """,
    "size that is not in sectors": """
        head -c 1000 /dev/zero >disk.img; d=$(losetup -f --show disk.img 2>said); cat said
        blockdev --getsize64 $d; losetup -d $d
    """,
    "less than a sector": """
        echo text >disk.img; try losetup -f disk.img; losetup -j disk.img | cut -d: -f1 >names
        blockdev --getsize64 $(cat names); losetup -d $(cat names)
    """,
    "read-only": """
        truncate -s 1M disk.img; d=$(losetup -r -f --show disk.img); blockdev --getro $d
        try dd if=/dev/zero of=$d count=1 status=none; cksum <$d; losetup -d $d
    """,
    "a file that may not be written": """
        truncate -s 1M disk.img; chattr +i disk.img 2>/dev/null || :
        exec 3<disk.img; d=$(losetup -r -f --show /proc/self/fd/3); blockdev --getro $d
        losetup -d $d; chattr -i disk.img 2>/dev/null || :
    """,
    "no such file, and others": """
        mkdir directory; mkfifo fifo; truncate -s 1M disk.img
        try losetup -f missing; try losetup -f directory; try losetup -f fifo
        try losetup -f /dev/null; try losetup --show -f -o x disk.img
        try losetup -f -o 9223372036854775808 disk.img
    """,
    "a device that is bound already": """
        truncate -s 1M disk.img other.img; d=$(losetup -f --show disk.img)
        try losetup $d other.img; blockdev --getsize64 $d; losetup -d $d
    """,
    "detached while open": """
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img); exec 3<$d; losetup -d $d
        head -c 4 <&3 | od -An -tx1; exec 3<&-; try blockdev --getsize64 $d
    """,
    "status of one": """
        truncate -s 1M disk.img; d=$(losetup -f --show -o 512 disk.img)
        try losetup $d | sed 's/\\[[0-9]*\\]:[0-9]*/[DEV]:INO/'
        losetup -j disk.img | sed 's/\\[[0-9]*\\]:[0-9]*/[DEV]:INO/'
        losetup -l -n --raw -O NAME,SIZELIMIT,OFFSET,AUTOCLEAR,RO,BACK-FILE,DIO,LOG-SEC $d
        losetup -d $d; try losetup $d; losetup -j disk.img
    """,
    "no overlap": """
        truncate -s 1M disk.img; d=$(losetup -f --show --nooverlap disk.img)
        e=$(losetup -f --show --nooverlap disk.img); test $d = $e && echo same
        try losetup -f --nooverlap -o 4096 disk.img; losetup -d $d
    """,
}

DATA = {
    "edges of a device": """
        truncate -s 8K disk.img; d=$(losetup -f --show disk.img)
        try dd if=/dev/zero of=$d bs=4k count=3 conv=notrunc status=none
        try dd if=$d bs=4k skip=1 status=none | wc -c; try dd if=$d bs=1k skip=8 count=1 status=none
        try dd if=/dev/zero of=$d bs=512 seek=16 count=1 status=none; losetup -d $d
    """,
    "direct": """
        seq 10000 | head -c 40960 >disk.img; d=$(losetup -f --show disk.img)
        dd if=$d iflag=direct bs=4k status=none | cksum
        seq 5 5000 | head -c 8192 >new; dd if=new of=$d oflag=direct bs=4k seek=2 status=none
        cksum <disk.img
        losetup -d $d
    """,
    "direct and not aligned": """
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img)
        try dd if=$d iflag=direct bs=511 count=1 status=none of=/dev/null; losetup -d $d
    """,
    "holes": """
        seq 20000 | head -c 65536 >disk.img; d=$(losetup -f --show disk.img)
        fallocate -p -o 4096 -l 8192 $d; fallocate -z -o 16384 -l 4096 $d; cksum <$d
        try fallocate -l 4096 $d; try blkdiscard -o 32768 -l 4096 $d
        try blkdiscard -z -o 0 -l 512 $d
        cksum <$d; losetup -d $d; cksum <disk.img
    """,
    "truncated by the file's name only": """
        seq 10000 | head -c 32768 >disk.img; d=$(losetup -f --show disk.img)
        : >$d; try truncate -s 0 $d; blockdev --getsize64 $d; cksum <$d; losetup -d $d
    """,
    "backing file gets shorter": """
        seq 100000 | head -c 65536 >disk.img; d=$(losetup -f --show disk.img)
        truncate -s 16K disk.img
        try dd if=$d bs=4k count=4 status=none | cksum
        try dd if=$d bs=4k skip=8 count=1 of=/dev/null status=none
        dd if=/dev/zero of=$d bs=4k seek=6 count=1 conv=fsync status=none; losetup -d $d
        stat -c %s disk.img
    """,
    "backing file is deleted": """
        seq 10000 | head -c 32768 >disk.img; cksum <disk.img; d=$(losetup -f --show disk.img)
        rm disk.img; cksum <$d; echo new | dd of=$d conv=fsync status=none; head -c 4 $d
        losetup -d $d
    """,
    "on top of one another": """
        seq 10000 | head -c 32768 >disk.img; d=$(losetup -f --show disk.img)
        e=$(losetup -f --show -o 4096 $d); cksum <$e; try losetup $e $e; try losetup $d $e
        echo changed | dd of=$e conv=fsync status=none; losetup -d $e; losetup -d $d
        dd if=disk.img bs=4096 skip=1 count=1 status=none | head -n 1
    """,
}

MOUNT = {
    "no filesystem": """
        mkdir mnt; truncate -s 1M disk.img; try mount -t ext4 -o loop disk.img mnt
    """,
    "nothing at all": """
        mkdir mnt; : >disk.img; try mount -t ext4 -o loop disk.img mnt
    """,
    "what is not there": """
        mkdir mnt; try mkfs.ext4 -q -F disk.img 4M; try mount -t strange -o loop disk.img mnt
        try mount -o loop missing.img mnt; try mount -o loop disk.img missing
        try mount -o loop disk.img disk.img; try mount -o loop . mnt
        try mount -o loop,strange disk.img mnt; ls mnt
    """,
    "busy": """
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; mount -o loop disk.img mnt
        (cd mnt; try umount ../mnt); try umount mnt; try umount mnt
    """,
    "twice": """
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; mount -o loop disk.img mnt
        try mount -o loop disk.img mnt; umount mnt; losetup -j disk.img
    """,
    "read-only": """
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; mount -o loop,ro disk.img mnt
        try touch mnt/file; findmnt -n -o OPTIONS mnt | grep -o '^ro'; umount mnt
    """,
    "a device is freed by umount only if mount made it": """
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; mount -o loop disk.img mnt; umount mnt
        losetup -j disk.img; d=$(losetup -f --show disk.img); mount $d mnt; try umount mnt
        blockdev --getsize64 $d; losetup -d $d
    """,
    "detached while mounted": """
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; d=$(losetup -f --show disk.img); mount $d mnt
        try losetup -d $d; echo data >mnt/file; blockdev --getsize64 $d; try umount mnt
        blockdev --getsize64 $d; try losetup -d $d
    """,
    "a device that others have open": """
        mkdir mnt; mkfs.ext4 -q -F disk.img 4M; d=$(losetup -f --show disk.img); mount $d mnt
        # One says "mounted", the other "in use": st_dev of a FUSE mount is no device's number.
        try mkfs.ext4 -q $d </dev/null | grep status; try e2fsck -p $d | grep status
        umount mnt; losetup -d $d
    """,
}

FILESYSTEM = """
    uuid=$(cat /proc/sys/kernel/random/uuid); label=l$(echo $uuid | cut -c1-8); mkdir mnt
    mkfs.ext4 -q -F -L $label -U $uuid disk.img 4M; d=$(losetup -f --show disk.img)
    bare() { sed "s,/dev/loopfs/,/dev/,; s/$uuid/UUID/; s/$label/LABEL/"; }
"""

LISTS = {
    "losetup": """
        truncate -s 1M disk.img; d=$(losetup -f --show -o 512 disk.img)
        losetup -l -n -O NAME,SIZELIMIT,OFFSET,AUTOCLEAR,RO,DIO,LOG-SEC,BACK-FILE $d
        losetup --json -l -O NAME,OFFSET $d
        losetup -j disk.img | sed 's/\\[.*\\]:[0-9]*//'; losetup -d $d
    """,
    "lsblk": """
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img)
        lsblk $d | tr -s ' ' | cut -d' ' -f3-
        lsblk -D $d | tr -s ' '
        lsblk -bno NAME,KNAME,SIZE,TYPE,RO,RM,PHY-SEC,LOG-SEC,MIN-IO,OPT-IO,ALIGNMENT,SCHED,TRAN $d
        lsblk -S $d; losetup -d $d
    """,
    "by what is on it": FILESYSTEM
    + """
        blkid $d | bare; blkid -p $d | bare; blkid -i $d | sed 's/DISKSEQ="[0-9]*"/DISKSEQ=N/'
        blkid -L $label | bare
        blkid -U $uuid | bare; findfs LABEL=$label | bare; try findfs LABEL=missing
        mount LABEL=$label mnt; echo text >mnt/file; umount mnt
        mount UUID=$uuid mnt; cat mnt/file; findmnt -no SOURCE mnt | bare; umount mnt
        wipefs $d | bare | tr -s ' '; wipefs -a $d | bare; wipefs $d; losetup -d $d
    """,
    "by another thing on it": FILESYSTEM
    + """
        blkid -s TYPE -o value $d; mkswap $d >log 2>&1; blkid -s TYPE -o value $d; losetup -d $d
    """,
    "fdisk": """
        truncate -s 4M disk.img; d=$(losetup -f --show disk.img); fdisk -l $d
        try sfdisk -l $d; echo ,1M | sfdisk -q --label-id 1 --no-reread $d; fdisk -l $d
        losetup -d $d
    """,
    "/proc/partitions": """
        truncate -s 4M disk.img; d=$(losetup -f --show disk.img); n=${d##*/}
        grep -w "$n" /proc/partitions | awk '{ print $1, $3, $4 }'; losetup -d $d
        grep -w "$n" /proc/partitions || echo none
    """,
    "what the device has counted": """
        truncate -s 1M disk.img; d=$(losetup -f --show disk.img); s=/sys/block/${d##*/}/stat
        set -- $(cat $s)
        dd if=$d of=/dev/null bs=4k iflag=direct status=none
        dd if=/dev/zero of=$d bs=4k count=16 oflag=direct conv=notrunc status=none
        read a1 a2 a3 a4 a5 a6 a7 rest <$s
        echo $((a1 - $1)) $((a3 - $3)) $((a5 - $5)) $((a7 - $7)); losetup -d $d
    """,
}


FAMILIES = {
    "losetup": LOSETUP,
    "data": DATA,
    "mount": MOUNT,
    "list": LISTS,
    "job": JOBS,
    "table": TABLES,
}
SCRIPTS = [
    pytest.param(script, id=f"{family}, {name}")
    for family, scripts in FAMILIES.items()
    for name, script in scripts.items()
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_sandbox_gives_the_same_output_as_the_kernel(in_both: Compare, script: str) -> None:
    native, ours = in_both(script)
    assert native.output, "the script says nothing: it compares nothing"
    if ours != native:
        difference = "\n".join(ndiff(native.lines(), ours.lines()))
        pytest.fail(f"- the kernel, + loopfs\n{difference}", pytrace=False)
