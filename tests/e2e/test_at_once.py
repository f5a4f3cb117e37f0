"""Many mounts and unmounts at the same time, beside mounts of other types."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Lines
from tests.support.rounds import rounds

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# all COMMAND: that many commands, in each of which N is another number, begin when all are ready.
MANY = rounds(20, 50)
ALL = (
    f"many={MANY}"
    + """
all() {
    exec 9>gate; flock 9; all=
    for n in $(seq $many); do
        sh -c 'exec flock -s gate sh -euc "$1"' sh "$(echo "$*" | sed "s/N/$n/g")" 9>&- &
        all="$all $!"
    done
    flock -u 9; for one in $all; do wait $one; done
}
"""
)

# Unrelated mounts: kept, and made and taken away over and over until there is a file "stop".
BESIDE = """
mkdir kept bound beside again; mount -t tmpfs -o size=1m kept kept; mount --bind kept bound
mount -t proc proc beside; echo text >kept/file; cp kept/file again/file
grep "$PWD/\\(kept\\|bound\\|beside\\) " /proc/self/mountinfo >before
until test -e stop; do
    mount -t tmpfs again again; test ! -e again/file; umount again; cmp again/file kept/file
    mount --bind kept again; cmp again/file bound/file; mount -o remount,bind,ro again; umount again
    echo
done >turns & beside=$!
until test -s turns; do sleep 0.01; done
"""

# They are as they were, and have been all the time.
UNTOUCHED = """
touch stop; wait $beside; cmp kept/file bound/file; test -e beside/self; rm stop
grep "$PWD/\\(kept\\|bound\\|beside\\) " /proc/self/mountinfo | cmp - before
umount kept bound beside; grep "$PWD" /proc/self/mountinfo || echo clean
"""


def test_many_instances(inside: Lines) -> None:
    """Each is its own: a device in each, all numbers differ, all end in one moment."""
    lines = inside(f"""
        {ALL} {BESIDE}
        mkdir $(seq $many); all mount -t loop name-N N
        findmnt -nt fuse.loop -o SOURCE | sort -u >made
        grep -c ^name made; all ls N | uniq -c
        all "python3 -c 'import fcntl
print(fcntl.ioctl(open(\\"N/loop-control\\", \\"r+b\\", 0), 0x4C82))' >number-N; ls N >in-N"
        sort -nu number-* | wc -l; cat in-* | sort | uniq -c | awk '$1 > 1 {{ print $1, $2 }}'
        all umount N; findmnt -nt fuse.loop -o TARGET; ls $(seq $many) | grep loop || echo empty
        {UNTOUCHED}
    """)
    nodes = [f"     {MANY} loop-control", f"{MANY}", f"{MANY} loop-control"]
    assert lines == [f"{MANY}", *nodes, "empty", "clean"]


def test_many_images(inside: Lines) -> None:
    """mount -o loop: each finds a device of its own; what each has written is in its image."""
    lines = inside(f"""
        {ALL} {BESIDE}
        mkdir $(seq $many); all cp --sparse=always disk.img N.img
        all mount -o loop N.img N; findmnt -nt fuse.ext4 -o SOURCE | sort -u | wc -l
        all 'echo "in N" >N/file'; all umount N; findmnt -nt fuse.ext4; losetup -a
        all 'debugfs -R "cat file" N.img >said-N 2>/dev/null; e2fsck -fn N.img >checked-N 2>&1'
        cat $(seq -f said-%g $many)
        {UNTOUCHED}
    """)
    assert lines == [f"{MANY}", *(f"in {n}" for n in range(1, MANY + 1)), "clean"]


def test_mounts_of_one_device(inside: Lines) -> None:
    """All are of one filesystem, whoever is first; and again when the last has gone."""
    lines = inside(f"""
        {ALL} mkdir $(seq $many); d=$(losetup -f --show disk.img)
        for again in 1 2; do
            all mount $d N; all 'echo in N >N/N'; ls $many | grep -c .; all umount N
        done
        losetup -d $d; e2fsck -fn disk.img >checked 2>&1; findmnt -nt fuse.ext4; echo clean
    """)
    assert lines == [f"{MANY + 1}"] * 2 + ["clean"]


def test_umount_where_autoclear_is_not_seen(inside: Lines) -> None:
    """umount(8) has the device cleared then, which its umount2(2) has done (another's /sys)."""
    lines = inside("""
        mkdir m; mount -t tmpfs none /sys/dev/block; mount -o loop disk.img m; umount m
        losetup -a; umount /sys/dev/block; echo clean
    """)
    assert lines == ["clean"]
