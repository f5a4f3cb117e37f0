"""Calls in process on images of all kinds; e2fsck is the judge of what they leave."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.ext4.filesystem import Ext4
from loopfs.ext4.inode import Inode
from loopfs.fuse.tree import Caller, Changes
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import fsck, tool

ROOT = Caller(0, 0, 1)
KINDS = (
    "-b 4096",
    "-b 1024 -O ^64bit",
    "-b 4096 -I 128",
    "-b 2048 -O inline_data,metadata_csum_seed",
    "-b 1024 -t ext2",
    "-b 4096 -t ext3 -O uninit_bg",
    "-b 1024 -O meta_bg,^resize_inode,sparse_super2",
    "-b 1024 -O ^dir_index",
)
Image = Callable[[str], Path]


def write(tree: Ext4, node: Inode, data: bytes, offset: int = 0) -> int:
    handle = tree.open(ROOT, node, os.O_RDWR)
    return tree.write(handle, offset, memoryview(data))


def read(tree: Ext4, node: Inode) -> bytes:
    return bytes(tree.read(tree.open(ROOT, node, os.O_RDONLY), 0, node.size))


def make(tree: Ext4, name: bytes, data: bytes = b"") -> Inode:
    (node, _), _ = tree.create(ROOT, tree.root(), name, 0o644, 0)
    if data:
        assert write(tree, node, data) == len(data)
    return node


@pytest.mark.parametrize("kind", KINDS)
def test_random_calls_leave_a_clean_image(image: Image, mounted: Mounted, kind: str) -> None:
    path, chance = image(kind), random.Random(kind)
    tree = mounted(path)
    root, model = tree.root(), {}
    for step in range(600):
        name = b"%d a name that takes some room" % chance.randrange(300)
        if name not in model:
            model[name] = chance.randbytes(chance.choice((0, 10, 5000, 70_000)))
            make(tree, name, model[name])
        elif step % 3 == 0:
            tree.unlink(ROOT, root, name)
            del model[name]
        elif step % 3 == 1:
            size = chance.randrange(80_000)
            tree.setattr(ROOT, tree.lookup(root, name)[0], Changes(size=size))
            model[name] = model[name][:size].ljust(size, b"\0")
        else:
            other = name + b" moved"
            tree.rename(ROOT, root, name, root, other, 0)
            model[other] = model.pop(name)
    assert {name: read(tree, tree.lookup(root, name)[0]) for name in model} == model
    tree.destroy()
    assert (found := fsck(path)) == "", found
    again = mounted(path, read_only=True)
    names = [entry[1] for entry in again.entries(again.opendir(ROOT, again.root()), 0)]
    assert sorted(names) == sorted([b".", b"..", b"lost+found", *model])
    assert {name: read(again, again.lookup(again.root(), name)[0]) for name in model} == model


def test_what_was_committed_is_replayed(image: Image, mounted: Mounted) -> None:
    path = image("-b 1024")
    tree = mounted(path)
    make(tree, b"file", b"x" * 5000)
    later = tree.fsync(tree.opendir(ROOT, tree.root()), False)
    assert later is not None
    later.work()
    make(tree, b"lost")  # never committed; the server ends without an unmount
    before = path.read_bytes()
    reader = mounted(path, read_only=True)
    assert read(reader, reader.lookup(reader.root(), b"file")[0]) == b"x" * 5000
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        make(reader, b"new")
    assert path.read_bytes() == before
    writer = mounted(path)
    assert read(writer, writer.lookup(writer.root(), b"file")[0]) == b"x" * 5000
    with pytest.raises(FileNotFoundError):
        writer.lookup(writer.root(), b"lost")
    writer.destroy()
    assert (found := fsck(path)) == "", found


def test_a_full_filesystem_leaks_nothing(image: Image, mounted: Mounted) -> None:
    path = image("-b 1024")
    tree = mounted(path)
    free, node = tree.statfs().free, make(tree, b"file")
    piece = b"x" * (1 << 20)
    while write(tree, node, piece, node.size) == len(piece):
        continue
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        write(tree, node, piece, node.size + 4096)
    tree.unlink(ROOT, tree.root(), b"file")
    assert tree.statfs().free == free
    tree.destroy()
    assert (found := fsck(path)) == "", found


def test_errors_of_names(image: Image, mounted: Mounted) -> None:
    tree = mounted(image("-b 4096"))
    root = tree.root()
    make(tree, b"n" * 255)
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        make(tree, b"n" * 256)
    with pytest.raises(FileExistsError):
        make(tree, b"n" * 255)
    tree.mkdir(ROOT, root, b"d", 0o755)
    tree.mkdir(ROOT, tree.lookup(root, b"d")[0], b"e", 0o755)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        tree.rmdir(ROOT, root, b"d")
    tree.destroy()


def test_a_block_without_room_stays_as_it_is(image: Image, mounted: Mounted) -> None:
    """It is looked through for room, and not written: its checksum must stay right."""
    calls = Direct(mounted(image("-b 1024 -O ^dir_index")))
    calls.mkdir("d")
    for n in range(61):  # which fill two blocks
        calls.write(f"d/a name of {n:13}", b"")
    for n in range(3, 8):
        calls.unlink(f"d/a name of {n:13}")
    calls.write("other", b"", sync=True)
    calls.write(f"d/{'n' * 200}", b"", sync=True)
    assert len(calls.list("d")) == 57
    with calls.node("d") as node:
        assert node.size == 3 * 1024


def test_a_feature_that_is_not_supported(image: Image, mounted: Mounted) -> None:
    path = image("-O quota")
    with pytest.raises(OSError, match="quota is supported for reading only"):
        mounted(path)
    mounted(path, read_only=True)
    assert tool("tune2fs", "-O", "mmp", image("-b 4096")).returncode == 0
    with pytest.raises(OSError, match="mmp is not supported"):
        mounted(path)
