"""Who holds which bytes of a device: the table of loopfs/driver/pages.py, with a program that has
a device open and mapped while it is mounted, changed and detached."""

from __future__ import annotations

import shutil

import pytest

from tests.e2e.conftest import Lines
from tests.support.skip import need

pytestmark = pytest.mark.e2e

# What each program begins with. ``dev`` is a device of img, which is open as ``fd``.
BEGIN = """
import ctypes, errno, fcntl, mmap, os, struct, subprocess
def run(*words):
    return subprocess.run(words, capture_output=True, text=True)
def out(*words):
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
def said(call, *arguments):
    try:
        call(*arguments)
        return "0"
    except OSError as problem:
        return errno.errorcode[problem.errno]
def image(start, length):
    fd = os.open("img", os.O_RDONLY)
    try:
        return os.pread(fd, length, start)
    finally:
        os.close(fd)
def attach(*options):
    return out("losetup", "-f", "--show", *options, "img")
"""
SMALL = "truncate -s 1M img"
EXT4 = "truncate -s 16M img; mkfs.ext4 -q -F -b 4096 img; mkdir mnt"


def program(inside: Lines, setup: str, text: str) -> list[str]:
    """Run a Python program in a sandbox, after a shell script; the lines that it printed."""
    return inside(f"{setup}\ncat > program.py <<'END'\n{BEGIN}{text}\nEND\npython3 program.py")


# --- what changes the meaning of a page ------------------------------------------------------

CHANGES = {
    "LOOP_CLR_FD": "fcntl.ioctl(fd, 0x4C01, 0)",
    "LOOP_SET_STATUS64": """
status = bytearray(232); fcntl.ioctl(fd, 0x4C05, status)
struct.pack_into("<Q", status, 24, 4096); fcntl.ioctl(fd, 0x4C04, status)""",
    "LOOP_SET_CAPACITY": "os.truncate('img', 1 << 19); fcntl.ioctl(fd, 0x4C07, 0)",
    "LOOP_SET_BLOCK_SIZE": "fcntl.ioctl(fd, 0x4C09, 4096)",
    "BLKFLSBUF": "fcntl.ioctl(fd, 0x1261, 0)",
    "BLKBSZSET": "fcntl.ioctl(fd, 0x40081271, struct.pack('i', 512))",
    "BLKPG": """
part = struct.pack("qqi64s64s4x", 1 << 19, 1 << 18, 1, b"", b"")
buffer = ctypes.create_string_buffer(part, len(part))
fcntl.ioctl(fd, 0x1269, struct.pack("iiiP", 1, 0, len(part), ctypes.addressof(buffer)))""",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stored_is_in_the_image_before_a_change(inside: Lines, change: str) -> None:
    lines = program(
        inside,
        SMALL,
        f"""
fd = os.open(attach(), os.O_RDWR)
pages = mmap.mmap(fd, 1 << 20)
pages[8192:12288] = b"a" * 4096
{CHANGES[change]}
print(image(8192, 4096) == b"a" * 4096)
""",
    )
    assert lines == ["True"]


def test_a_scan_sees_a_table_that_was_stored(inside: Lines) -> None:
    need(shutil.which("sfdisk") is not None, "sfdisk is not installed")
    lines = program(
        inside,
        r"truncate -s 4M img table; printf 'label: dos\nsize=1M\n' | sfdisk -q table",
        """
dev = attach("-P")
fd = os.open(dev, os.O_RDWR)
pages = mmap.mmap(fd, 4 << 20)
pages[:512] = open("table", "rb").read(512)
fcntl.ioctl(fd, 0x125F, 0)
print([name for name in os.listdir("/dev") if name.startswith(os.path.basename(dev) + "p")] != [])
""",
    )
    assert lines == ["True"]


@pytest.mark.parametrize("number", [0x127F, 0x1277], ids=["BLKZEROOUT", "BLKDISCARD"])
@pytest.mark.parametrize("where", ["disk", "partition"])
def test_a_zeroed_range_stays_zeroed(inside: Lines, number: int, where: str) -> None:
    """Whichever node has the dirty pages."""
    lines = program(
        inside,
        r"truncate -s 4M img; printf 'label: dos\nstart=2048,size=2M\n' | sfdisk -q img",
        f"""
dev = attach("-P")
disk, part = (os.open(name, os.O_RDWR) for name in (dev, dev + "p1"))
pages = mmap.mmap(part, 2 << 20)
pages[:] = b"a" * (2 << 20)
fd, start = (disk, 1 << 20) if "{where}" == "disk" else (part, 0)
fcntl.ioctl(fd, {number}, struct.pack("QQ", start + 4096, 4096))
print(pages[4096:8192] == bytes(4096), pages[:4096] + pages[8192:] == b"a" * ((2 << 20) - 4096))
os.fsync(part)
print(image((1 << 20) + 4096, 4096) == bytes(4096), image(1 << 20, 4096) == b"a" * 4096)
""",
    )
    assert lines == ["True True", "True True"]


def test_a_size_is_announced_without_storing_a_byte(inside: Lines) -> None:
    """A mapping that is longer than the device can use it once it has grown, and no page has
    changed, the last one neither."""
    lines = program(
        inside,
        SMALL,
        """
dev = attach()
fd = os.open(dev, os.O_RDWR)
os.truncate("img", 2 << 20)
pages = mmap.mmap(fd, 1 << 20)
pages[-4096:] = b"a" * 4096
run("losetup", "-c", dev)
longer = mmap.mmap(fd, 2 << 20)
print(pages[-4096:] == b"a" * 4096, longer[-1:] == bytes(1))
longer[-4096:] = b"b" * 4096
run("blockdev", "--flushbufs", dev)
print(image((1 << 20) - 4096, 4096) == b"a" * 4096, image((2 << 20) - 4096, 4096) == b"b" * 4096)
""",
    )
    assert lines == ["True True", "True True"]


# --- mounting and unmounting -------------------------------------------------------------------


@pytest.mark.parametrize("holder", ["disk", "partition"])
def test_a_mount_sees_what_was_stored(inside: Lines, holder: str) -> None:
    lines = program(
        inside,
        r"""
        truncate -s 16M fs; truncate -s 20M img; mkfs.ext4 -q -F fs; mkdir mnt
        printf 'label: dos\nstart=2048,size=16M\n' | sfdisk -q img""",
        f"""
dev = attach("-P")
holder, start = (dev, 1 << 20) if "{holder}" == "disk" else (dev + "p1", 0)
fd = os.open(holder, os.O_RDWR)
pages = mmap.mmap(fd, start + (16 << 20))
pages[start:] = open("fs", "rb").read()
print(run("mount", "-t", "ext4", dev + "p1", "mnt").returncode)
print(run("umount", "mnt").returncode, run("e2fsck", "-fn", dev + "p1").returncode)
""",
    )
    assert lines == ["0", "0 0"]


def test_a_mount_fails_if_what_was_stored_cannot_be_written(inside: Lines) -> None:
    lines = program(
        inside,
        "mkdir mnt small; mount -t tmpfs -o size=2m none small; truncate -s 16M small/img; "
        "ln -s small/img img; mkfs.ext4 -q -F -O ^has_journal img; "
        "cat /dev/zero >small/rest 2>log || :",
        """
dev = attach()
fd = os.open(dev, os.O_RDWR)
pages = mmap.mmap(fd, 16 << 20)
for start in range(8 << 20, (8 << 20) + (1 << 16), 4096):  # so few are not written by themselves
    pages[start:start + 4096] = os.urandom(4096)
print("No space left" in run("mount", "-t", "ext4", dev, "mnt").stderr)
print(run("mount", "-t", "ext4", dev, "mnt").returncode)
""",
    )
    assert lines == ["True", "0"]


@pytest.mark.parametrize("holder", ["disk", "partition"])
def test_an_older_opener_reads_what_the_mount_has_written(inside: Lines, holder: str) -> None:
    lines = program(
        inside,
        r"""
        truncate -s 16M fs; truncate -s 17M img; mkfs.ext4 -q -F fs; mkdir mnt
        printf 'label: dos\nstart=2048,size=16M\n' | sfdisk -q img
        dd if=fs of=img bs=1M seek=1 conv=notrunc status=none""",
        f"""
dev = attach("-P")
name = dev if "{holder}" == "disk" else dev + "p1"
start = 0 if "{holder}" == "disk" else 1 << 20
fd = os.open(name, os.O_RDONLY)
size = (17 << 20) - start
pages = mmap.mmap(fd, size, prot=mmap.PROT_READ)
before = bytes(pages)
print(before == image(start, size) == os.pread(fd, size, 0))
out("mount", dev + "p1", "mnt")
open("mnt/file", "wb").write(os.urandom(300000))
out("umount", "mnt")
print(before != image(start, size), bytes(pages) == image(start, size) == os.pread(fd, size, 0))
""",
    )
    assert lines == ["True", "True True"]


def test_what_a_mounted_filesystem_uses_is_its_own(inside: Lines) -> None:
    """Every way to write it from beside is EBUSY; to look at it is none."""
    lines = program(
        inside,
        EXT4,
        """
dev = attach()
mapped = os.open(dev, os.O_RDWR)
pages = mmap.mmap(mapped, 16 << 20)
out("mount", dev, "mnt")
fd = os.open(dev, os.O_RDWR)
block = bytes(4096)
libc = ctypes.CDLL(None, use_errno=True)
def fallocate():
    if libc.fallocate(fd, 3, ctypes.c_long(8192), ctypes.c_long(4096)):
        raise OSError(ctypes.get_errno(), "")
print(said(os.pwrite, fd, block, 4096), said(os.pwrite, fd, bytes(512), 1024))
print(said(fallocate))
print(said(fcntl.ioctl, fd, 0x127F, struct.pack("QQ", 8192, 4096)))
print(said(fcntl.ioctl, fd, 0x1277, struct.pack("QQ", 8192, 4096)))
pages[8192:12288] = b"x" * 4096
print(said(pages.flush, 8192, 4096))
pages[8192:12288] = b"x" * 4096
print(said(os.fsync, mapped))
print(run("e2fsck", "-fn", dev).returncode < 4)
print(run("tune2fs", "-O", "^has_journal", dev).returncode)
print(run("blockdev", "--getsize64", dev).returncode, run("dumpe2fs", "-h", dev).returncode)
open("mnt/file", "w").write("hello")
pages[8192:12288] = b"x" * 4096
out("umount", "mnt")
print(said(os.fsync, mapped))
print(run("e2fsck", "-fn", "img").returncode, b"x" * 4096 not in image(0, 16 << 20))
print(said(os.pwrite, fd, bytes(1024), 0), said(os.pwrite, fd, image(8192, 4096), 8192))
""",
    )
    assert lines == [
        "EBUSY EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "EBUSY",
        "True",
        "1",
        "0 0",
        "EBUSY",
        "0 True",
        "0 0",
    ]


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_the_boot_block_and_what_follows_the_filesystem_are_not(
    inside: Lines, block_size: int
) -> None:
    lines = program(
        inside,
        f"truncate -s 17M img; mkfs.ext4 -q -F -b {block_size} img 16M; mkdir mnt",
        """
dev = attach()
out("mount", dev, "mnt")
open("mnt/one", "w").write("hello")
fd = os.open(dev, os.O_RDWR)
print(os.pwrite(fd, b"b" * 1024, 0), os.pwrite(fd, b"e" * 4096, 16 << 20))
os.fsync(fd)
open("mnt/two", "w").write("hello")
os.sync()
print(image(0, 1024) == b"b" * 1024, image(16 << 20, 4096) == b"e" * 4096)
out("umount", "mnt")
print(image(0, 1024) == b"b" * 1024, image(16 << 20, 4096) == b"e" * 4096)
print(run("e2fsck", "-fn", dev).returncode)
""",
    )
    assert lines == ["1024 4096", "True True", "True True", "0"]


def test_the_rest_of_a_disk_is_written_while_a_partition_is_mounted(inside: Lines) -> None:
    lines = program(
        inside,
        r"""
        truncate -s 20M img; mkdir mnt
        printf 'label: dos\nstart=2048,size=8M\nsize=1M\n' | sfdisk -q img
        """,
        """
dev = attach("-P")
out("mkfs.ext4", "-q", dev + "p1")
out("mount", dev + "p1", "mnt")
disk, second = os.open(dev, os.O_RDWR), os.open(dev + "p2", os.O_RDWR)
print(os.pwrite(disk, b"d" * 512, 512), os.pwrite(second, b"s" * 512, 0))
print(said(os.pwrite, disk, bytes(4096), (1 << 20) + 4096))
print(said(os.pwrite, disk, bytes(512), 18 << 20))
dd = run("dd", "if=/dev/zero", "of=" + dev, "bs=1M", "count=2")
print("Device or resource busy" in dd.stderr)
out("umount", "mnt")
print(run("e2fsck", "-fn", dev + "p1").returncode, image(512, 512) == bytes(512))
""",
    )
    assert lines == ["512 512", "EBUSY", "0", "True", "0 True"]


def test_a_store_that_was_refused_does_not_fail_the_next_mount(inside: Lines) -> None:
    lines = program(
        inside,
        EXT4,
        """
dev = attach()
out("mount", dev, "mnt")
fd = os.open(dev, os.O_RDWR)
pages = mmap.mmap(fd, 16 << 20)
pages[8192:12288] = b"x" * 4096
out("umount", "mnt")
print(run("mount", dev, "mnt").returncode, run("umount", "mnt").returncode)
out("mount", dev, "mnt")
pages[8192:12288] = b"x" * 4096
out("umount", "mnt")
more = os.open(dev, os.O_RDWR)
pages.close()  # for which the kernel says EIO to who is next
os.close(fd)
print(run("mount", dev, "mnt").returncode, run("umount", "mnt").returncode)
""",
    )
    assert lines == ["0 0", "0 0"]


def test_a_mount_for_reading_refuses_no_writer(inside: Lines) -> None:
    lines = program(
        inside,
        EXT4,
        """
dev = attach()
out("mount", "-o", "ro", dev, "mnt")
fd = os.open(dev, os.O_RDWR)
print(said(os.pwrite, fd, image(4096, 4096), 4096))
out("umount", "mnt")
""",
    )
    assert lines == ["0"]
