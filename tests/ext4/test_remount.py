"""Remounting read-only, and read-write again."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.ext4.errors import Damaged
from loopfs.ext4.super import OFFSET
from loopfs.filesystems.lending import REMOUNT
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import fsck, tool

Image = Callable[[str], Path]


@pytest.mark.parametrize("kind", ["-b 1024 -O mmp", "-b 4096 -O ^has_journal"])
def test_there_and_back(image: Image, mounted: Mounted, kind: str) -> None:
    path = image(kind)
    tree = mounted(path)
    tree.start()
    calls = Direct(tree)
    for n in range(3):
        calls.write(f"file {n}", b"data" * n)
        assert tree.control(2, REMOUNT, (1,)) == (1,)
        assert tree.control(2, REMOUNT, (1,)) == (0,)
        before = path.read_bytes()
        assert (found := fsck(path)) == "", found
        assert not before[OFFSET + 96] & 4, "no journal is to be replayed"
        assert calls.read(f"file {n}") == b"data" * n
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            calls.unlink(f"file {n}")
        if n == 2:
            tree.destroy()
        assert path.read_bytes() == before
        if n < 2:
            assert tree.control(2, REMOUNT, (0,)) == (1,)
    again = mounted(path)
    assert sorted(Direct(again).list()) == ["file 0", "file 1", "file 2", "lost+found"]
    again.destroy()


@pytest.mark.parametrize("kind", ["-b 1024 -O mmp", "-b 4096 -O ^has_journal", "-b 4096"])
def test_what_was_mounted_for_reading(
    image: Image, tmp_path: Path, mounted: Mounted, kind: str
) -> None:
    """A file without a name that its last server did not free is freed then."""
    path, copy = image(kind), tmp_path / "copy"
    tree = mounted(path)
    calls = Direct(tree)
    calls.write("file", b"data" * 5000)
    calls.write("gone", b"data" * 5000)
    gone, file = calls.open("gone"), calls.open("file")
    calls.unlink("gone")
    file.sync()
    shutil.copy(path, copy)
    gone.close()
    file.close()
    tree.destroy()
    if "mmp" in kind:  # else it would be waited for the machine that may have it mounted
        assert tool("tune2fs", "-f", "-E", "clear_mmp", copy).returncode == 0

    tree = mounted(copy, read_only=True, flags=os.O_RDWR)
    calls = Direct(tree)
    file = calls.open("file")
    before = copy.read_bytes()
    assert tree.control(2, REMOUNT, (0,)) == (1,)
    calls.write("other", file.read())
    file.close()
    tree.destroy()
    assert copy.read_bytes() != before
    assert (found := fsck(copy)) == "", found
    calls = Direct(mounted(copy, read_only=True))
    assert calls.read("other") == calls.read("file") == b"data" * 5000


@pytest.mark.parametrize("kind", ["-b 1024", "-b 4096 -O ^has_journal"])
def test_what_tools_write_while_it_is_only_read(
    image: Image,
    tmp_path: Path,
    mounted: Mounted,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """As with the kernel, which reads metadata from the page cache of the device."""
    path, source = image(kind), tmp_path / "source"
    source.write_bytes(b"data" * 5000)
    tree = mounted(path)
    Direct(tree).write("old", b"old" * 5000)
    tree.destroy()

    tree = mounted(path, read_only=True, flags=os.O_RDWR)
    calls = Direct(tree)
    told: list[int] = []  # whose pages and attributes the kernel drops
    monkeypatch.setattr(tree.server, "drop_pages", told.append)
    old = calls.open("old")
    assert calls.list() == ["lost+found", "old"]
    assert tool("tune2fs", "-L", "label", "-c", "7", path).returncode == 0
    for request in f"write {source} new", "set_inode_field /old mode 0100600":
        assert tool("debugfs", "-w", "-R", request, path).returncode == 0
    assert tree.control(2, REMOUNT, (0,)) == (1,)
    assert calls.read("new") == source.read_bytes()
    with calls.node("old") as node:
        assert (old.read(), node.mode) == (b"old" * 5000, 0o100600)
        assert told == [node.nodeid]
    calls.write("own", b"own" * 5000)
    old.close()
    tree.destroy()
    assert (found := fsck(path)) == "", found
    shown = tool("dumpe2fs", "-h", path).stdout
    assert "volume name:   label\n" in shown and "Maximum mount count:      7\n" in shown
    calls = Direct(mounted(path, read_only=True))
    assert (calls.read("new"), calls.read("own")) == (source.read_bytes(), b"own" * 5000)


@pytest.mark.parametrize("how", ["rm old", "another filesystem"])
def test_what_is_another_one_while_it_is_only_read(
    image: Image, mounted: Mounted, how: str
) -> None:
    path = image("-b 1024")
    tree = mounted(path)
    Direct(tree).write("old", b"old")
    tree.destroy()
    tree = mounted(path, read_only=True, flags=os.O_RDWR)
    old = Direct(tree).open("old")
    if how == "rm old":
        assert tool("debugfs", "-w", "-R", how, path).returncode == 0
    else:
        assert tool("mke2fs", "-q", "-F", "-b", "2048", path).returncode == 0
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(OSError, match="now; unmount it") as problem:
            tree.control(2, REMOUNT, (0,))
        assert problem.value.errno == errno.EBUSY
    old.close()
    tree.destroy()
    assert path.read_bytes() == before


def test_what_is_not_written_again(image: Image, mounted: Mounted) -> None:
    """What has had an error."""
    path = image("-b 1024")
    tree = mounted(path, options="errors=remount-ro")
    tree.start()
    calls = Direct(tree)
    calls.write("file", b"data")
    with tree.server.lock:
        tree.failed(Damaged("a test"))

    assert tree.control(2, REMOUNT, (1,)) == (0,)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        tree.control(2, REMOUNT, (0,))
    tree.destroy()
    assert Direct(mounted(path)).read("file") == b"data"
