"""Damaged and hostile images: errnos, in bounded time and memory."""

from __future__ import annotations

import errno
import stat
import tracemalloc
from collections import Counter

import pytest

from loopfs.fuse.tree import Caller
from loopfs.iso9660 import volume
from loopfs.iso9660.options import Options
from tests.fat.images import Memory
from tests.iso9660 import build, hostile
from tests.iso9660.build import SECTOR, Directory, File
from tests.iso9660.images import mounted

COUNT = 400
NOBODY = Caller(0, 0, 0)


@pytest.mark.timeout(60)
def test_wrong_structures() -> None:
    """``python3 -m tests.iso9660.hostile`` tries more."""
    seen = sum((hostile.one(seed) for seed in range(COUNT)), Counter())
    assert seen["looked at"] > COUNT
    assert seen["errno EIO"] > 0
    assert set(seen) <= {
        *("listed", "looked at", "mount EINVAL", "mount EIO", "errno EIO", "errno ELOOP"),
    }


def of_files(*files: File) -> bytearray:
    return build.image(Directory(b"\0", children=list(files)))


def test_a_directory_within_itself() -> None:
    """The VFS has one name for a directory: the same node says that it is the same."""
    inner = Directory(b"INNER")
    outer = Directory(b"OUTER", children=[inner])
    image = build.image(Directory(b"\0", children=[outer]))
    at = image.index(b"INNER") - 33
    image[at + 2 : at + 10] = build.both(outer.extent)
    tree = mounted(image)
    first, _ = tree.lookup(tree.root(), b"outer")
    tree.known(first)
    assert tree.lookup(first, b"inner")[0] is first


def test_a_directory_that_is_the_root() -> None:
    root = Directory(b"\0", children=[Directory(b"AGAIN")])
    image = build.image(root)
    at = image.index(b"AGAIN") - 33
    image[at + 2 : at + 10] = build.both(root.extent)
    tree = mounted(image)
    with pytest.raises(OSError, match="Too many levels"):
        tree.lookup(tree.root(), b"again")
    (told,) = [node for _, name, _, _, node in tree.entries(tree.opendir(NOBODY, tree.root()), 2)]
    assert told is None


class Sparse(Memory):
    """A device that is larger than what it has bytes of; the rest are those of ``filling``."""

    def __init__(self, head: bytearray, size: int, filling: bytes) -> None:
        super().__init__(head)
        self._size, self._filling = size, filling

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self.data):
            return super().read(offset, length)
        return (self._filling * (length // len(self._filling) + 2))[:length]


@pytest.mark.parametrize("filling", [bytes(SECTOR), File(b"A").record() * 60 + bytes(8)])
@pytest.mark.timeout(60)
def test_a_directory_of_4_gib(filling: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "MOST_BYTES", 4 << 20)
    monkeypatch.setattr(volume, "MOST_ENTRIES", 20000)
    device = Sparse(of_files(), 1 << 40, filling[:SECTOR])
    tracemalloc.start()
    filesystem = volume.Volume(device, Options())
    inode = filesystem.inode(filesystem.root.place)
    inode.place, inode.sections, inode.stored = (40, 0), [(40, 0xFFFFFFFF)], 0xFFFFFFFF
    if any(filling):
        with pytest.raises(OSError, match="Input/output") as problem:
            filesystem.listing(inode)
        assert problem.value.errno == errno.EIO
    else:
        assert filesystem.listing(inode).damage == errno.EIO
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_what_is_held_of_directories_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volume, "MOST_ENTRIES", 25)
    image = of_files(
        *(Directory(b"D%d" % n, children=[File(b"F%d" % m) for m in range(10)]) for n in range(8))
    )
    tree = mounted(image)
    for _ in range(2):
        for n in range(8):
            node, _ = tree.lookup(tree.root(), b"d%d" % n)
            tree.known(node)
            assert len(list(tree.entries(tree.opendir(NOBODY, node), 0))) == 12
    assert tree.volume._listings.count <= 25


def test_sections_without_an_end() -> None:
    files = [File(b"S.;1", b"x", flags=build.MULTI_EXTENT) for _ in range(300)]
    tree = mounted(of_files(*files))
    assert list(tree.entries(tree.opendir(NOBODY, tree.root()), 2)) == []
    again = mounted(of_files(*files, File(b"S.;1", b"end")))
    node, _ = again.lookup(again.root(), b"s")
    assert again.getattr(node).size == 101
    assert len(again.read(again.open(NOBODY, node, 0), 0, 101)) == 101


def test_a_plain_file_that_has_a_target() -> None:
    """Its size is that of the target, and so many bytes are read."""
    use = build.px(stat.S_IFREG | 0o644) + build.sl((0, b"x" * 40))
    tree = mounted(of_files(File(b"F.;1", b"abc", use=use)))
    node, _ = tree.lookup(tree.root(), b"f")
    assert tree.getattr(node).size == 40
    assert tree.read(tree.open(NOBODY, node, 0), 0, 100) == b"abc" + bytes(37)
