"""Calls without FUSE on images of all kinds; e2fsck checks the result."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.ext4 import ioctl, xattr
from loopfs.ext4.ea_inode import Large
from loopfs.ext4.filesystem import Ext4
from loopfs.ext4.inode import (
    FL_CASEFOLD,
    FL_DIRSYNC,
    FL_ENCRYPT,
    FL_EXTENTS,
    FL_SYNC,
    FL_VERITY,
    Inode,
)
from loopfs.ext4.ioctl import FS_IOC_GETFLAGS, get_flags
from loopfs.filesystems.lending import STAT
from loopfs.fuse.tree import FACE, Caller, Changes
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE
from loopfs.uapi.fs import FS_IOC_SETFLAGS
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import fsck
from tests.support.patience import scaled

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


def test_a_fifo_that_is_to_be_a_device(image: Image, mounted: Mounted) -> None:
    """Of the process that was told of, and once."""
    path = image("-b 1024")
    tree = mounted(path)
    tree.making[7] = stat.S_IFBLK, 0x801
    made = [
        tree.mknod(ROOT._replace(pid=pid), tree.root(), b"%d" % n, stat.S_IFIFO | 0o640, 0)[0]
        for n, pid in enumerate((8, 7, 7))
    ]
    fifo, device = stat.S_IFIFO | 0o640, stat.S_IFBLK | 0o640
    assert [(node.mode, node.rdev) for node in made] == [(fifo, 0), (device, 0x801), (fifo, 0)]
    assert tree.making == {}
    tree.destroy()
    fsck(path)


def test_the_memory_devices_open(image: Image, mounted: Mounted) -> None:
    """And what could take them for files does not."""
    tree = mounted(image("-b 1024"))
    root = tree.root()

    def device(name: bytes, rdev: int) -> tuple[Inode, int]:
        return tree.mknod(ROOT, root, name, stat.S_IFCHR | 0o666, rdev)

    zero, valid = device(b"zero", 0x105)
    handle = tree.open(ROOT, zero, os.O_RDWR | os.O_TRUNC)
    assert (valid, bytes(tree.read(handle, 1 << 40, 5))) == (0, bytes(5))
    assert tree.write(handle, 0, memoryview(b"text")) == 4
    for call in (
        lambda: tree.fallocate(handle, 0, 0, 4096),
        lambda: tree.ioctl(ROOT, handle, FS_IOC_GETFLAGS, 0, b"", False),
        lambda: tree.control(zero.ino, FS_IOC_SETFLAGS, (0x10,)),
        lambda: tree.setattr(ROOT, zero, Changes(size=0)),
    ):
        with pytest.raises(OSError, match=r"No such device|Inappropriate|Invalid"):
            call()
    full, _ = device(b"full", 0x107)
    with pytest.raises(OSError, match="No space"):
        tree.write(tree.open(ROOT, full, os.O_WRONLY), 0, memoryview(b"text"))
    with pytest.raises(OSError, match="No such device or address"):
        tree.open(ROOT, device(b"tty", 0x500)[0], os.O_RDWR)
    assert device(b"sda", 0x801)[1], "its name may be remembered"
    asked = []

    def purpose(thread: int, ino: int) -> int:
        asked.append((thread, ino))
        return len(asked) - 1

    tree.purpose = purpose
    wanted = [zero.nodeid, zero.nodeid | FACE, zero.nodeid | FACE]
    assert [tree.face(ROOT, zero) for _ in wanted] == wanted
    assert asked == [(ROOT.pid, zero.ino)] * 3
    shown = {name: node for _, name, _, kind, node in tree.entries(tree.opendir(ROOT, root), 0)}
    assert shown[b"zero"] is None, "no lookup is spared"
    assert tree.attr_of_face(zero, tree.getattr(zero)).mode == stat.S_IFREG | 0o666
    assert tree.control(zero.ino, STAT, ())[:5] == (zero.mode, 1, 0, 0, 0x105)


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
    with pytest.raises(OSError, match="noload") as caught:
        mounted(path, options="noload")
    assert caught.value.errno == errno.EINVAL
    assert path.read_bytes() == before
    writer = mounted(path)
    assert read(writer, writer.lookup(writer.root(), b"file")[0]) == b"x" * 5000
    with pytest.raises(FileNotFoundError):
        writer.lookup(writer.root(), b"lost")
    writer.destroy()
    assert (found := fsck(path)) == "", found


def test_what_must_be_on_the_disk_before_it_is_answered(image: Image, mounted: Mounted) -> None:
    path = image("-b 1024")
    tree = mounted(path, options="commit=900")
    directory, file = tree.mkdir(ROOT, tree.root(), b"d", 0o755)[0], make(tree, b"f")
    assert tree.settle() is None
    directory.flags |= FL_DIRSYNC
    make(tree, b"elsewhere")
    assert tree.settle() is None
    tree.mkdir(ROOT, directory, b"e", 0o755)
    settle = tree.settle()
    assert settle is not None
    settle()
    assert tree.settle() is None
    reader = mounted(path, read_only=True)
    reader.lookup(reader.lookup(reader.root(), b"d")[0], b"e")
    file.flags |= FL_SYNC
    write(tree, file, b"data")
    settle = tree.settle()
    assert settle is not None
    settle()
    reader = mounted(path, read_only=True)
    assert read(reader, reader.lookup(reader.root(), b"f")[0]) == b"data"
    read(tree, file)  # when it was read is nothing to sync
    assert tree.settle() is None
    tree.volume.dirsync = True
    make(tree, b"g")
    assert tree.settle() is not None
    tree.destroy()


def test_a_transaction_is_written_though_nothing_follows(image: Image, mounted: Mounted) -> None:
    """One that was made because it was due, by the last call for a long time."""
    path = image("-b 1024")
    tree = mounted(path, options="commit=900")
    assert tree._commits is not None
    tree._commits.most = 0
    tree.start()
    tree.mkdir(ROOT, tree.root(), b"d", 0o755)
    with tree.server.lock:
        tree.answered()
    end = time.monotonic() + scaled(30)
    while "d" not in Direct(mounted(path, read_only=True)).list():
        assert time.monotonic() < end
    tree.destroy()


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


def test_blocks_are_mapped_anew(image: Image, mounted: Mounted) -> None:
    """chattr -e and +e: without any flag a file is not immutable, either."""
    path = image("-b 1024")
    tree = mounted(path)
    data, holes = random.randbytes(40_000), b"holes"

    def set_flags(node: Inode, flags: int) -> None:
        ioctl.set_flags(tree.volume, node, flags)

    node = make(tree, b"small", data[:3000])
    set_flags(node, FL_EXTENTS | 0x10)
    set_flags(node, 0)
    assert (get_flags(node), read(tree, node)) == (0, data[:3000])
    write(tree, node, data)
    assert node.indirect
    set_flags(node, FL_EXTENTS)
    assert (get_flags(node), read(tree, node), node.indirect) == (FL_EXTENTS, data, {})
    other = make(tree, holes, b"text")
    write(tree, other, b"text", 8192)
    for far in (node, other):
        with pytest.raises(OSError, match="not supported"):
            set_flags(far, 0x40)
        assert get_flags(far) == FL_EXTENTS | 0x40, "the rest is set"
    tree.destroy()
    assert (found := fsck(path)) == "", found
    tree = mounted(image("-b 1024 -t ext2"))
    with pytest.raises(OSError, match="Invalid"):
        set_flags(make(tree, b"mapped", data), FL_EXTENTS)
    tree.destroy()


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


def test_what_cannot_be_read_truly_stays_as_it_is(image: Image, mounted: Mounted) -> None:
    """Files that use encrypt, verity and casefold; others do on any such filesystem."""
    path = image("-b 1024 -O encrypt,verity,casefold")
    tree = mounted(path)
    calls, root, volume = Direct(tree), tree.root(), tree.volume
    before = tree.statfs().free
    calls.write("fixed", b"f" * 5000)
    calls.fallocate("fixed", FALLOC_FL_KEEP_SIZE, 65536, 4096)  # as the hashes are
    for name, flag in (("secret", FL_ENCRYPT), ("folded", FL_CASEFOLD)):
        calls.mkdir(name)
        with calls.node(name) as node:
            if flag == FL_ENCRYPT:
                context = {bytes((0, 9)) + b"c": bytes((1, 1, 4, 0)) + b"k" * 24}
                xattr.replace(volume, node, context)
            node.flags |= flag
            volume.touch(node)
    with calls.node("fixed") as node:
        node.flags |= FL_VERITY
        volume.touch(node)
    calls.mkdir("other")
    tree.destroy()
    tree = mounted(path)
    calls, root = Direct(tree), tree.root()
    unsupported, never = os.strerror(errno.EOPNOTSUPP), os.strerror(errno.EPERM)
    for name in ("secret", "folded"):
        assert stat.S_ISDIR(tree.getattr(tree.lookup(root, name.encode())[0]).mode)
        acts: tuple[Callable[[str], object], ...] = (
            calls.list,
            lambda name: calls.read(f"{name}/x"),
            lambda name: calls.write(f"{name}/x", b""),
            lambda name: calls.rename("other", f"{name}/x"),
            lambda name: calls.rename(name, "other/x"),
            calls.rmdir,
        )
        for act in acts:
            with pytest.raises(OSError, match=unsupported):
                act(name)
    calls.rename("secret", "secret again")
    assert sorted(calls.list()) == ["fixed", "folded", "lost+found", "other", "secret again"]
    with pytest.raises(OSError, match=unsupported):
        calls.read("fixed")
    with pytest.raises(OSError, match=never):
        calls.truncate("fixed", 0)
    with pytest.raises(OSError, match=never):
        calls.write("fixed", b"")
    calls.setxattr("fixed", "user.a", b"a")
    calls.unlink("fixed")
    assert before - tree.statfs().free == 3
    tree.destroy()
    assert (found := fsck(path)) == "", found


def test_large_attributes_have_inodes(image: Image, mounted: Mounted) -> None:
    """Their own, or those that the kernel lets files share; each goes with its last entry."""
    path = image("-b 1024 -O ea_inode")
    tree = mounted(path)
    calls = Direct(tree)
    calls.write("first", b"")
    free, files = tree.statfs().free, tree.statfs().files_free
    value, other = os.urandom(20_000), os.urandom(65_536)
    calls.write("second", b"")
    calls.setxattr("first", "user.large", value)
    calls.setxattr("second", "user.large", b"to be replaced" * 200)
    assert free - tree.statfs().free == 20 + 3
    with calls.node("first") as first, calls.node("second") as second:
        (shared,) = (one for one in (first.xattrs or {}).values() if isinstance(one, Large))
        xattr.replace(tree.volume, second, {b"user.large": shared})
        assert second.sectors == 40
    assert files - tree.statfs().files_free == 2
    tree.destroy()
    assert (found := fsck(path)) == "", found
    tree = mounted(path)
    calls = Direct(tree)
    calls.setxattr("first", "user.more", b"m" * 700)
    calls.setxattr("second", "user.large", other)
    assert calls.xattrs("second") == {"user.large": other}
    calls.unlink("second")
    assert calls.xattrs("first") == {"user.large": value, "user.more": b"m" * 700}
    tree.destroy()
    assert (found := fsck(path)) == "", found
    tree = mounted(path)
    Direct(tree).unlink("first")
    assert (tree.statfs().free, tree.statfs().files_free) == (free, files + 1)
    tree.destroy()
    assert (found := fsck(path)) == "", found


def test_a_feature_that_is_not_supported(image: Image, mounted: Mounted) -> None:
    path = image("-O quota")
    with pytest.raises(OSError, match="quota is supported for reading only"):
        mounted(path)
    mounted(path, read_only=True)
