"""The data about copies, and the child's description of /sys."""

from __future__ import annotations

import os

from loopfs import syscalls
from loopfs.engines.copies import Copies, Place
from loopfs.engines.umount_copy import Umount
from loopfs.mountinfo import parse
from loopfs.sandbox.sysfs import described, understood
from loopfs.uapi.mount import AT_FDCWD


def test_nothing_is_known_of_the_callers_own() -> None:
    copies = Copies()
    assert not copies.device_numbers()
    assert not copies.magic
    assert not copies.of_trees


def test_others_are_added() -> None:
    copies = Copies({5: 1}, 7, Place(9, 1))
    assert copies.device_numbers() == {7, 9}
    copies.add_sysfs(8)
    copies.add_dev(10)
    assert (set(copies.sysfs), set(copies.devs)) == ({7, 8}, {9, 10})
    assert copies.dev == Place(9, 1)


def test_which_umounts_are_for_us() -> None:
    some = Umount(-1, (7,), (9,), False)
    assert [number for number in range(12) if some.concerns(number)] == [7, 9]
    assert Umount(-1, (), (), True).concerns(3)


def test_what_the_child_says() -> None:
    views = {"block": (51, 4), "class/block": (52, 5), "/proc/partitions": (53, 6)}
    numbers = {"block": 51, "class/block": 52, "/proc/partitions": 53}
    assert understood(described(views, own=False)) == (None, numbers)
    own = syscalls.statx_dev(AT_FDCWD, "/sys")
    assert understood(described(views, own=True)) == (own, numbers)
    assert understood("") == (None, {})


def test_a_mounts_id() -> None:
    with open("/proc/self/mountinfo", "rb") as table:
        ids = {mount.place: mount.mount_id for mount in parse(table)}
    assert syscalls.mount_id(AT_FDCWD, "/proc") == ids["/proc"]
    fd = os.open("/proc/self", os.O_PATH)
    assert syscalls.mount_id(fd) == ids["/proc"]
    os.close(fd)
