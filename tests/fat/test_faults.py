"""Devices that fail, and full volumes: the caller gets the error, and nothing is damaged."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from loopfs.fat.inode import ATTR_ARCH, ATTR_DIR
from loopfs.fuse.tree import Changes
from tests.fat.calls import Calls
from tests.fat.images import GEOMETRIES, Memory, fsck, made, mounted


class Failing(Memory):
    """A device whose writes fail from the Nth on, or up to it.

    Attributes:
        left: writes that are made before; None for all.
        broken: how many fail then.
    """

    left: int | None = None
    broken = 1 << 30
    code = errno.EIO

    def fails(self, kind: str, offset: int) -> int:
        if kind != "write" or self.left is None:
            return 0
        if self.left > 0:
            self.left -= 1
            return 0
        if self.broken <= 0:
            return 0
        self.broken -= 1
        return self.code


def volume() -> tuple[Failing, Calls]:
    device = Failing(made("FAT32"))
    calls = Calls(mounted(device))
    calls.mkdir("/d")
    calls.write("/d/a", b"a" * 5000)
    calls.write("/d/b with a long name", b"b" * 3000)
    calls.write("/c", b"c" * 100)
    return device, calls


CHANGES: list[Callable[[Calls], object]] = [
    lambda calls: calls.write("/new file", b"n" * 4000),
    lambda calls: calls.write("/d/a", b"A" * 9000),
    lambda calls: calls.mkdir("/d/new directory"),
    lambda calls: calls.unlink("/d/a"),
    lambda calls: calls.rename("/d/a", "/a moved"),
    lambda calls: calls.rename("/c", "/d/a"),
    lambda calls: calls.rename("/c", "/c2"),
    lambda calls: calls.rename("/c", "/d/a", 2),
    lambda calls: calls.rename("/d", "/D renamed"),
    lambda calls: calls.truncate("/d/a", 100),
    lambda calls: calls.truncate("/d/a", 20000),
    lambda calls: calls.set("/c", Changes(mode=0o555)),
]


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_one_write_fails_and_later_ones_do_not(change: int) -> None:
    """The call fails, and after a sync the image is what the volume has."""
    failed = 0
    for left in range(12):
        device, calls = volume()
        device.left, device.broken = left, 1
        try:
            CHANGES[change](calls)
        except OSError as problem:
            if problem.errno != errno.EIO:
                raise
            failed += 1
        device.left = None
        seen = calls.snapshot()
        calls.tree.destroy()
        assert (found := fsck(device.data)) == "", found
        assert Calls(mounted(Memory(device.data))).snapshot() == seen
    assert failed


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_the_device_fails_for_good(code: int) -> None:
    for change in CHANGES:
        device, calls = volume()
        device.left, device.code = 0, code
        with pytest.raises(OSError, match=os.strerror(code)):
            change(calls)
    file = calls.open("/d/b with a long name")
    with pytest.raises(OSError, match=os.strerror(code)):
        file.sync()
    with pytest.raises(OSError, match=os.strerror(code)):
        calls.tree.destroy()


def test_a_sync_that_fails() -> None:
    device, calls = volume()
    device.fails = lambda kind, offset: errno.EIO if kind == "sync" else 0  # type: ignore[method-assign]
    file = calls.open("/c")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.sync()


def test_reads_that_fail() -> None:
    device, calls = volume()
    file = calls.open("/d/a")
    device.fails = lambda kind, offset: errno.EIO if kind == "read" else 0  # type: ignore[method-assign]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        file.read()
    assert not calls.tree.volume.read_only, "that is no damage"


def test_a_read_does_not_fail_for_its_atime() -> None:
    device, calls = volume()
    calls.node("/c").adate = 0
    device.left = 0
    assert calls.read("/c") == b"c" * 100
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        calls.tree.volume.write_back()
    device.left = None
    calls.tree.volume.write_back()
    assert calls.tree.volume.unwritten == set()


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_full_to_the_last_byte(geometry: str) -> None:
    device = Memory(made(geometry))
    calls = Calls(mounted(device))
    space = calls.tree.statfs()
    left = space.free * space.frsize
    file = calls.open("/fill", os.O_CREAT | os.O_RDWR)
    at = 0
    while at < left:
        at += file.write(bytes([at >> 16 & 255]) * 100_001, at)
    assert at == left == calls.size("/fill")
    assert calls.tree.statfs().free == 0
    more: list[Callable[[], object]] = [
        lambda: file.write(b"x", at),
        lambda: calls.mkdir("/d"),
        lambda: calls.truncate("/fill", at + 1),
        lambda: calls.tree.fallocate(file.handle, 1, 0, at + 1),
    ]
    for call in more:
        with pytest.raises(OSError, match="No space"):
            call()
    calls.write("/empty", b"")  # which needs none
    file.close()
    assert calls.size("/fill") == at
    calls.unlink("/fill")
    assert calls.tree.statfs().free == space.free
    calls.tree.destroy()
    assert (found := fsck(device.data)) == "", found


def test_the_fixed_root_is_full() -> None:
    device = Memory(made("FAT16"))
    calls = Calls(mounted(device))
    for n in range(511):  # and the volume's label
        calls.write(f"/F{n}", b"")
    with pytest.raises(OSError, match="No space"):
        calls.write("/one too many", b"")
    calls.unlink("/F7")
    calls.write("/G", b"")
    calls.tree.destroy()
    assert (found := fsck(device.data)) == "", found


def test_a_directory_has_65536_slots() -> None:
    calls = Calls(mounted(Memory(made("FAT32"))))
    # A file that has the contents of a directory, and becomes one.
    entries = (b"F%d" % n for n in range(2, 65536))
    slots = [b".".ljust(11), b"..".ljust(11), *(name.ljust(11) for name in entries)]
    attributes = [ATTR_DIR, ATTR_DIR, *[ATTR_ARCH] * 65534]
    raw = [name + bytes([attr]) + bytes(20) for name, attr in zip(slots, attributes, strict=True)]
    calls.write("/d", b"".join(raw))
    directory = calls.node("/d")
    directory.attr = ATTR_DIR
    calls.tree.volume.save(directory)
    assert len(calls.list("/d")) == 65534
    with pytest.raises(OSError, match="No space"):
        calls.write("/d/F", b"")
    calls.unlink("/d/F77")
    calls.write("/d/F", b"")
