"""Bad arguments for tools: each fails with the kernel's error, and the sandbox continues."""

from __future__ import annotations

import errno
import json
import os

import pytest

from tests.e2e.conftest import Lines
from tests.support.user import Run

pytestmark = pytest.mark.e2e

# After each: a good image in the same sandbox can be attached, read, written and mounted.
STILL_WORKS = """
mkfs.ext4 -q -F good.img 4M >/dev/null; mkdir -p good; g=$(losetup -f --show good.img)
cmp good.img $g; mount $g good; echo text >good/file; umount good; losetup -d $g
debugfs -R 'cat file' good.img 2>/dev/null | grep -x text >/dev/null; echo still works
"""

# Calls of ioctl(2) as Python expressions; each prints the name of its errno or its result.
PYTHON = """
import ctypes, errno, fcntl, json, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
SET_FD, CLR_FD, SET_STATUS, GET_STATUS = 0x4C00, 0x4C01, 0x4C02, 0x4C03
SET_STATUS64, GET_STATUS64, CHANGE_FD, CONFIGURE = 0x4C04, 0x4C05, 0x4C06, 0x4C0A
CTL_ADD, CTL_REMOVE, CTL_GET_FREE = 0x4C80, 0x4C81, 0x4C82
BLKGETSIZE64, BLKROGET, BLKDISCARD, BLKBSZSET = 0x80081272, 0x125E, 0x1277, 0x40081271
control = os.open("/dev/loop-control", os.O_RDWR)
number = fcntl.ioctl(control, CTL_GET_FREE)
path = f"/dev/loop{number}"
device = os.open(path, os.O_RDWR)
good = os.open("backing", os.O_RDWR | os.O_CREAT)
os.ftruncate(good, 1 << 20)
def call(fd, command, argument):
    result = libc.ioctl(fd, ctypes.c_ulong(command), ctypes.c_void_p(argument))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]
def bind(fd=None):
    return call(device, SET_FD, good if fd is None else fd)
def config(fd, **fields):
    info = dict(offset=0, sizelimit=0, encrypt=0, flags=0) | fields
    data = struct.pack("=II", fd & 0xFFFFFFFF, fields.get("block_size", 0))
    data += struct.pack("=5Q4I", 0, 0, 0, info["offset"], info["sizelimit"], 0, info["encrypt"], 0,
                        info["flags"]) + bytes(304 - 64 - 8)
    return ctypes.addressof(kept(ctypes.create_string_buffer(data.ljust(304, b"\\0"))))
buffers = []
def kept(buffer):
    buffers.append(buffer)
    return buffer
def edge():  # a pointer of which a few bytes can be read before a page that is not there
    area = libc.mmap
    area.restype = ctypes.c_void_p
    start = area(None, ctypes.c_size_t(8192), 3, 0x22, -1, ctypes.c_long(0))
    libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t(4096))
    return start + 4096 - 16
print(json.dumps([eval(text) for text in json.loads(sys.argv[1])]))
"""

BAD_POINTERS = {
    "call(device, CONFIGURE, 8)": "EFAULT",
    "call(device, CONFIGURE, 0)": "EFAULT",
    "call(device, CONFIGURE, edge())": "EFAULT",
    "call(device, CONFIGURE, 2**64 - 8)": "EFAULT",
    "bind()": 0,
    "call(device, SET_STATUS64, 8)": "EFAULT",
    "call(device, SET_STATUS64, edge())": "EFAULT",
    "call(device, SET_STATUS, 8)": "EFAULT",
    "call(device, GET_STATUS64, 8)": "EFAULT",
    "call(device, GET_STATUS64, edge())": "EFAULT",
    "call(device, GET_STATUS64, 2**63)": "EFAULT",
    "call(device, GET_STATUS64, 0)": "EINVAL",
    "call(device, GET_STATUS, 8)": "EFAULT",
    "call(device, BLKGETSIZE64, 8)": "EFAULT",
    "call(device, BLKROGET, 8)": "EFAULT",
    "call(device, BLKDISCARD, 8)": "EFAULT",
    "call(device, BLKBSZSET, 8)": "EFAULT",
    "call(device, CLR_FD, 0)": 0,
}
BAD_DESCRIPTORS = {
    "bind(999)": "EBADF",
    "bind(-1)": "EBADF",
    "bind(2**31)": "EBADF",
    "bind(999 + 2**32)": "EBADF",
    "call(device, CONFIGURE, config(999))": "EBADF",
    "call(device, CONFIGURE, config(-1))": "EBADF",
    "bind(os.open('backing', os.O_PATH))": "EBADF",
    "bind(os.open('.', os.O_RDONLY))": "EINVAL",
    "bind(os.pipe()[0])": "EINVAL",
    "bind(os.open('fifo', os.O_RDWR))": "EINVAL",
    "bind(os.open('/dev/null', os.O_RDWR))": "EINVAL",
    "bind(control)": "EINVAL",
    "bind(device)": "EBADF",
    "call(999, CTL_ADD, 5)": "EBADF",
}
BAD_VALUES = {
    "call(device, CLR_FD, 0)": "ENXIO",
    "call(device, GET_STATUS64, config(0))": "ENXIO",
    "call(device, SET_STATUS64, config(0) + 8)": "ENXIO",
    "call(device, 0x4CFF, 0)": "EINVAL",
    "call(control, 0x4CFF, 0)": "ENOTTY",  # the driver says ENOSYS; FUSE makes ENOTTY of it
    "call(control, CTL_ADD, 2**20)": "EINVAL",
    "call(control, CTL_ADD, number)": "EEXIST",
    "call(control, CTL_REMOVE, 2**19)": "ENODEV",
    "call(control, CTL_REMOVE, 2**32 - 1)": "EINVAL",
    "call(control, CTL_REMOVE, number)": "EBUSY",
    "call(device, CONFIGURE, config(good, flags=1 << 20))": "EINVAL",
    "call(device, CONFIGURE, config(good, block_size=100))": "EINVAL",
    "call(device, CONFIGURE, config(good, offset=1 << 63))": "EOVERFLOW",
    "call(device, CONFIGURE, config(good, encrypt=18))": "EINVAL",
    "bind() or bind()": "EBUSY",
}


@pytest.mark.parametrize("calls", [BAD_POINTERS, BAD_DESCRIPTORS, BAD_VALUES])
def test_bad_ioctls(inside: Lines, loopfs_run: Run, calls: dict[str, str | int]) -> None:
    script = f'mkfifo fifo; python3 -c "$PROGRAM" "$CALLS"\n{STILL_WORKS}'
    environment = {"PROGRAM": PYTHON, "CALLS": json.dumps(list(calls))}
    result = loopfs_run("set -e; " + script, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    answers, last = result.stdout.splitlines()
    assert dict(zip(calls, json.loads(answers), strict=True)) == calls
    assert last == "still works"


@pytest.mark.parametrize(
    ("backing", "said"),
    [
        ("missing", errno.ENOENT),
        ("/", errno.EISDIR),
        (".", errno.EISDIR),
        ("fifo", errno.EINVAL),
        ("/dev/null", errno.EINVAL),
        ("/proc/self/mem", None),
        ("/dev/loop-control", errno.EINVAL),
    ],
)
def test_what_losetup_cannot_attach(inside: Lines, backing: str, said: int | None) -> None:
    *lines, last = inside(f"mkfifo fifo; try losetup -f {backing}; losetup -a\n{STILL_WORKS}")
    assert lines[-1] == "status 1"
    assert said is None or lines[0].endswith(os.strerror(said))
    assert last == "still works"


@pytest.mark.parametrize(
    "content",
    [
        ":",
        "echo this is a text",
        "head -c 1M /dev/zero",
        "head -c 1M /dev/urandom",
        # an ext4 superblock with nothing of what it promises
        "mkfs.ext4 -q -F disk.img 4M >/dev/null; head -c 64K disk.img",
        # and one with nonsense in it
        "mkfs.ext4 -q -F disk.img 4M >/dev/null;"
        " head -c 64 /dev/zero | tr '\\0' '\\377' | dd of=disk.img bs=1 seek=1064 conv=notrunc"
        " status=none; cat disk.img",
    ],
)
def test_what_mount_cannot_mount(inside: Lines, content: str) -> None:
    *lines, last = inside(f"""
        {{ {content}; }} >bad.img; mkdir mnt; try mount -t ext4 -o loop bad.img mnt | tail -n 1
        try mount -o loop bad.img mnt | tail -n 1; ls mnt; losetup -a
        {STILL_WORKS}
    """)
    assert lines == ["status 32", "status 32"]
    assert last == "still works"


def test_an_empty_image(inside: Lines) -> None:
    lines = inside(f"""
        : >bad.img; d=$(losetup -f --show bad.img 2>/dev/null); blockdev --getsize64 $d
        wc -c <$d; try sh -c "/bin/echo text >$d"; try mkfs.ext4 -q $d | tail -n 1; losetup -d $d
        {STILL_WORKS}
    """)
    assert lines[:2] == ["0", "0"]
    assert "No space left on device" in lines[2]
    assert lines[3:] == ["status 1", "status 1", "still works"]


def test_an_image_that_shrinks_under_a_mount(inside: Lines) -> None:
    """Input and output errors for who uses it; the engine can be unmounted, and all goes on."""
    lines = inside(f"""
        mkfs.ext4 -q -F bad.img 16M >/dev/null; mkdir mnt; mount -o loop bad.img mnt
        seq 100000 >mnt/file; sync; truncate -s 64K bad.img
        cat mnt/* >/dev/null 2>&1 || :; (echo more >mnt/more) 2>/dev/null || :
        umount mnt 2>/dev/null || umount -l mnt; until test -z "$(losetup -a)"; do :; done
        {STILL_WORKS}
    """)
    assert lines == ["still works"]


def test_an_image_that_is_deleted_under_a_mount(inside: Lines) -> None:
    lines = inside(f"""
        mkfs.ext4 -q -F bad.img 16M >/dev/null; mkdir mnt; mount -o loop bad.img mnt
        rm bad.img; seq 100000 >mnt/file; tail -n 1 mnt/file; losetup -n -l -O BACK-FILE; umount mnt
        losetup -a
        {STILL_WORKS}
    """)
    assert lines[0] == "100000"
    assert lines[1].endswith("/bad.img (deleted)")
    assert lines[2:] == ["still works"]


FULL_DISK = """
mkdir small; mount -t tmpfs -o size=1m none small; truncate -s 8M small/disk.img
d=$(losetup -f --show small/disk.img)
"""


def test_a_full_disk_below_a_device(inside: Lines) -> None:
    lines = inside(f"""
        {FULL_DISK}
        seq 100000 | head -c 256K | tee first | dd of=$d bs=64K conv=fsync status=none
        try dd if=/dev/zero of=$d bs=64K seek=4 conv=fsync,notrunc status=none
        head -c 256K $d | cmp - first && echo first is there
        {STILL_WORKS}
        head -c 256K $d | cmp - first; losetup -d $d; head -c 256K small/disk.img | cmp - first
    """)
    assert lines[0].endswith(("No space left on device", "Input/output error"))
    assert lines[1:] == ["status 1", "first is there", "still works"]


def test_a_full_disk_below_a_filesystem(inside: Lines) -> None:
    lines = inside(f"""
        {FULL_DISK}
        mkfs.ext4 -q -O ^has_journal $d; mkdir mnt; mount $d mnt; echo first >mnt/first; sync
        umount mnt; mount $d mnt; try dd if=/dev/urandom of=mnt/file bs=64K conv=fsync status=none
        umount mnt 2>/dev/null || umount -l mnt; debugfs -R 'cat first' $d 2>/dev/null
        {STILL_WORKS}
    """)
    assert lines[0].startswith("dd: ")  # this fuse2fs says ERANGE for what it cannot name
    assert lines[-3:] == ["status 1", "first", "still works"]
