"""mount -t loop: instances, their limits and owners, and the transcripts of the posted series."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.rounds import rounds
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# control DIRECTORY REQUEST:NUMBER…: ioctls of one open control node; a line for each.
CONTROL = """#!/usr/bin/python3
import errno, fcntl, sys
requests = {"add": 0x4C80, "remove": 0x4C81, "free": 0x4C82}
with open(sys.argv[1] + "/loop-control", "r+b", buffering=0) as node:
    for word in sys.argv[2:]:
        request, _, number = word.partition(":")
        try:
            print(fcntl.ioctl(node, requests[request], int(number or -1)))
        except OSError as problem:
            print(errno.errorcode[problem.errno])
"""

# gone NAME: the sandbox has no such device; the host, whose files are nobody's, may have one.
GONE = """#!/bin/sh
test "$(stat -L -c %u /sys/block/$1 2>/dev/null)" != 0
"""

LIMIT_REACHED = ["ENOSPC"]


@pytest.fixture(autouse=True)
def _places(image: Path) -> None:
    """disk.img, two places to mount it or an instance at, ./control and ./gone."""
    for name, text in (("control", CONTROL), ("gone", GONE)):
        (image.parent / name).write_text(text)
        (image.parent / name).chmod(0o755)
    (image.parent / "one").mkdir(mode=0o777)
    (image.parent / "two").mkdir(mode=0o777)


@pytest.fixture
def in_nested(inside: Lines) -> Lines:
    """As ``inside``, in a user and a mount namespace of the script's own."""

    def run(script: str) -> list[str]:
        quoted = script.replace("'", "'\\''")
        return inside(f"unshare --user --map-root-user --mount sh -euc '{quoted}'")

    return run


# --- what is mounted ---------------------------------------------------------------


def test_an_instance_is_a_filesystem(inside: Lines) -> None:
    shown, kind, *names = inside("""
        mount -t loop -o noexec,max=3 name one; findmnt -no SOURCE,FSTYPE,VFS-OPTIONS one
        stat -f -c '%t %S %l' one; ls one; stat -c '%a %u:%g %F %t:%T %i' one one/*
    """)
    assert shown.split() == ["name", "fuse.loop", "rw,noexec,relatime"]
    assert kind == "6c6f6f71 4096 255"
    assert names == [
        "loop-control",
        "755 0:0 directory 0:0 1",
        "600 0:0 character special file a:ed 2",
    ]


def test_what_findmnt_shows(inside: Lines) -> None:
    """Not ``max``, wherever one looks from and after a remount; the source as it was given."""
    lines = inside("""
        show() { findmnt -no SOURCE,FSTYPE,OPTIONS "$@" | tr -s ' '; }
        mount -t loop -o max=2,ro,nosuid 'a name, and more' one; show one
        unshare --user --map-root-user --mount findmnt -no SOURCE,FSTYPE,OPTIONS one | tr -s ' '
        mount -i -o remount,rw,max=1 one; show one; mount | grep "$PWD/one" | sed 's/.*type//'
        unshare --user --map-root-user --mount sh -euc 'mount -t loop -o max=0 mine two
            findmnt -no SOURCE,FSTYPE,OPTIONS two' | tr -s ' '
    """)
    of_fuse = "relatime,user_id=0,group_id=0,default_permissions,allow_other"
    read_only = f"a name, and more fuse.loop ro,nosuid,{of_fuse}"
    writable = read_only.replace(" ro,", " rw,")
    shown = f" fuse.loop (rw,nosuid,{of_fuse})"
    assert lines == [read_only, read_only, writable, shown, f"mine fuse.loop rw,{of_fuse}"]


def test_statfs_by_all_its_ways(inside: Lines) -> None:
    """By path, below it, by descriptor; and other filesystems as they are."""
    lines = inside("""
        magic() { stat -f -c %t "$@"; }
        fmagic() { python3 -c 'import ctypes, os, sys
buffer = ctypes.create_string_buffer(256)
assert ctypes.CDLL(None).fstatfs(os.open(sys.argv[1], os.O_RDONLY), buffer) == 0
print("%x" % ctypes.c_ulong.from_buffer(buffer).value)' "$1"; }
        mount -t loop none one; magic one one/loop-control two/../one; cd two; magic ../one; cd ..
        ln -s $PWD/one link; magic link; magic /proc/self/root$PWD/one
        fmagic one; fmagic one/loop-control; fmagic /proc
        magic /proc /dev; try magic one/loop99
    """)
    assert lines[:8] == ["6c6f6f71"] * 8
    assert lines[8:11] == ["9fa0", "9fa0", "1021994"]
    assert "No such file or directory" in lines[11]


def test_each_mount_is_another_instance(inside: Lines) -> None:
    """Numbers are global, devices are not; another instance's cannot be removed."""
    lines = inside("""
        mount -t loop none one; mount -t loop none two; ./control one free; ./control two free free
        ./control two add; ls one; ls two
        number=$(./control one free); ./control two remove:$number add:$number
        ./control /dev/loopfs remove:$number; ./control one remove:$number
        ./control two add:$number
    """)
    first = int(lines[0])
    assert lines[1:4] == [str(first + 1), str(first + 1), str(first + 2)]
    assert lines[4:6] == ["loop-control", f"loop{first}"]
    assert set(lines[6:9]) == {"loop-control", f"loop{first + 1}", f"loop{first + 2}"}
    assert lines[9:] == ["EACCES", "EEXIST", "EACCES", "0", str(first)]


def test_a_bind_mount_is_the_same_instance(inside: Lines) -> None:
    lines = inside("""
        mount -t loop none one; mount --bind one two; ./control one add >added; umount one
        (cd two; echo *) >listed; sed s/^/loop/ added; sed 's/.* //' listed
    """)
    assert lines[0] == lines[1]


def test_devices_of_two_instances_and_filesystems_on_them(inside: Lines) -> None:
    lines = inside("""
        mount -t loop none one; number=$(./control one free); mkdir mnt
        losetup $PWD/one/loop$number disk.img; mount one/loop$number mnt; echo text >mnt/file
        cat /sys/block/loop$number/loop/backing_file; umount mnt; losetup -d $PWD/one/loop$number
        mount -o loop disk.img mnt; cat mnt/file; umount mnt; umount one
        ./gone loop$number
    """)
    assert lines[0].endswith("/disk.img")
    assert lines[1:] == ["text"]


def test_a_device_of_another_instance_as_backing_file(inside: Lines) -> None:
    lines = inside("""
        mount -t loop none one; number=$(./control one free); mkdir mnt
        losetup $PWD/one/loop$number disk.img; above=$(losetup -f --show one/loop$number)
        mount $above mnt; echo text >mnt/file; umount mnt; losetup -d $above
        losetup -d $PWD/one/loop$number; debugfs -R 'cat file' disk.img 2>/dev/null
    """)
    assert lines == ["text"]


# --- the limit -----------------------------------------------------------------------


def test_the_limit(inside: Lines) -> None:
    lines = inside("mount -t loop -o max=2 none one; ./control one free add add free")
    assert [line.isdigit() for line in lines] == [True, True, False, True]
    assert lines[2] == "ENOSPC"


def test_no_device_at_all(inside: Lines) -> None:
    assert inside("mount -t loop -o max=0 none one; ./control one free") == LIMIT_REACHED


def test_a_remount_changes_the_limit(inside: Lines) -> None:
    """Lowered below the present count it removes none; not given it stays."""
    lines = inside("""
        mount -t loop -o max=1 none one; ./control one add add
        mount -i -o remount,max=3 one; ./control one add add add
        mount -i -o remount,max=1 one; ls one | wc -l; ./control one add
        mount -i -o remount,noatime one; ./control one add; mount -i -o remount,max=4 one
        ./control one add add
    """)
    assert lines[1] == "ENOSPC"
    assert lines[4:8] == ["ENOSPC", "4", "ENOSPC", "ENOSPC"]
    assert lines[8].isdigit()
    assert lines[9:] == LIMIT_REACHED


def test_the_type_names_the_remount_helper(inside: Lines) -> None:
    """With the type given, mount(8) looks for no helper of the type that mountinfo shows."""
    lines = inside("""
        mount -t loop -o max=0 none one; mount -t loop -o remount,max=1 none one; ./control one add
    """)
    assert lines[0].isdigit()


@pytest.mark.parametrize("options", ["max", "max=", "max=x", "max=-1", "max=1048577", "strange"])
def test_refused_options(inside: Lines, options: str) -> None:
    lines = inside(f"""
        try mount -t loop -o {options} none one; mount -t loop -o max=1 none two
        try mount -i -o remount,{options} two; ./control two free add; ls one
    """)
    assert lines.count("status 32") == 2
    assert lines[-1] == "ENOSPC"


# --- nested namespaces -----------------------------------------------------------------


def test_in_a_nested_user_namespace(in_nested: Lines) -> None:
    """Owned by the root of that namespace, who can do with it what the sandbox's can."""
    owner, *rest = in_nested("""
        mount -t loop none one; stat -c %u:%g one/loop-control; number=$(./control one free)
        losetup $PWD/one/loop$number disk.img; mount one/loop$number two; echo text >two/file
        umount two; losetup -d $PWD/one/loop$number; debugfs -R "cat file" disk.img 2>/dev/null
        umount one; ls one
    """)
    assert (owner, rest) == ("0:0", ["text"])


def test_a_nested_namespace_cannot_raise_the_limit(inside: Lines) -> None:
    lines = inside("""
        mount -t loop -o max=1 none one; chmod 666 one/loop-control
        unshare --user --map-root-user --mount sh -c 'mount -i -o remount,max=9 one' 2>&1 || :
        unshare --user --map-root-user --mount sh -c 'umount one; mount --bind one two' 2>&1 || :
        ./control one free add
    """)
    assert "permission denied" in lines[0]
    assert lines[-1] == "ENOSPC"


def test_the_end_of_the_mount_namespace_ends_its_instances(inside: Lines) -> None:
    lines = inside("""
        number=$(unshare --mount sh -euc '
            mount -t loop none one; ./control one free')
        until ./gone loop$number; do sleep 0.01; done; ls one; echo gone
    """)
    assert lines == ["gone"]


# --- the end of an instance --------------------------------------------------------------


def test_umount_shuts_the_instance_down(inside: Lines) -> None:
    """At once: its numbers are free, its images too."""
    lines = inside("""
        for n in 1 2 3 4 5 6 7 8 9 10; do
            mount -t loop none one; ./control one free add >numbers; n=$(head -n 1 numbers)
            losetup $PWD/one/loop$n disk.img; umount one; losetup -a; ls one; cat numbers
        done
    """)
    assert len(lines) == 20
    assert lines == lines[:2] * 10


def test_a_lazy_umount_waits_for_the_last_descriptor(inside: Lines) -> None:
    lines = inside("""
        mount -t loop none one; exec 3<one; umount -l one; ls one
        number=$(./control /proc/self/fd/3 free)
        losetup /proc/self/fd/3/loop$number disk.img; losetup -d /proc/self/fd/3/loop$number
        ./gone loop$number && echo early; exec 3<&-
        until ./gone loop$number; do sleep 0.01; done; echo gone
    """)
    assert lines == ["gone"]


def test_what_is_mounted_on_loopfs_can_go(inside: Lines) -> None:
    """Its nodes are still there; and another instance may be mounted in its place."""
    lines = inside("""
        umount /dev/loopfs; d=$(losetup -f --show disk.img); n=${d##*/}; ls /dev/loopfs/$n | wc -l
        mount /dev/loopfs/$n one; ls one; umount one; losetup -d /dev/loopfs/$n
        mount -t loop loop /dev/loopfs; ls /dev/loopfs; umount /dev/loopfs; losetup -a
    """)
    assert lines == ["1", "lost+found", "loop-control"]


def test_a_busy_instance_stays(inside: Lines) -> None:
    said, *_ = inside("""
        mount -t loop none one; exec 3<one/loop-control; umount one 2>&1 || echo "status $?"
        exec 3<&-; umount one; ls one
    """)
    assert said.endswith("target is busy.")


# --- others are left alone ------------------------------------------------------------------


def test_other_mounts_are_the_kernels(inside: Lines) -> None:
    lines = inside("""
        mount -t tmpfs -o size=1m none one; mount -o remount,size=2m one
        findmnt -no SIZE one; mount --bind one two; touch one/file; ls two
        mount -o remount,ro,bind two; try touch two/other; umount two; umount one
        try mount -t loop none disk.img; try mount -t loop none missing; mount -t proc proc one
        umount one
    """)
    assert lines[0].split() == ["2M"]
    assert lines[1] == "file"
    assert "Read-only" in lines[2]
    assert lines.count("status 32") == 2


def test_many_at_once(inside: Lines) -> None:
    """All are there at one time, each with a filesystem on a device; so are mounts of others, and
    more of them come and go."""
    many = rounds(20, 50)
    lines = inside(
        f"many={many}\n"
        + """
        one() {
            mkdir i$1 m$1; cp --sparse=always disk.img $1.img; mount -t loop none i$1
            number=$(./control i$1 free); losetup $PWD/i$1/loop$number $1.img; echo $number >n$1
            mount i$1/loop$number m$1; echo $1 >m$1/file; echo >up$1
            until test -e go; do sleep 0.02; done
            umount m$1; umount i$1; debugfs -R 'cat file' $1.img 2>/dev/null
            e2fsck -fn $1.img >/dev/null 2>&1
        }
        others() {
            mkdir $1; mount -t tmpfs none $1; cd $1; mkdir a b c d lower upper work; echo $1 >a/file
            mount --bind a b; mount -t proc proc c
            mount -t overlay none -o lowerdir=a,upperdir=upper,workdir=work d
            cat b/file d/file; ls -d c/self/fd/0
        }
        mounted() { grep -c " - fuse.$1 " /proc/self/mountinfo || :; }
        (others before); grep $PWD/before /proc/self/mountinfo >before.mounts
        for n in $(seq $many); do one $n & done
        (others meanwhile; cd ..; umount -R meanwhile; ls meanwhile)
        until test $(ls -d up* 2>/dev/null | wc -l) = $many; do sleep 0.02; done
        cat n* | sort -u | wc -l; grep -ls $PWD /sys/block/loop*/loop/backing_file | wc -l
        mounted loop; mounted ext4
        >go; wait
        losetup -a; ls -d i*/* m*/* 2>/dev/null || :; mounted loop; mounted ext4
        grep $PWD/before /proc/self/mountinfo | cmp - before.mounts; cat before/[bd]/file
    """
    )
    of_others, counts = ["before"] * 2 + ["c/self/fd/0"], [f"{many}"] * 4
    assert lines[:6] == [*of_others, "meanwhile", "meanwhile", "c/self/fd/0"]
    assert lines[6:10] == counts
    assert sorted(lines[10:-4], key=int) == [str(n) for n in range(1, many + 1)]
    assert lines[-4:] == ["0", "0", "before", "before"]


def test_a_hundred_instances(inside: Lines) -> None:
    """Each has its devices and its limit; no control node reaches another's devices."""
    lines = inside("""
        for n in $(seq 100); do mkdir i$n; mount -t loop -o max=2 none i$n; done
        python3 - <<'END'
import errno, fcntl, os
controls = [os.open(f"i{n}/loop-control", os.O_RDWR) for n in range(1, 101)]
def ask(control, request, number=-1):
    try:
        return fcntl.ioctl(control, request, number)
    except OSError as problem:
        return errno.errorcode[problem.errno]
owners = {ask(control, 0x4C80): control for control in controls for _ in range(2)}
print(len(owners), {ask(control, 0x4C80) for control in controls})
print({ask(control, 0x4C80, number) for number in owners for control in controls[::9]})
print({ask(c, 0x4C81, n) for n, owner in owners.items() for c in controls[::9] if c != owner})
print({len(os.listdir(f"i{n}")) for n in range(1, 101)})
END
        ours() { stat -L -c %u /sys/block/loop* 2>/dev/null | grep -c '^0$' || :; }
        ours >during; umount i?; umount i??; umount i100
        ls -d i*/* 2>/dev/null || echo $(($(cat during) - $(ours)))
    """)
    assert lines == ["200 {'ENOSPC'}", "{'EEXIST'}", "{'EACCES'}", "{3}", "200"]


# --- without an instance: the transcripts ------------------------------------------------------


def test_the_transcript_of_the_cover_letter(loopfs_run: Run, image: Path) -> None:
    """Message of 2020-04-08, with ext4: the instance, its links and the mount are the user's."""
    script = """
        set -eu
        cat /proc/self/uid_map | wc -l
        mkdir /dev/loopfs
        mount -t loop loop /dev/loopfs/
        ln -sf /dev/loopfs/loop-control /dev/loop-control
        device=$(losetup -f | cut -d" " -f1)
        name=${device##*/}
        ln -sf /dev/loopfs/$name $device
        readlink /sys/class/block/$name
        test "$(cat /sys/class/block/$name/dev)" = 7:${name#loop}
        mount -o loop disk.img one
        findmnt -no SOURCE,FSTYPE one | sed "s/$name/loop9/"
        umount one
        losetup -a
    """
    result = loopfs_run(script, "--bare")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[1].startswith("../../devices/virtual/block/loop")
    assert lines[2].split() == ["/dev/loop9", "fuse.ext4"]
    assert len(lines) == 3


def test_the_transcript_of_the_seventh_patch(inside: Lines) -> None:
    """The instance is elsewhere and only its nodes are linked into /dev."""
    lines = inside("""
        mount -t loop loop one; ln -sf $PWD/one/loop-control /dev/loop-control
        device=$(losetup -f | cut -d" " -f1); name=${device##*/}; ln -sf $PWD/one/$name $device
        ls -d one/$name | sed s/$name/loop8/
        cat /sys/class/block/$name/size; mount -o loop disk.img two; umount two
    """)
    assert lines == ["one/loop8", "0"]


def test_bare_has_nothing(loopfs_run: Run) -> None:
    script = "ls -d /dev/loop* 2>/dev/null; losetup -f --show disk.img"
    result = loopfs_run(script, "--bare")
    assert result.returncode == 1
    assert result.stdout == ""


def test_links_beside_the_mount_point(inside: Lines) -> None:
    """The option of a nested sandbox's /dev."""
    lines = inside("""
        mkdir dev dev/mine; mount -t loop -o links,max=2 none dev/mine
        truncate -s 1M disk.img; d=$(losetup -f); echo ${d##*/} >name
        python3 -c 'import fcntl, os
fd = os.open("dev/mine/loop-control", os.O_RDWR)
print(fcntl.ioctl(fd, 0x4C82), os.listdir("dev"))
number = fcntl.ioctl(fd, 0x4C82)
fcntl.ioctl(fd, 0x4C81, number); print(os.listdir("dev"))'
        try mount -o remount,links dev/mine | tail -n 1
    """)
    assert len(lines) == 3
    number, names = lines[0].split(" ", 1)
    assert names in (f"['mine', 'loop{number}']", f"['loop{number}', 'mine']")
    assert lines[1] == "['mine']"
    assert lines[2] != "status 0"


def test_each_namespace_sees_its_own_devices_and_those_around_it(inside: Lines) -> None:
    """In /sys and /proc/partitions (patches 5/8 and 8/8): none of one within or beside."""
    lines = inside(r"""
        truncate -s 1M disk.img; outer=$(losetup -f --show disk.img); mkfifo f1 f2
        cat >see <<'END'
            for n in $(ls /sys/block) $(awk '$4 ~ /^loop/ { print $4 }' /proc/partitions); do
                if grep -qs $PWD/disk.img /sys/class/block/$n/loop/backing_file; then echo $n; fi
            done | sort -V | xargs echo
END
        for n in 1 2; do
            unshare -Urm sh -ec "mount -t tmpfs none /dev; mkdir /dev/loopfs
                mount -t loop -o links none /dev/loopfs; : >/dev/null
                ln -s loopfs/loop-control /dev
                losetup -f --show disk.img >part; mv part own$n; read go <f$n; sh see" >n$n &
            until test -e own$n; do sleep 0.01; done
        done
        sh see; echo >f1; echo >f2; wait; cat n1 n2
        echo $outer $(cat own1 own2)
    """)
    *seen, names = lines
    outer, first, second = names.replace("/dev/", "").split()
    assert seen == [f"{outer} {outer}", *(f"{outer} {outer} {n} {n}" for n in (first, second))]
