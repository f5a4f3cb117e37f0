"""fsopen(2) and its kin, and mounts that have no name: programs, and today's util-linux.

mount(8) of util-linux 2.39 and newer takes this way; where there is none, its calls are made
by hand here.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

PROGRAM = Path(__file__).with_name("detached.c")

# --- the program of the thread -----------------------------------------------------


@pytest.fixture
def detached(image: Path) -> Path:
    """The program, compiled."""
    need(shutil.which("gcc"), "no compiler")
    program = image.parent / "detached"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, PROGRAM], check=True)
    return program


@pytest.mark.parametrize("api", ["old", "new"])
def test_an_instance_without_a_name(inside: Lines, detached: Path, api: str) -> None:
    """Once the filesystem is unmounted, nothing is left of it."""
    seen, limit, kind, *rest = inside(f"""
        {detached} {api} disk.img one; findmnt -no FSTYPE one; name=$(findmnt -no SOURCE one)
        echo text >one/file; umount one; losetup -a
        test "$(stat -L -c %u /sys/block/${{name#/dev/}} 2>/dev/null)" != 0
        debugfs -R 'cat file' disk.img 2>/dev/null; e2fsck -fn disk.img >log 2>&1
    """)
    assert (seen, limit) == ("block special", "No space left on device")
    assert (kind, rest) == ("fuse.ext4", ["text"])


def test_in_a_nested_namespace(inside: Lines, detached: Path) -> None:
    lines = inside(f"""
        unshare --user --map-root-user --mount sh -euc '{detached} new disk.img one; cat one/early'
        mount -o loop,ro disk.img two; umount two  # a mount waits for the engine of the one before
        e2fsck -fn disk.img >log 2>&1
        debugfs -R 'cat early' disk.img 2>/dev/null
    """)
    assert lines[2:] == ["no name", "no name"]


# --- fsopen, fsconfig, fsmount -------------------------------------------------------


def test_a_detached_instance_ends_with_its_descriptor(calls: Lines) -> None:
    lines = calls("""
import fcntl, time
def made():
    context = opened("loop")
    config(context, CREATE)
    mount = call("fsmount", context, 1, 0)
    os.close(context)
    control = os.open("loop-control", os.O_RDWR, dir_fd=mount)
    number = fcntl.ioctl(control, 0x4C82)
    os.close(control)
    return mount, f"/sys/block/loop{number}"
def there(path):
    try:
        return os.stat(path).st_uid == 0  # and not the host's
    except FileNotFoundError:
        return False
mount, path = made()
listed(mount)
copy = os.dup(mount)
os.close(mount)
assert there(path)
os.close(copy)
while there(path):
    time.sleep(0.01)
context = opened("loop")
config(context, CREATE)
os.close(context)
""")
    assert lines[0] == "0"
    assert lines[1].startswith("loop-control loop")
    assert lines[2:] == ["0"]


def test_a_copy_keeps_its_instance(calls: Lines) -> None:
    """open_tree(2) of it or of one of its nodes, a descriptor below, a mapping, a working
    directory, a descriptor on its way: each as long as it is there, and no longer."""
    lines = calls("""
import fcntl, mmap, socket, time
def mounted():
    global path
    assert libc.mount(b"none", b"one", b"loop", 0, None) == 0
    with open("one/loop-control", "r+b", buffering=0) as control:
        number = fcntl.ioctl(control, 0x4C82)
    path = f"/sys/block/loop{number}"
    return f"one/loop{number}"
def there():
    try:
        return os.stat(path).st_uid == 0  # and not the host's
    except FileNotFoundError:
        return False
home = os.getcwd()
def umount(flags=0):
    return libc.umount2(b"one", flags)
mounted()
copy = call("open_tree", HERE, "one", 1)
assert umount() == 0 and there()
directory = os.open(".", os.O_RDONLY, dir_fd=copy)
os.close(copy)
assert there() and len(os.listdir(directory)) == 2
os.close(directory)
while there():
    time.sleep(0.01)

node = mounted()
copy = call("open_tree", HERE, node, 1)
open("place", "w").close()
show("move_mount", copy, "", HERE, "place", 4)
os.close(copy)
assert umount() == 0 and there()
with open("place", "rb") as file:  # stat(2) of the place says "regular file"
    print(oct(os.fstat(file.fileno()).st_mode))
assert libc.umount2(b"place", 0) == 0 and not there(), "umount(2) waits for its end"

with open("backing", "w+b") as backing, open(mounted(), "r+b", buffering=0) as device:
    backing.truncate(4096)
    fcntl.ioctl(device, 0x4C00, backing.fileno())
    pages = mmap.mmap(device.fileno(), 4096)
assert umount() == -1 and umount(2) == 0 and there()
pages[:4] = b"text"
pages.close()
while there():
    time.sleep(0.01)
print(open("backing").read(4))

mounted()
os.chdir("one")
assert libc.umount2(b"../one", 2) == 0 and there() and len(os.listdir(".")) == 2
os.chdir(home)
while there():
    time.sleep(0.01)

mounted()
here, other = socket.socketpair()
control = os.open("one/loop-control", os.O_RDWR)
socket.send_fds(here, [b"x"], [control])
os.close(control)
assert umount(2) == 0 and there()
here.close()
other.close()
while there():
    time.sleep(0.01)
print("gone")
""")
    assert lines == ["0", "0o60600", "text", "gone"]


def test_mount_setattr_of_an_instance(calls: Lines) -> None:
    """Flags of the mount, by the kernel; ids are not mapped, as it says of what cannot."""
    lines = calls(
        """
import struct
def change(place, what, userns=0, path="", clear=0, flags=0x1000):
    return show("mount_setattr", place, path, flags, struct.pack("4Q", what, clear, 0, userns), 32)
def flags():
    os.system("findmnt -no VFS-OPTIONS one")
def say(function, *arguments):
    try:
        function(*arguments)
    except OSError as problem:
        print(errno.errorcode[problem.errno])
    else:
        print("done")
change(HERE, 1 | 8, path="one", flags=0)
flags()
say(os.chmod, "one/loop-control", 0o600)
say(os.unlink, "one/loop9")
say(os.mkdir, "one/new")
change(HERE, 2, path="one", clear=1 | 8, flags=0)
flags()
say(os.chmod, "one/loop-control", 0o600)
change(HERE, 1 << 40, path="one", flags=0)
change(HERE, 1, path="one/loop-control", flags=0)
change(HERE, 1, path="missing", flags=0)
copy = call("open_tree", HERE, "one", 1)
change(copy, 4)
userns = os.open("/proc/self/ns/user", os.O_RDONLY)
change(copy, 0x100000, userns)
show("move_mount", copy, "", HERE, "two", 4)
os.close(copy)
os.system("umount one; findmnt -no VFS-OPTIONS two; umount two; ls two")
""",
        before="mount -t loop none one",
    )
    assert lines[:2] == ["0", "ro,noexec,relatime"]
    assert lines[2:5] == ["EROFS"] * 3
    assert lines[5:8] == ["0", "rw,nosuid,relatime", "done"]
    assert lines[8:12] == ["EINVAL", "EINVAL", "ENOENT", "0"]
    assert lines[12] in ("EINVAL", "EPERM")
    assert lines[13:] == ["0", "rw,nosuid,nodev,relatime"]


def test_links_beside_the_place_of_an_instance(calls: Lines) -> None:
    """They are where move_mount(2) first puts it, if it does."""
    lines = calls("""
import fcntl
os.makedirs("dev/mine")
context = opened("loop")
config(context, FLAG, "links")
config(context, CREATE)
mount = call("fsmount", context, 1, 0)
place = os.open("dev", os.O_PATH)
show("move_mount", mount, "", HERE, "one/missing", 4)
show("move_mount", mount, "", HERE, "disk.img", 4)
show("move_mount", mount, "", place, "mine", 4)
show("move_mount", HERE, "dev/mine", HERE, "two", 0)
show("move_mount", HERE, "two", HERE, "dev/mine", 0)
control = os.open("dev/mine/loop-control", os.O_RDWR)
number = fcntl.ioctl(control, 0x4C82)
assert os.readlink(f"dev/loop{number}") == f"mine/loop{number}"
fcntl.ioctl(control, 0x4C81, number)
print(os.listdir("dev"))
""")
    assert lines == ["0", "0", "ENOENT", "EINVAL", *["0"] * 3, "['mine']"]


def test_what_fsopen_refuses(calls: Lines) -> None:
    lines = calls("""
show("fsopen", "loop", 2)
show("fsopen", "x" * 5000, 0)
show("fsopen", 1, 0)
show("fsopen", "strange", 0)
show("fsopen", "loop", 0)
show("fsopen", "ext4", 1)
show("fsopen", "tmpfs", 1)
assert not os.get_inheritable(opened("loop"))
assert os.get_inheritable(call("fsopen", "loop", 0))
""")
    assert lines == ["EINVAL", "EINVAL", "EFAULT", "ENODEV", "fd", "fd", "fd"]


def test_the_phases_of_a_context(calls: Lines) -> None:
    lines = calls("""
context = opened("loop", max="1", source="name")
show("fsmount", context, 0, 0)
config(context, RECONFIGURE)
config(context, CREATE)
config(context, CREATE)
config(context, STRING, "max", "1")
show("fsmount", context, 0, 1 << 31)
show("fsmount", context, 2, 0)
show("fsmount", context, 0, 0)
show("fsmount", context, 0, 0)
""")
    assert lines == ["EINVAL", "EBUSY", "0", "EBUSY", "EBUSY", "EINVAL", "EINVAL", "fd", "EBUSY"]


def test_a_failed_context(calls: Lines) -> None:
    """Nothing more can be done with it, and nothing is left of it."""
    lines = calls("""
context = opened("ext4", source="/dev/null")
config(context, CREATE)
context = opened("ext4", source="missing")
config(context, CREATE)
config(context, CREATE)
config(context, FLAG, "ro")
show("fsmount", context, 0, 0)
config(opened("ext4"), CREATE)
""")
    assert lines == ["ENOTBLK", "ENOENT", "EBUSY", "EBUSY", "EINVAL", "EINVAL"]


def test_parameters_are_checked_at_once(calls: Lines) -> None:
    """And what was wrong is told to whom reads the context, a message at a time."""
    lines = calls("""
context = opened("loop")
for key, value in (("max", "x"), ("strange", "1"), ("source", None), ("max", None)):
    config(context, FLAG if value is None else STRING, key, value)
messages(context)
config(context, STRING, "source", "one")
config(context, STRING, "source", "two")
messages(context)
context = opened("ext4")
config(context, STRING, "strange", "1")
config(context, STRING, "errors", "explode")
config(context, STRING, "errors", "remount-ro")
config(context, STRING, "source", "missing")
config(context, CREATE)
messages(context)
""")
    assert lines == [
        *["EINVAL"] * 4,
        "e loop: Bad value for 'max'",
        "e loop: Unknown parameter 'strange'",
        "e loop: Non-string source",
        "e loop: Bad value for 'max'",
        "0",
        "EINVAL",
        "e loop: Multiple sources",
        "EINVAL",
        "EINVAL",
        "0",
        "0",
        "ENOENT",
        "e ext4: Unknown parameter 'strange'",
        "e ext4: Bad value for 'errors'",
        "e missing: Can't lookup blockdev",
    ]


def test_bad_arguments_of_fsconfig(calls: Lines) -> None:
    lines = calls("""
context = opened("loop")
config(context, FLAG)
config(context, FLAG, "ro", "x")
config(context, STRING, "max")
config(context, STRING, "max", "1", 1)
config(context, STRING, "x" * 256, "1")
config(context, STRING, "max", 1)
config(context, STRING, 1, "1")
config(context, PATH, "source", "/", -1)
config(context, PATH, "source", "/", HERE)
config(context, FD, "source", None, 0)
config(context, CREATE, "max")
config(context, 99)
config(99, FLAG, "ro")
config(-1, FLAG, "ro")
config(0, FLAG, "ro")
config(os.pipe()[0], FLAG, "ro")
config(context, CREATE)
""")
    assert lines[:5] == ["EINVAL"] * 5
    assert lines[5:7] == ["EFAULT", "EFAULT"]
    assert lines[7:11] == ["EINVAL"] * 4
    assert lines[11:] == ["ENOTSUP", "EBADF", "EINVAL", "EINVAL", "EINVAL", "0"]


def test_duplicates_are_the_same_context(calls: Lines) -> None:
    """By dup(2), by fork(2): until the superblock is made."""
    lines = calls("""
context = opened("loop")
other = os.dup(context)
config(other, STRING, "max", "0")
os.close(other)
if os.fork() == 0:
    config(context, STRING, "source", "child")
    os._exit(0)
os.wait()
config(context, STRING, "source", "again")
config(context, CREATE)
mount = call("fsmount", context, 1, 0)
call("move_mount", mount, "", HERE, "one", 4)
os.close(mount)
os.system("findmnt -no SOURCE one; umount one")
""")
    assert lines == ["0", "0", "EINVAL", "0", "child"]


def test_another_context_keeps_working(calls: Lines) -> None:
    """What is not ours is the kernel's."""
    lines = calls("""
context = opened("tmpfs", size="1m")
config(context, STRING, "strange", "1")
config(context, CREATE)
mount = call("fsmount", context, 1, 1)
show("move_mount", mount, "", HERE, "one", 4)
os.close(mount)
os.system("findmnt -no FSTYPE,VFS-OPTIONS one; umount one")
""")
    assert [" ".join(line.split()) for line in lines] == ["EINVAL", "0", "0", "tmpfs ro,relatime"]


def test_options_and_attributes_of_a_filesystem(calls: Lines) -> None:
    lines = calls(
        """
import sys
device, = open("device").read().split()
context = opened("ext4", source=device)
config(context, FLAG, "ro")
config(context, FLAG, "norecovery")
config(context, CREATE)
mount = call("fsmount", context, 1, 2 | 8 | 0x10)
copy = call("open_tree", mount, "", 0x1000 | 1)
show("move_mount", mount, "", HERE, "one", 4)
show("move_mount", copy, "", HERE, "two", 4)
os.close(mount)
os.close(copy)
os.system("findmnt -no SOURCE,OPTIONS one | sed s:loop[0-9]*:loop: ; ls two; umount one; ls two")
os.system("umount two")
""",
        before="losetup -f --show disk.img >device",
    )
    assert lines[:5] == ["0"] * 5
    source, options = lines[5].split()
    assert source == "/dev/loop"
    assert {"nosuid", "noexec", "noatime", "ro"} <= set(options.split(","))
    assert lines[6:] == ["lost+found", "lost+found"]


def test_a_second_mount_has_the_same_superblock(calls: Lines) -> None:
    """And another type than the first mount's is refused, as by the kernel."""
    lines = calls(
        """
device, = open("device").read().split()
config(opened("ext3", source=device), CREATE)
context = opened("ext4", source=device)
config(context, CREATE)
mount = call("fsmount", context, 1, 0)
show("move_mount", mount, "", HERE, "two", 4)
os.close(context)
os.close(mount)
os.system("echo text >two/file; umount one; cat two/file; umount two")
""",
        before="losetup -f --show disk.img >device; mount $(cat device) one",
    )
    assert lines == ["EBUSY", "0", "0", "text"]


def test_a_device_is_free_when_its_context_is_closed(calls: Lines) -> None:
    """A mount that fails at its last step is tried again: the engine may not have ended yet."""
    lines = calls(
        """
device, = open("device").read().split()
for _ in range(10):
    context = opened("ext4", source=device)
    config(context, CREATE)
    os.close(context)
""",
        before="losetup -f --show disk.img >device",
    )
    assert lines == ["0"] * 10


def test_an_engine_that_mounts_by_fusermount(calls: Lines, image: Path) -> None:
    """It has the connection only after the mount can be seen."""
    need(shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse"), "no exfat")
    lines = calls(
        """
device, = open("device").read().split()
for _ in range(20):
    context = opened("exfat", source=device)
    assert call("fsconfig", context, CREATE, None, None, 0) == 0
    mount = call("fsmount", context, 1, 0)
    assert call("move_mount", mount, "", HERE, "one", 4) == 0
    os.close(context)
    os.close(mount)
    os.system("umount one")
""",
        before="truncate -s 4M fat.img; mkfs.exfat fat.img >log; losetup -f --show fat.img >device",
    )
    assert lines == []


def test_a_host_device_is_not_mounted(calls: Lines) -> None:
    """A file that is no block device is none to the kernel, either."""
    lines = calls("""
for fstype in ("ext4", "squashfs"):
    config(opened(fstype, source="/dev/null"), CREATE)
""")
    assert lines == ["ENOTBLK", "ENOTBLK"]
