"""fspick(2), and the reconfiguration of its filesystem."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]


def test_the_limit_of_a_picked_instance(calls: Lines) -> None:
    lines = calls(
        """
import fcntl
def add():
    with open("one/loop-control", "r+b", buffering=0) as control:
        try:
            fcntl.ioctl(control, 0x4C80, -1)
        except OSError as problem:
            print(problem.strerror)
        else:
            print("added")
context = call("fspick", HERE, "one", 1)
add()
config(context, STRING, "max", "1")
add()
config(context, RECONFIGURE)
add()
config(context, RECONFIGURE)
add()
here = call("open_tree", HERE, "one", 0)
again = call("fspick", here, "", 8)
config(again, STRING, "max", "2")
config(again, STRING, "max", "-2")
config(again, RECONFIGURE)
config(again, CREATE)
add()
add()
""",
        before="mount -t loop -o max=0 none one",
    )
    full = "No space left on device"
    assert lines == [
        full,
        "0",
        full,
        "0",
        "added",
        "0",
        full,
        "0",
        "EINVAL",
        "0",
        "EBUSY",
        "added",
        full,
    ]


def test_a_limit_below_the_present_count(calls: Lines) -> None:
    """None goes, none can be added, and those that are there work and can be removed."""
    lines = calls(
        """
import fcntl
def control(request, number=-1):
    with open("one/loop-control", "r+b", buffering=0) as node:
        try:
            return fcntl.ioctl(node, request, number)
        except OSError as problem:
            return problem.strerror
numbers = [control(0x4C80) for _ in range(3)]
context = call("fspick", HERE, "one", 1)
config(context, STRING, "max", "1")
config(context, RECONFIGURE)
print(len(os.listdir("one")), control(0x4C80))
image, device = os.open("disk.img", os.O_RDWR), os.open(f"one/loop{numbers[0]}", os.O_RDWR)
fcntl.ioctl(device, 0x4C00, image)
print(control(0x4C82) == numbers[1])
for number in numbers[1:]:
    print(control(0x4C81, number), control(0x4C80))
os.close(device)
os.system("losetup -d $PWD/one/loop%d" % numbers[0])
print(control(0x4C81, numbers[0]), control(0x4C80) in numbers)
""",
        before="mount -t loop none one",
    )
    full = "No space left on device"
    assert lines == ["0", "0", f"4 {full}", "True", *[f"0 {full}"] * 2, "0 True"]


def test_what_cannot_be_picked(calls: Lines) -> None:
    lines = calls(
        """
show("fspick", HERE, "one/loop-control", 0)
show("fspick", HERE, "two", 0)
show("fspick", HERE, "", 0)
show("fspick", HERE, "missing", 0)
show("fspick", HERE, "link", 2)
show("fspick", HERE, "link", 0)
show("fspick", HERE, "one", 16)
show("fspick", 99, "", 8)
show("fspick", HERE, 1, 8)
show("fspick", HERE, "/proc", 0)
""",
        before="mount -t loop none one; ln -s one link",
    )
    assert lines[:5] == ["EINVAL", "EINVAL", "ENOENT", "ENOENT", "EINVAL"]
    assert lines[5:] == ["fd", "EINVAL", "EBADF", "EFAULT", "fd"]


def test_another_namespace_cannot_reconfigure(inside: Lines, image: Path) -> None:
    (image.parent / "program.py").write_text("""
from calls import *
context = call("fspick", HERE, "one", 1)
config(context, STRING, "max", "9")
config(context, RECONFIGURE)
config(context, RECONFIGURE)
""")
    lines = inside("""
        mount -t loop -o max=0 none one; export PYTHONDONTWRITEBYTECODE=1
        unshare --user --map-root-user --mount python3 program.py
    """)
    assert lines == ["0", "EPERM", "EBUSY"]


def test_a_filesystem_is_made_read_only_and_back(calls: Lines) -> None:
    lines = calls(
        """
def write():
    try:
        open("one/file", "w").close()
    except OSError as problem:
        print(problem.strerror)
    else:
        print("written")
for option in ("ro", "rw"):
    context = call("fspick", HERE, "one", 1)
    config(context, STRING, "user_id", "0")
    config(context, FLAG, "allow_other")
    config(context, FLAG, option)
    config(context, RECONFIGURE)
    write()
config(call("fspick", HERE, "one", 1), FLAG, "data=journal")
os.system("umount one")
""",
        before="mount -o loop disk.img one",
    )
    assert lines == [*["0"] * 4, "Read-only file system", *["0"] * 4, "written", "EINVAL"]
