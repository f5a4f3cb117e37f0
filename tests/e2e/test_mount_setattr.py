"""mount_setattr(2) of locked flags, and of a clone that only a descriptor refers to."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import Lines

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# The calls beside those of CALLS, and what is seen of an instance through a descriptor of it.
MORE = r"""
import fcntl, struct, time
RDONLY, NODEV, IDMAP = 1, 4, 0x100000
CLONE, EMPTY_PATH = 1 | os.O_CLOEXEC, 0x1000
def setattr(fd, path, flags, set=0, clear=0, userns=0):
    attributes = struct.pack("=4Q", set, clear, 0, userns)
    return show("mount_setattr", fd, path, flags, attributes, len(attributes))
def opened_at(directory, name, flags=os.O_RDWR):
    try:
        return os.open(name, flags, dir_fd=directory)
    except OSError as problem:
        return errno.errorcode[problem.errno]
def writable(directory):
    fd = opened_at(directory, "loop-control")
    if isinstance(fd, int):
        os.close(fd)
        fd = "writable"
    print(fd, flush=True)
def by_path(act, *words):
    place = os.open("one", os.O_RDONLY)
    try:
        return act(place, *words)
    finally:
        os.close(place)
def bound(directory):
    control = opened_at(directory, "loop-control")
    number = fcntl.ioctl(control, 0x4C82)
    device = opened_at(directory, f"loop{number}")
    backing = os.open("disk.img", os.O_RDWR)
    fcntl.ioctl(device, 0x4C00, backing)
    for fd in (control, device, backing):
        os.close(fd)
    return number
def image_of(number):
    try:
        with open(f"/sys/block/loop{number}/loop/backing_file") as file:
            return os.path.basename(file.read().strip())
    except FileNotFoundError:  # none of ours, though the host may have one
        return None
"""
INSTANCE = "mount -t loop none one"


def test_a_node_without_nodev_is_ours(calls: Lines) -> None:
    """The superblock itself has none, whatever the mount says: what opens is the instance's device,
    and 7:N of the host is out of reach."""
    lines = calls(
        MORE
        + """
setattr(HERE, "one", 0, 0, NODEV)
number = by_path(bound)
node = os.open(f"one/loop{number}", os.O_PATH)
opened = os.open(f"/proc/self/fd/{node}", os.O_RDONLY)
print(os.fstat(opened).st_dev == os.stat("one").st_dev, os.path.ismount("one"))
""",
        before=INSTANCE,
    )
    assert lines == ["0", "True True"]


def test_an_instance_is_not_idmapped(calls: Lines) -> None:
    """As a FUSE superblock is in a user namespace; nothing is changed by the attempt."""
    lines = calls(
        MORE
        + """
ready, done = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    assert libc.unshare(0x10000000) == 0
    os.write(ready[1], b"x")
    os.read(done[0], 1)
    os._exit(0)
os.read(ready[0], 1)
for kind in ("uid", "gid"):
    with open(f"/proc/{child}/{kind}_map", "w") as file:
        file.write("0 0 1")
userns = os.open(f"/proc/{child}/ns/user", os.O_RDONLY)
setattr(call("open_tree", HERE, "one", CLONE), "", EMPTY_PATH, IDMAP, 0, userns)
setattr(HERE, "one", 0, IDMAP, 0, userns)
tmpfs = opened("tmpfs")
config(tmpfs, CREATE)
setattr(call("fsmount", tmpfs, 1, 0), "", EMPTY_PATH, IDMAP, 0, userns)
os.write(done[1], b"x")
os.waitpid(child, 0)
by_path(writable)
""",
        before=INSTANCE,
    )
    assert lines == ["EINVAL", "EINVAL", "0", "0", "writable"]


def test_a_copy_that_only_a_descriptor_keeps(calls: Lines) -> None:
    """The instance and its bound device live as long, with attributes of the copy's own."""
    lines = calls(
        MORE
        + """
number = by_path(bound)
copy = call("open_tree", HERE, "one", CLONE)
setattr(copy, "", EMPTY_PATH, RDONLY)
writable(copy)
by_path(writable)
os.system("umount one; ls one")
print(image_of(number))
again = call("open_tree", copy, "", CLONE | EMPTY_PATH)
os.close(copy)
print(image_of(number))
device = opened_at(again, f"loop{number}", os.O_RDONLY)
os.close(again)
print(image_of(number), len(os.read(device, 4096)))
os.close(device)
while image_of(number) == "disk.img":
    time.sleep(0.01)
context = opened("loop")
config(context, CREATE)
mount = call("fsmount", context, 1, 0)
print(bound(mount) == number)
show("move_mount", mount, "", HERE, "one", 4)
os.close(context)
os.close(mount)
os.system("umount one")
print(image_of(number))
""",
        before=INSTANCE,
    )
    image = "disk.img"
    assert lines == [
        "0",
        "EROFS",
        "writable",
        image,
        image,
        f"{image} 4096",
        *("0", "True", "0", "None"),
    ]
