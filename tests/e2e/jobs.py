"""Typical scripts with loop devices, for a sandbox and for the kernel's devices.

What they say must be the same on both. A kernel may know no partition tables, so here it is told
of partitions (partx, partprobe, parted), and does not look for them.
"""

from __future__ import annotations

JOBS = {
    "twelve devices in a row": """
        for n in $(seq 12); do
            echo disk $n >$n.img; truncate -s ${n}M $n.img; losetup -f --show $n.img >>names
        done
        sort -u names | wc -l; for d in $(cat names); do head -n 1 $d; blockdev --getsize64 $d; done
        losetup -d $(cat names); for n in $(seq 12); do losetup -j $n.img; done
    """,
    "eight at once, again and again": """
        work() {
            for round in 1 2 3 4 5 6; do
                d=$(losetup -f --show $1.img) && test "$(head -n 1 $d)" = "of $1" &&
                    losetup -d $d || echo "$1: round $round"
            done
        }
        for n in 1 2 3 4 5 6 7 8; do echo of $n >$n.img; truncate -s 1M $n.img; done
        for n in 1 2 3 4 5 6 7 8; do work $n & done; wait
        for n in 1 2 3 4 5 6 7 8; do losetup -j $n.img; done; echo done
    """,
    "two filesystems in one file, without a pause": """
        mkdir mnt; truncate -s 18M disk.img
        for round in 1 2 3; do
            for at in 1 10; do
                d=$(losetup -f --show -o ${at}M --sizelimit 8M disk.img); mkfs.ext4 -q -F $d
                mount $d mnt; seq $round$at 30000 >mnt/file; umount mnt; losetup -d $d
                losetup -j disk.img
            done
        done
        for at in 1 10; do e2fsck -fn "disk.img?offset=$((at << 20))" >log 2>&1; echo $?; done
    """,
    "a window beyond 3 GiB": """
        truncate -s 3400M disk.img; at=$((3 << 30)); echo before | dd of=disk.img bs=1 \\
            seek=$((at - 8)) conv=notrunc status=none
        echo behind | dd of=disk.img bs=1 seek=$((at + (8 << 20))) conv=notrunc status=none
        d=$(losetup -f --show -o $at --sizelimit 8M disk.img); blockdev --getsize64 $d
        losetup -n -O OFFSET,SIZELIMIT --raw -l $d
        cat /sys/block/${d##*/}/size; try dd if=/dev/zero of=$d bs=1M status=none
        echo mark | dd of=$d conv=notrunc,fsync status=none; wc -c <$d; losetup -d $d
        for o in -8 0 $((8 << 20)); do
            dd if=disk.img bs=1 skip=$((at + o)) count=8 status=none | tr -d '\\0'
        done
    """,
    "a file that grows and shrinks": """
        mkfs.ext4 -q -F disk.img 8M; d=$(losetup -f --show disk.img); exec 7<$d 8<$d
        truncate -s 32M disk.img; blockdev --getsize64 $d
        dd bs=1M skip=20 count=1 status=none <&7 2>&1 | grep -v skip | wc -c; exec 7<&-
        losetup -c $d; blockdev --getsize64 $d; cat /sys/block/${d##*/}/size
        dd bs=1M skip=20 count=1 status=none <&8 | wc -c; exec 8<&-
        e2fsck -fp $d >log 2>&1; resize2fs $d >log 2>&1; dumpe2fs -h $d 2>&1 | grep '^Block count'
        exec 9<$d; truncate -s 4M disk.img; losetup -c $d; blockdev --getsize64 $d; wc -c <&9
        exec 9<&-; losetup -d $d
    """,
    "holes in the file": """
        blocks() { sync disk.img; echo $(($(stat -c %b disk.img) / 2048)) MiB; }
        head -c 16M /dev/urandom >disk.img; d=$(losetup -f --show disk.img); blocks
        blkdiscard -o 4M -l 8M $d; blocks; dd if=$d bs=1M skip=4 count=8 status=none | tr -d '\\0' |
            wc -c
        blkdiscard -z -o 0 -l 1M $d; cmp -n 1048576 $d /dev/zero && echo zeros
        cat /sys/block/${d##*/}/queue/discard_granularity; stat -c %s disk.img
        mkfs.ext4 -q -F $d; test $(stat -c %b disk.img) -lt 4096 && echo 'hardly any'; losetup -d $d
    """,
    "partprobe, and a filesystem at once": """
        truncate -s 16M disk.img; parted -s disk.img mklabel msdos mkpart primary 1MiB 100%
        d=$(losetup -f --show disk.img); partprobe $d; ls ${d}p*; mkfs.ext4 -q ${d}p1
        lsblk -nr -o NAME,TYPE,SIZE $d; dd if=${d}p1 bs=512 skip=2 count=2 status=none >one
        dd if=$d bs=512 skip=2050 count=2 status=none | cmp - one
        dd if=disk.img bs=512 skip=2050 count=2 status=none | cmp - one; od -An -tx2 -j56 -N2 one
        losetup -d $d; ls ${d}p*; partx -d --nr 1 $d 2>/dev/null || :; try ls ${d}p1
    """,
    "what reads a table anew, without PARTSCAN": """
        parts() { ls ${d}p* 2>/dev/null | wc -l; }
        truncate -s 16M disk.img; d=$(losetup -f --show disk.img); parts
        printf 'label: dos\\n,4M,c\\n,4M\\n' | try sfdisk -q $d; parts
        try blockdev --rereadpt $d; parts; try partx -a $d; parts; try partx -a $d; parts
        try partx -d $d; parts; try partprobe $d; parts; try partx -u $d; parts
        try partx -d --nr 2 $d; parts; try partx -d --nr 2 $d; partx -d $d; losetup -d $d; parts
    """,
    "an open partition keeps its disk": """
        truncate -s 16M disk.img; printf 'label: dos\\n,4M\\n,4M\\n' | sfdisk -q disk.img
        d=$(losetup -f --show disk.img); partx -a $d; exec 7<${d}p1; try partx -d --nr 1 $d
        try losetup -d $d; losetup -n -l -O AUTOCLEAR $d; try blockdev --getsize64 ${d}p1 ${d}p2
        exec 7<&-; partx -d $d 2>/dev/null || :; ls ${d}p* 2>/dev/null || echo none
        losetup -j disk.img
    """,
    "a mounted partition keeps its disk": """
        truncate -s 16M disk.img; mkdir mnt; printf 'label: gpt\\n,8M\\n' | sfdisk -q disk.img
        d=$(losetup -f --show disk.img); partx -a $d; mkfs.ext4 -q ${d}p1; mount ${d}p1 mnt
        try partx -d --nr 1 $d; echo text >mnt/file; try losetup -d $d; cat mnt/file; umount mnt
        partx -d $d 2>/dev/null || :; losetup -j disk.img; e2fsck -fn 'disk.img?offset=1048576' \\
            >/dev/null 2>&1; echo $?
    """,
}

# Tables of every kind, and what each tool makes of them.
_DOS = "label: dos\\nlabel-id: 0x1234abcd\\n,1M\\n,8M,5\\n,2M\\n,1M,82\\n,1M\\n"
_GPT = (
    "label: gpt\\nlabel-id: 11111111-2222-3333-4444-555555555555\\n"
    "size=2M, name=first, uuid=11111111-2222-3333-4444-000000000001\\n"
    "size=3M, name=second, uuid=11111111-2222-3333-4444-000000000002\\n"
)


def _keys(words: str) -> str:
    """Return the input of a tool for printf; a minus is an empty line."""
    return "\\n".join([*words.replace("-", "").split(" "), ""])


# Two primary ones, of which one is extended, and two logical ones, of which one is for swap.
_FDISK_DOS = _keys("o n p 1 - +1M n e 2 - +8M n l - +2M n l - +1M t 6 82 w")
_FDISK_GPT = _keys("g n 1 - +2M n 2 - +3M w")

# A message names the device's /sys directory, or ids that are drawn by lot.
_SHOWN = "sed 's/[0-9A-F]\\{8\\}-[0-9A-F-]*/ID/g; s/0x[0-9a-f]\\{8\\}/ID/'"


def _table(make: str, sector: int) -> str:
    """Return a script that makes a table on a device of some block size, and reads it by several
    tools."""
    return f"""
        truncate -s 32M disk.img; d=$(losetup -f --show -b {sector} disk.img)
        {make}
        partx -d $d 2>/dev/null || :; try partx -a $d
        partx -g -o NR,START,END,SECTORS,TYPE $d | {_SHOWN}
        sfdisk -d $d | {_SHOWN}
        fdisk -l $d | {_SHOWN} | tr -s ' '
        parted -s -m $d unit s print | sed s,/dev/loopfs/,/dev/,
        for p in ${{d}}p*; do
            echo $p; blockdev --getsize64 --getss --getpbsz --getro $p
            cat /sys/class/block/${{p##*/}}/start /sys/class/block/${{p##*/}}/size
        done
        lsblk -bnr -o NAME,TYPE,SIZE,RO,PHY-SEC,LOG-SEC $d | sort
        grep -c "${{d##*/}}p" /proc/partitions
        try partx -d --nr 1 $d; ls ${{d}}p*; try partx -u $d; ls ${{d}}p*
        try partprobe $d; ls ${{d}}p*; try partx -d $d; losetup -d $d; ls -d $d; try ls ${{d}}p*
    """


# By what and as what: to be run with a device as $d.
MAKERS = {
    "sfdisk, MBR": f"printf '{_DOS}' | try sfdisk -q $d",
    "sfdisk, GPT": f"printf '{_GPT}' | try sfdisk -q $d",
    "fdisk, MBR": f"printf '{_FDISK_DOS}' | try fdisk $d | {_SHOWN}",
    "fdisk, GPT": f"printf '{_FDISK_GPT}' | try fdisk $d | {_SHOWN}",
    "parted, MBR": """try parted -s $d mklabel msdos mkpart primary 1MiB 2MiB \\
        mkpart extended 2MiB 12MiB mkpart logical 3MiB 5MiB mkpart logical 6MiB 7MiB""",
    "parted, GPT": """try parted -s $d mklabel gpt mkpart first 1MiB 3MiB \\
        mkpart second 3MiB 6MiB""",
}
# parted 3.5 crashes there now and then, on the kernel's devices as well.
SECTORS = {maker: (512,) if maker == "parted, MBR" else (512, 4096) for maker in MAKERS}
TABLES = {
    f"{maker}, sectors of {sector}": _table(make, sector)
    for maker, make in MAKERS.items()
    for sector in SECTORS[maker]
}
