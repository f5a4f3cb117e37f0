"""After a successful sync the data is in the image, and errors are reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Compare, Lines
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# Ways to sync a file or a directory; each says what it returned.
WAYS = r"""
import ctypes, errno, mmap, os, shutil, subprocess, sys
from contextlib import suppress
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
NULL = ctypes.c_void_p(None)

def result(call, *arguments):
    try:
        returned = call(*arguments)
    except OSError as problem:
        return errno.errorcode[problem.errno]
    return errno.errorcode[ctypes.get_errno()] if returned == -1 else "0"

class Iocb(ctypes.Structure):
    _fields_ = [("data", ctypes.c_uint64), ("key", ctypes.c_uint64), ("opcode", ctypes.c_uint16),
                ("prio", ctypes.c_int16), ("fd", ctypes.c_uint32), ("rest", ctypes.c_uint64 * 5)]

def aio(fd, opcode=2):
    context, event = ctypes.c_ulong(0), (ctypes.c_int64 * 4)()
    assert libc.syscall(206, ctypes.c_long(1), ctypes.byref(context)) == 0
    control = Iocb(opcode=opcode, fd=fd)
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(control))
    try:
        if libc.syscall(209, context, ctypes.c_long(1), pointers) != 1:
            return -1
        assert libc.syscall(208, context, ctypes.c_long(1), ctypes.c_long(1), event, NULL) == 1
    finally:
        code = ctypes.get_errno()
        libc.syscall(207, context)
        ctypes.set_errno(code)
    if event[2] < 0:
        raise OSError(-event[2], "by an event")

WAYS = {
    "fsync": os.fsync,
    "fdatasync": os.fdatasync,
    "aio": aio,
    "aio-data": lambda fd: aio(fd, 3),
    "syncfs": lambda fd: libc.syncfs(fd),
    "sync": lambda fd: os.sync(),
}

def stored(path, text):
    "A program stores by a mapping, and goes on."
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0" * 8192)
    memory = mmap.mmap(fd, 8192)
    memory[:] = text * (8192 // len(text))
    return memory
"""


@pytest.fixture
def ways(workdir: Path) -> Path:
    (workdir / "ways.py").write_text(WAYS)
    return workdir


def program(ways: Path, text: str) -> str:
    """How to run a Python program with the functions of WAYS."""
    (ways / "program.py").write_text("from ways import *\n" + text)
    return f"env PYTHONPATH={ways} python3 {ways}/program.py"


IN_THE_IMAGE = r"""
def look(name):
    shutil.copyfile("disk.img", "copy")
    checked = subprocess.run(["e2fsck", "-fy", "copy"], capture_output=True)
    assert checked.returncode in (0, 1), checked.stdout
    cat = subprocess.run(["debugfs", "-R", "cat /" + name, "copy"], capture_output=True)
    return cat.stdout
for name, way in WAYS.items():
    memory = stored("mnt/" + name, b"N")
    fd = os.open("mnt/" + name, os.O_RDONLY)
    print(name, result(way, fd), look(name).count(b"N"))
for name in ("fsync", "aio", "syncfs"):
    os.mkdir("mnt/in-" + name)
    with open(f"mnt/in-{name}/file", "w") as file:
        file.write("new")
        file.flush()
        os.fdatasync(file)
        os.link(f"mnt/in-{name}/file", f"mnt/in-{name}/link")
        directory = os.open("mnt/in-" + name, os.O_RDONLY)
        print("directory:", name, result(WAYS[name], directory), look(f"in-{name}/link"))
print("closed:", result(os.fsync, 99), result(WAYS["syncfs"], 99))
print("O_PATH:", result(os.fsync, os.open("mnt", os.O_PATH)))
"""


def test_what_is_synced_is_in_the_image(in_both: Compare, ways: Path) -> None:
    native, ours = in_both(f"""
        truncate -s 32M disk.img; mkfs.ext4 -q -F disk.img; mkdir mnt; mount -o loop disk.img mnt
        {program(ways, IN_THE_IMAGE)}; umount mnt; e2fsck -fn disk.img >/dev/null 2>&1
    """)
    assert ours.lines() == native.lines()
    assert [line.split()[1:] for line in ours.output[:6]] == [["0", "8192"]] * 6


AT_ONCE = """
    truncate -s 8M disk.img; mkfs.ext4 -qF disk.img; mkdir mnt; device=$(losetup -f --show disk.img)
    begin() { mount ${1:-} $device mnt; mkdir -p mnt/d; echo old >>mnt/d/old; sync -f mnt; }
    look() { cp disk.img copy; umount mnt; e2fsck -fy copy >/dev/null 2>&1 || true
             for name; do debugfs -R "stat d/$name" copy 2>&1 | grep -c ^Inode: || true; done; }
    begin "-o sync"; grep -o "rw.*sync" /proc/self/mountinfo | grep -c "[ ,]sync"
    echo new >mnt/d/a; ln mnt/d/a mnt/d/b; look a b
    begin "-o dirsync"; mkdir mnt/d/c; ln mnt/d/old mnt/d/e; look c e
    begin; chattr +S mnt/d; echo new >mnt/d/f; mv mnt/d/e mnt/d/g; look e f g
    begin; chattr -S mnt/d; mkdir mnt/h; chattr +D mnt/h; sync -f mnt; mkdir mnt/h/i; look ../h/i
    begin; echo new >mnt/d/j; blockdev --flushbufs $device; look j
    losetup -d $device
"""


def test_what_is_on_the_disk_without_a_sync(in_both: Compare) -> None:
    """By the options sync and dirsync, the attributes S and D, and BLKFLSBUF of the device."""
    native, ours = in_both(AT_ONCE)
    assert ours.lines() == native.lines()
    assert ours.output[1:] == list("111101111")


ERRORS = r"""
os.truncate(os.open("small/img", os.O_RDWR | os.O_CREAT), 64 << 20)
subprocess.run("mkfs.ext4 -qF -E lazy_itable_init=1 small/img; mount -o loop small/img mnt",
               shell=True, check=True)
before = os.open("mnt", os.O_RDONLY)
fd = os.open("mnt/big", os.O_RDWR | os.O_CREAT)
other = os.open("mnt/big", os.O_RDONLY)
with suppress(OSError):  # an engine that has no cache of data hears of it here
    for _ in range(32):
        os.write(fd, os.urandom(1 << 20))
first = sys.argv[1]
on = {"dir": before, "ro": other, "rw": fd}
way, where = first.split(":")
print(first, result(WAYS[way], on[where]))
for again in ("fsync:ro", "fsync:rw", "fsync:dir", "syncfs:dir", "aio:rw", first):
    way, where = again.split(":")
    print(result(WAYS[way], on[where]), result(WAYS[way], os.dup(on[where])))
memory = mmap.mmap(fd, 4096)
memory[:] = b"N" * 4096
print(result(memory.flush))
subprocess.run(["umount", "mnt"])
"""


@pytest.mark.parametrize("first", ["fsync:dir", "fsync:ro", "syncfs:dir", "aio:ro"])
def test_data_that_cannot_be_stored_is_reported_to_every_caller(
    inside: Lines, ways: Path, first: str
) -> None:
    lines = inside(f"""
        mkdir small mnt; mount -t tmpfs -o size=12m none small
        {program(ways, ERRORS)} {first} 2>/dev/null
    """)
    assert lines[0] == f"{first} ENOSPC"
    assert lines[1:7] == ["ENOSPC ENOSPC"] * 6
    assert lines[7] != "0"


def test_a_running_program(inside: Lines, image: Path) -> None:
    """It is synced, and while there are syncs programs can be run."""
    lines = inside("""
        mkdir mnt; mount -o loop disk.img mnt; cp /bin/sleep /bin/true mnt
        mnt/sleep 60 & sleeper=$!
        sync mnt/sleep; echo $?; kill $sleeper
        (while test -e mnt/true; do sync mnt mnt/true; sync -f mnt; done) 2>/dev/null &
        for n in $(seq 50); do mnt/true || echo "cannot be run"; done
        rm mnt/true; wait; umount mnt
    """)
    assert lines == ["0"]


def test_a_mount_for_reading_and_a_filesystem_without_a_file(
    inside: Lines, image: Path, run_as_user: Run
) -> None:
    lines = inside("""
        mkdir mnt ro; mount -o loop disk.img mnt; mkdir mnt/one mnt/one/two
        sync mnt/one; cp disk.img first; mkdir mnt/three; sync -f mnt; cp disk.img second
        ls mnt; echo new >mnt/file; mount --bind mnt ro; mount -o remount,bind,ro ro
        sync ro/file; cp disk.img third; umount ro mnt
    """)
    assert lines == ["lost+found", "one", "three"]
    found = []
    for copy, name in (("first", "one/two"), ("second", "three"), ("third", "file")):
        run_as_user(["e2fsck", "-fy", image.parent / copy])
        stat = run_as_user(["debugfs", "-R", f"stat {name}", image.parent / copy]).stdout
        found.append(stat.split("Type: ")[1].split()[0])
    assert found == ["directory", "directory", "regular"]


def test_in_a_user_namespace_within(inside: Lines, ways: Path, image: Path) -> None:
    run = program(
        ways,
        r"""
import fcntl
subprocess.run(["mount", "-t", "loop", "none", "i"], check=True)
number = fcntl.ioctl(os.open("i/loop-control", os.O_RDWR), 0x4C82)
device = os.path.abspath(f"i/loop{number}")
subprocess.run(["losetup", device, "disk.img"], check=True)
subprocess.run(["mount", "-t", "ext4", device, "m"], check=True)
memory = stored("m/f", b"N")
for name, way in WAYS.items():
    print(name, *(result(way, os.open(path, os.O_RDONLY)) for path in ("m/f", "m")))
shutil.copyfile("disk.img", "copy")
subprocess.run(["e2fsck", "-fy", "copy"], capture_output=True)
cat = subprocess.run(["debugfs", "-R", "cat f", "copy"], capture_output=True)
print(cat.stdout.count(b"N"))
""",
    )
    lines = inside(f"mkdir i m; unshare -Urm {run}")
    assert lines[:-1] == [
        f"{name} 0 0" for name in ("fsync", "fdatasync", "aio", "aio-data", "syncfs", "sync")
    ]
    assert lines[-1] == "8192"


@pytest.mark.parametrize(
    ("fstype", "make"),
    [
        ("ntfs", "mkntfs -q -F disk.img 2>/dev/null >&2"),
        ("exfat", "mkfs.exfat disk.img >/dev/null"),
    ],
)
def test_with_other_engines(inside: Lines, ways: Path, fstype: str, make: str) -> None:
    run = program(
        ways,
        r"""
for name in ("syncfs", "sync", "fsync"):
    memory = stored("mnt/" + name, b"N")
    print(result(WAYS[name], os.open("mnt/" + name, os.O_RDONLY)))
    shutil.copyfile("disk.img", name + ".img")
    directory = os.open("mnt", os.O_RDONLY)
    print(result(WAYS[name], directory))
""",
    )
    lines = inside(f"""
        truncate -s 32M disk.img; {make}; mkdir mnt; mount -i -t {fstype} -o loop disk.img mnt
        {run}; umount mnt
        for name in syncfs sync fsync; do
            mount -i -t {fstype} -o loop,ro $name.img mnt; tr -cd N <mnt/$name | wc -c; umount mnt
        done
    """)
    assert lines == ["0"] * 6 + ["8192"] * 3


def test_sync_of_an_image_within_an_image_and_of_a_mapped_device(
    inside: Lines, ways: Path, run_as_user: Run
) -> None:
    run = program(
        ways,
        r"""
memory = stored("inner/file", b"N")
device = mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 8192)
device[:] = b"D" * 8192
os.sync()
shutil.copyfile("outer.img", "copy")
print(open("raw.img", "rb").read().count(b"D"))
""",
    )
    lines = inside(f"""
        truncate -s 8K raw.img; truncate -s 32M outer.img; mkdir outer inner
        mkfs.ext4 -qF outer.img
        mount -o loop outer.img outer; truncate -s 8M outer/inner.img; mkfs.ext4 -qF outer/inner.img
        mount -o loop outer/inner.img inner; raw=$(losetup -f --show raw.img)
        {run} $raw; umount inner outer
    """)
    assert lines == ["8192"]
    script = """
        e2fsck -fy copy >/dev/null 2>&1; debugfs -R 'dump inner.img inner.img' copy 2>/dev/null
        e2fsck -fy inner.img >/dev/null 2>&1; debugfs -R 'cat file' inner.img | tr -cd N | wc -c
    """
    assert run_as_user(script, cwd=ways).stdout == "8192\n"


def test_umount_waits_for_the_engine_whoever_syncs(inside: Lines, image: Path) -> None:
    lines = inside("""
        mkdir mnt; touch going; (while test -e going; do sync; done) &
        for n in $(seq 10); do
            mount -o loop disk.img mnt; seq 10000 >mnt/$n; umount mnt
            e2fsck -fn disk.img >/dev/null 2>&1 || echo "unclean"
        done
        rm going; wait
    """)
    assert lines == []


def test_io_uring_is_not_there(inside: Lines, ways: Path) -> None:
    run = program(ways, "print(result(libc.syscall, 425, 4, NULL))")
    assert inside(run) == ["ENOSYS"]
