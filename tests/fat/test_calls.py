"""Calls without FUSE: aliases of names, attributes, ioctls, and notifications."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from loopfs.fat import ioctl
from loopfs.fat.filesystem import Vfat
from loopfs.fat.inode import ATTR_ARCH, ATTR_RO, ATTR_SYS, ROOT_INO
from loopfs.fat.options import Options
from loopfs.fat.volume import Volume
from loopfs.file_device import FileDevice
from loopfs.fuse.tree import Caller, Changes
from tests.fat.calls import ROOT, Calls
from tests.fat.images import MIB, Memory, Notices, fsck, made, mounted


def fresh(options: str = "", geometry: str = "FAT32") -> Calls:
    return Calls(mounted(Memory(made(geometry)), options))


def told(calls: Calls) -> Notices:
    server = calls.tree.server
    assert isinstance(server, Notices)
    return server


# --- names that mean the same --------------------------------------------------------


def test_only_the_true_spelling_may_be_remembered() -> None:
    calls = fresh()
    calls.write("/A long Name.txt", b"")
    root = calls.tree.root()
    for name, remembered in ((b"A long Name.txt", True), (b"a LONG name.TXT", False)):
        _, valid = calls.tree.lookup(root, name)
        assert bool(valid) == remembered
    for name in (b"ALONGN~1.TXT", b"A long Name.txt.."):
        node, valid = calls.tree.lookup(root, name)
        assert node.name == b"A long Name.txt" and valid == 0
    (_, valid), handle = calls.tree.create(ROOT, root, b"dots...", 0o644, os.O_RDWR)
    assert valid == 0 and handle.node.name == b"dots"


def test_a_file_moved_by_another_spelling_has_a_new_node_id() -> None:
    calls = fresh()
    calls.write("/name", b"x")
    node = calls.node("/name")
    before, number = node.nodeid, node.ino
    calls.rename("/name", "/other")
    assert node.nodeid == before
    calls.rename("/OTHER", "/third")
    assert node.nodeid != before and node.ino == number
    assert calls.tree.is_stale(node, before) and not calls.tree.is_stale(node, node.nodeid)
    assert told(calls).names == []


def test_an_open_file_keeps_its_node_id_and_the_kernel_is_notified() -> None:
    calls = fresh()
    calls.write("/name", b"x")
    file, node = calls.open("/name"), calls.node("/name")
    before = node.nodeid
    calls.rename("/NAME", "/other")
    assert node.nodeid == before and not calls.tree.is_stale(node, before)
    assert {(ROOT_INO, b"name"), (ROOT_INO, b"NAME")} <= set(told(calls).names)
    told(calls).names.clear()
    calls.unlink("/OTHER")
    assert told(calls).names == [(ROOT_INO, b"other")]
    assert file.read() == b"x"
    file.close()
    assert calls.tree.is_stale(node, before)


def test_a_name_over_another_keeps_the_spelling_that_is_there() -> None:
    calls = fresh()
    calls.write("/There.txt", b"old")
    calls.write("/new", b"new")
    calls.rename("/new", "/THERE.TXT")
    assert calls.list() == ["There.txt"] and calls.read("/there.txt") == b"new"


def test_a_short_name_that_another_has() -> None:
    calls = fresh("check=s")
    calls.write("/FOO.TXT", b"")
    with pytest.raises(FileExistsError):
        calls.write("/foo.txt", b"")
    assert calls.list() == ["FOO.TXT"]


def test_case_of_the_io_character_set() -> None:
    calls = fresh("utf8=no,iocharset=iso8859-1")
    parent = calls.tree.root()
    calls.tree.mknod(ROOT, parent, b"\xe9t\xe9", 0o100644, 0)
    node, _ = calls.tree.lookup(parent, b"\xc9T\xc9")
    assert node.name == b"\xe9t\xe9"


# --- attributes ------------------------------------------------------------------


def test_immutable_system_files() -> None:
    calls = fresh("sys_immutable")
    calls.write("/file", b"x")
    file = calls.open("/file")
    calls.tree.ioctl(ROOT, file.handle, ioctl.FAT_IOCTL_SET_ATTRIBUTES, 0, b"\x24\0\0\0", False)
    assert calls.node("/file").attr & ATTR_SYS
    for call in (
        lambda: calls.open("/file", os.O_WRONLY),
        lambda: calls.unlink("/file"),
        lambda: calls.rename("/file", "/other"),
        lambda: calls.set("/file", Changes(mtime=0)),
    ):
        with pytest.raises(PermissionError):
            call()
    assert calls.read("/file") == b"x"


def test_attributes_by_ioctl() -> None:
    calls = fresh()
    calls.write("/file", b"x")
    handle = calls.open("/file").handle

    def ask(cmd: int, data: bytes = b"", caller: Caller = ROOT) -> tuple[int, bytes]:
        return calls.tree.ioctl(caller, handle, cmd, 0, data, False)

    assert ask(ioctl.FAT_IOCTL_GET_ATTRIBUTES) == (0, bytes([ATTR_ARCH, 0, 0, 0]))
    assert ask(ioctl.FAT_IOCTL_SET_ATTRIBUTES, bytes([ATTR_RO | 8 | 16, 0, 0, 0])) == (0, b"")
    assert calls.node("/file").attr == ATTR_RO
    assert told(calls).attributes == [handle.node.nodeid]
    assert ask(ioctl.FAT_IOCTL_GET_VOLUME_ID) == (0, (0x12345678).to_bytes(4, "little"))
    with pytest.raises(PermissionError):
        ask(ioctl.FAT_IOCTL_SET_ATTRIBUTES, bytes(4), Caller(1000, 1000, 1))
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        ask(0x5401)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTTY)):
        ask(ioctl.VFAT_IOCTL_READDIR_BOTH)


@pytest.mark.parametrize("cmd", ioctl.READDIRS)
def test_reading_a_directory_by_ioctl(cmd: int) -> None:
    calls = fresh()
    calls.mkdir("/d")
    calls.write("/d/A long name", b"")
    calls.write("/d/SHORT.TXT", b"")
    handle = calls.tree.opendir(ROOT, calls.node("/d"))
    short_only, layout = ioctl.READDIRS[cmd]
    found = []
    while True:
        result, out = calls.tree.ioctl(ROOT, handle, cmd, 0, b"", False)
        pair = [layout.unpack_from(out, at) for at in (0, layout.size)]
        assert len(out) == 2 * layout.size == cmd >> 16 & 0x3FFF
        if not result:
            assert pair[0][2] == 0
            break
        found.append(tuple(name[:length] for _, _, length, name in pair))
    long = b"" if short_only else b"A long name"
    assert found == [(b".", b""), (b"..", b""), (b"ALONGN~1", long), (b"SHORT.TXT", b"")]
    list(calls.tree.entries(handle, 0))  # rewinddir(3)
    assert calls.tree.ioctl(ROOT, handle, cmd, 0, b"", False)[0] == 1


def test_trimming() -> None:
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.write("/a", b"\1" * 50_000)
    calls.write("/b", b"\2" * 50_000)
    calls.unlink("/a")
    space = calls.tree.statfs()
    handle = calls.open("/b").handle
    ask = struct.pack("=QQQ", 0, (1 << 64) - 1, 0)
    _, out = calls.tree.ioctl(ROOT, handle, ioctl.FITRIM, 0, ask, False)
    assert struct.unpack("=QQQ", out)[1] == space.free * space.frsize
    assert b"\1" * 600 not in device.data and calls.read("/b") == b"\2" * 50_000
    for bad in ((1 << 40, 1 << 40, 0), (0, 100, 0)):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            calls.tree.ioctl(ROOT, handle, ioctl.FITRIM, 0, struct.pack("=QQQ", *bad), False)
    handle.node.opens -= 1
    calls.tree.destroy()
    assert (found := fsck(device.data)) == "", found


def test_discard_of_what_is_removed() -> None:
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device, "discard"))
    calls.write("/a", b"\1" * 50_000)
    calls.unlink("/a")
    assert sum(length for _, length in device.discarded) == 50_176
    assert b"\1" * 600 not in device.data


def test_times_of_reading_and_writing() -> None:
    calls = fresh()
    calls.write("/file", b"x")
    node = calls.node("/file")
    calls.set("/file", Changes(atime=10**18, mtime=10**18 + 999_999_999))
    atime, mtime, ctime = calls.tree.getattr(node).times
    assert mtime == ctime == 10**18 and atime // 10**9 % 86400 == 0
    calls.read("/file")
    assert calls.tree.getattr(node).times[0] > atime
    unchanged = Vfat(calls.tree.volume, atime=False)
    before = node.adate = 1 << 5 | 1
    Calls(unchanged).read("/file")
    assert node.adate == before


def test_what_was_reserved_goes_with_the_last_close() -> None:
    device = Memory(made("FAT16"))
    calls = Calls(mounted(device))
    free = calls.tree.statfs().free
    file = calls.open("/file", os.O_CREAT | os.O_RDWR)
    calls.tree.fallocate(file.handle, 1, 0, 50_000)
    assert calls.tree.statfs().free < free and calls.size("/file") == 0
    file.write(b"x")
    file.close()
    unit = calls.tree.volume.cluster
    assert calls.tree.statfs().free == free - 1 and unit
    calls.tree.destroy()
    assert (found := fsck(device.data)) == "", found


def test_orphans_at_the_unmount() -> None:
    device = Memory(made("FAT16"))
    calls = Calls(mounted(device))
    free = calls.tree.statfs().free
    calls.write("/file", bytes(50_000))
    calls.open("/file")
    calls.unlink("/file")
    calls.tree.destroy()
    assert (found := fsck(device.data)) == "", found
    assert mounted(device).statfs().free == free


def test_directories_that_are_not_looked_up_are_not_held() -> None:
    calls = fresh()
    for path in ("/a", "/a/b", "/a/b/c"):
        calls.mkdir(path)
    inodes = [calls.node(path) for path in ("/a", "/a/b", "/a/b/c")]
    for inode in inodes:
        calls.tree.known(inode)
    for inode in inodes[:2]:
        calls.tree.forgotten(inode)
    assert inodes[0].dir is not None, "something in it is known"
    calls.tree.forgotten(inodes[2])
    assert all(inode.dir is None for inode in inodes)
    assert calls.list("/a/b") == ["c"]


# --- a window of a file ----------------------------------------------------------------


def test_a_window_of_a_file(tmp_path: Path) -> None:
    """A partition's: nothing outside of it changes, and zeros are holes."""
    path, image = tmp_path / "disk", made("FAT16")
    path.write_bytes(b"before" * 1000 + image + b"after" * 1000)
    with path.open("r+b", buffering=0) as disk:
        device = FileDevice(disk.fileno(), len(image), 6000)
        volume = Volume(device, Options(), log=lambda sentence: None)
        calls = Calls(Vfat(volume))
        calls.tree.known(calls.tree.root())
        calls.write("/file", b"data" * 5000)
        calls.truncate("/file", 2 * MIB)
        file = calls.open("/file")
        file.sync()
        file.close()
        calls.tree.destroy()
        for offset, length in ((len(image), 1), (len(image) - 1, 2), (1 << 40, 1)):
            for call in (
                lambda: device.read(offset, length),  # noqa: B023 called at once
                lambda: device.write(offset, bytes(length)),  # noqa: B023
                lambda: device.discard(offset, length),  # noqa: B023
                lambda: device.read_into(offset, memoryview(bytearray(length))),  # noqa: B023
            ):
                with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                    call()
    raw = path.read_bytes()
    assert raw.startswith(b"before" * 1000) and raw.endswith(b"after" * 1000)
    inside = raw[6000:-5000]
    assert (found := fsck(inside)) == "", found
    content = b"data" * 5000 + bytes(2 * MIB - 20000)
    assert Calls(mounted(Memory(bytearray(inside)))).read("/file") == content
