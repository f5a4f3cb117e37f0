"""Changes of an instance's directory: unlink, rename, partitions added and removed."""

from __future__ import annotations

import errno
import stat
import struct
from pathlib import Path

from loopfs.uapi import fuse, loop
from loopfs.uapi.loop import LO_FLAGS_PARTSCAN, LoopInfo64
from tests.filesystems.conftest import Mounted, configure, names

EXCHANGE, WHITEOUT = 2, 4

# --- unlink and rename (patch 2/8) -----------------------------------------------------------


def unlink(mounted: Mounted, name: bytes) -> int:
    return mounted.kernel.ask(fuse.FUSE_UNLINK, name + b"\0").code


def rename(mounted: Mounted, name: bytes, to: bytes, flags: int = 0) -> int:
    body = fuse.RENAME2_IN.pack(1, flags) + name + b"\0" + to + b"\0"
    return mounted.kernel.ask(fuse.FUSE_RENAME2, body).code


def test_unlink_removes_an_unused_device(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    assert unlink(mounted, b"loop8") == errno.EBUSY
    mounted.close(handle)
    mounted.told.clear()
    assert unlink(mounted, b"loop8") == 0
    assert unlink(mounted, b"loop8") == errno.ENOENT
    assert sorted(names(mounted)) == [b"loop-control"]
    assert mounted.told == [("remove", "loop8")]
    assert mounted.control(loop.LOOP_CTL_ADD, 8) == 8


def test_a_bound_device_is_not_unlinked(mounted: Mounted, bound: int) -> None:
    mounted.close(bound)
    assert unlink(mounted, b"loop8") == errno.EBUSY


def test_the_control_node_stays_where_it_is(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    assert unlink(mounted, b"loop-control") == errno.EPERM
    assert rename(mounted, b"loop-control", b"other") == errno.EPERM
    assert rename(mounted, b"loop8", b"loop-control") == errno.EPERM
    assert sorted(names(mounted)) == [b"loop-control", b"loop8"]


def test_a_renamed_device_is_the_same_device(mounted: Mounted, bound: int) -> None:
    inode = mounted.filesystem.nodes.by_name[b"loop8"].ino
    mounted.told.clear()
    assert rename(mounted, b"loop8", b"disk") == 0
    assert sorted(names(mounted)) == [b"disk", b"loop-control"]
    assert mounted.filesystem.nodes.by_name[b"disk"].ino == inode
    assert mounted.told == [("remove", "loop8")], "no link in /dev leads to it any more"
    assert mounted.control(loop.LOOP_CTL_ADD, 8) == -errno.EEXIST
    assert rename(mounted, b"disk", b"loop9") == 0
    assert mounted.control(loop.LOOP_CTL_ADD, 9) == -errno.EEXIST, "its name is taken"
    assert rename(mounted, b"loop9", b"loop8", 1) == 0
    assert mounted.told[-1] == ("add", "loop8")
    assert mounted.control(loop.LOOP_CTL_ADD, 9) == 9


def test_a_rename_replaces_only_what_is_unused(mounted: Mounted, bound: int) -> None:
    for number in (9, 10):
        mounted.control(loop.LOOP_CTL_ADD, number)
    assert rename(mounted, b"loop9", b"loop8") == errno.EBUSY
    assert rename(mounted, b"loop8", b"loop8") == 0
    assert rename(mounted, b"loop9", b"loop10") == 0
    assert sorted(names(mounted)) == [b"loop-control", b"loop10", b"loop8"]
    assert mounted.control(loop.LOOP_CTL_REMOVE, 10) == -errno.ENODEV, "it was the victim"
    assert mounted.control(loop.LOOP_CTL_REMOVE, 9) == 0
    assert sorted(names(mounted)) == [b"loop-control", b"loop8"]


def test_two_devices_exchange_their_names(mounted: Mounted, bound: int) -> None:
    """simple_rename_exchange(): none of them goes, so one may be bound."""
    mounted.control(loop.LOOP_CTL_ADD, 9)
    nodes = mounted.filesystem.nodes
    inodes = [nodes.by_name[name].ino for name in (b"loop8", b"loop9")]
    mounted.told.clear()
    assert rename(mounted, b"loop8", b"loop9", EXCHANGE) == 0
    assert [nodes.by_name[name].ino for name in (b"loop9", b"loop8")] == inodes
    assert mounted.told == [("remove", "loop8"), ("remove", "loop9")]
    assert mounted.control(loop.LOOP_CTL_REMOVE, 9) == 0
    assert sorted(names(mounted)) == [b"loop-control", b"loop9"]
    mounted.control(loop.LOOP_CTL_ADD, 10)
    assert rename(mounted, b"loop10", b"loop9", EXCHANGE) == 0
    assert rename(mounted, b"loop10", b"loop8") == 0
    assert nodes.by_name[b"loop8"].ino == inodes[0]
    assert mounted.told[-1] == ("add", "loop8")


def test_renames_that_are_refused(mounted: Mounted) -> None:
    """The control node's EPERM comes before a flag's EINVAL."""
    mounted.control(loop.LOOP_CTL_ADD, 8)
    assert rename(mounted, b"loop8", b"disk", EXCHANGE) == errno.ENOENT
    assert rename(mounted, b"loop8", b"disk", WHITEOUT) == errno.EINVAL
    for flags in (EXCHANGE, WHITEOUT):
        assert rename(mounted, b"loop8", b"loop-control", flags) == errno.EPERM
        assert rename(mounted, b"loop-control", b"loop8", flags) == errno.EPERM
    assert rename(mounted, b"loop8", b"loop9p1") == errno.EPERM, "a scan may need the name"
    assert rename(mounted, b"loop7", b"disk") == errno.ENOENT


# --- partitions -----------------------------------------------------------------------------


def write_table(image: Path) -> None:
    """A boot sector with one partition, of sectors 16 to 47."""
    entry = struct.pack("<8B2I", 0, 0, 0, 0, 0x83, 0, 0, 0, 16, 32)
    data = bytearray(image.read_bytes())
    data[:512] = bytes(446) + entry.ljust(64, b"\0") + b"\x55\xaa"
    image.write_bytes(data)


def test_partitions_appear_and_vanish_with_their_disk(mounted: Mounted, image: Path) -> None:
    write_table(image)
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    mounted.told.clear()
    assert configure(mounted, handle, image, LoopInfo64(flags=LO_FLAGS_PARTSCAN)) == 0
    node = mounted.filesystem.nodes.by_name[b"loop8p1"]
    assert (node.ino, node.kind) == (11 + (1 << 24), stat.S_IFBLK)
    part = mounted.handle(b"loop8p1")
    content = image.read_bytes()
    assert mounted.read(part, 0, 1 << 16).data == content[16 * 512 : 48 * 512]
    assert mounted.write(part, 31 * 512, b"x" * 1024) == 512, "cut at the partition's end"
    assert unlink(mounted, b"loop8p1") == errno.EPERM
    assert mounted.ioctl(handle, loop.LOOP_CLR_FD) == 0
    mounted.close(handle)
    assert b"loop8p1" in names(mounted), "open partitions keep their disk"
    mounted.close(part)
    assert sorted(names(mounted)) == [b"loop-control", b"loop8"]
    assert mounted.told == [("add", "loop8p1"), ("remove", "loop8p1")]
