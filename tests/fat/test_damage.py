"""Damaged and hostile images: errnos, in bounded time and memory."""

from __future__ import annotations

import errno
import struct
import tracemalloc

import pytest

from loopfs.fat.boot import geometry as read_geometry
from tests.fat import damage
from tests.fat.calls import ROOT, Calls
from tests.fat.images import GEOMETRIES, MIB, Memory, made, mounted

COUNT = 25


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.timeout(60)
def test_flipped_bits(geometry: str) -> None:
    image = damage.filled(geometry)
    seen = sum((damage.survive(image, seed).total() for seed in range(COUNT)), 0)
    assert seen > 0


def linked(image: bytearray, *links: tuple[int, int]) -> bytearray:
    """FAT32: entries of the first FAT set to others."""
    (fat, *_) = read_geometry(bytes(image[:512]), len(image)).fats
    for cluster, following in links:
        struct.pack_into("<I", image, fat + 4 * cluster, following)
    return image


def test_a_chain_that_comes_back_to_itself() -> None:
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.write("/file", bytes(5000))
    start = calls.node("/file").start
    calls.tree.destroy()
    linked(device.data, (start + 3, start + 1))
    calls = Calls(mounted(device))
    with pytest.raises(OSError, match="loop") as problem:
        calls.read("/file")
    assert problem.value.errno == errno.EIO
    with pytest.raises(OSError, match="Read-only") as problem:  # errors=remount-ro
        calls.write("/other", b"")
    assert problem.value.errno == errno.EROFS


def test_a_root_directory_that_comes_back_to_itself() -> None:
    image = made("FAT32")
    root = read_geometry(bytes(image[:512]), len(image)).root_cluster
    with pytest.raises(OSError, match="loop") as problem:
        mounted(Memory(linked(image, (root, root))))
    assert problem.value.errno == errno.EIO


def test_a_directory_within_itself() -> None:
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.mkdir("/a")
    calls.mkdir("/a/b")
    inner, outer = calls.node("/a/b"), calls.node("/a")
    inner.start = outer.start
    calls.tree.volume.save(inner)
    calls.tree.destroy()
    calls = Calls(mounted(device))
    assert calls.list("/a/b/b/b/b") == ["b"]
    with pytest.raises(OSError, match="not empty"):
        calls.rmdir("/a/b/b")


def test_a_chain_shorter_than_the_file() -> None:
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.write("/file", b"x" * 5000)
    start = calls.node("/file").start
    calls.tree.destroy()
    linked(device.data, (start + 3, 0x0FFFFFF8))
    calls = Calls(mounted(device, "errors=continue"))
    file = calls.open("/file")
    assert file.read(0, 2000) == b"x" * 2000
    with pytest.raises(OSError, match="longer than its chain") as problem:
        file.read(0, 5000)
    assert problem.value.errno == errno.EIO
    file.close()
    calls.truncate("/file", 100)
    assert calls.read("/file") == b"x" * 100


class Sparse(Memory):
    """A device of zeros but for its first MiB, and bytes that a function makes."""

    def __init__(self, head: bytearray, size: int) -> None:
        super().__init__(head)
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        if offset + length <= len(self.data):
            return super().read(offset, length)
        return bytes(length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.read(offset, len(buffer))


def test_free_clusters_of_2_tb_are_counted_in_bounded_memory() -> None:
    sectors, per = 0xFFFFFFFF, 64  # of 512 bytes
    clusters = sectors // per
    boot = bytearray(512)
    few = entries = length16 = tracks = heads = hidden = 0
    head_of_it = 512, per, 32, 2, entries, few, 0xF8, length16, tracks, heads, hidden, sectors
    struct.pack_into("<HBHBHHBHHHII", boot, 11, *head_of_it)
    struct.pack_into("<IHHIH", boot, 36, clusters // 128 + 1, 0, 0, 2, 0xFFFF)
    head = bytearray(MIB)
    head[:512] = boot
    fat = 32 * 512
    struct.pack_into("<III", head, fat, 0x0FFFFFF8, 0x0FFFFFFF, 0x0FFFFFF8)
    tree = mounted(Sparse(head, 512 * sectors))
    tracemalloc.start()
    try:
        free = tree.statfs().free
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert free == tree.volume.shape.clusters - 1
    assert peak < 8 * MIB


def test_many_fragments_are_kept_in_bounded_memory() -> None:
    """A chain of runs of one cluster each, by twenty files at once."""
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    for n in range(20):
        calls.write(f"/{n}", b"x")
    shape, volume = calls.tree.volume.shape, calls.tree.volume
    count = shape.clusters // 2 - 40
    first = shape.clusters - 2 * count
    links = [(first + 2 * n, first + 2 * n + 2) for n in range(count - 1)]
    for n in range(20):
        node = calls.node(f"/{n}")
        node.start, node.size = first, count * shape.cluster
        volume.save(node)
    calls.tree.destroy()
    linked(device.data, *links, (first + 2 * count - 2, 0x0FFFFFF8))
    calls = Calls(mounted(device))
    opened = [calls.open(f"/{n}") for n in range(20)]
    tracemalloc.start()
    try:
        for file in opened:
            assert len(file.read(0, 1000)) == 1000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MIB


def test_a_directory_that_is_too_long() -> None:
    """More than 65,536 slots are no directory."""
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.mkdir("/d")
    start, shape = calls.node("/d").start, calls.tree.volume.shape
    calls.tree.destroy()
    first = shape.clusters - 4200
    links = [(first + n, first + n + 1) for n in range(4199)]
    linked(device.data, (start, first), *links, (first + 4199, 0x0FFFFFF8))
    calls = Calls(mounted(device))
    with pytest.raises(OSError, match="too long") as problem:
        calls.list("/d")
    assert problem.value.errno == errno.EIO


def test_many_directories_that_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is looked at, and none need be held."""
    monkeypatch.setattr("loopfs.fat.volume._MOST_HELD", 2000)
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.mkdir("/big")
    big = calls.node("/big")
    calls.tree.known(big)
    for n in range(500):
        calls.tree.mknod(ROOT, big, b"FILE%d" % n, 0o100644, 0)
    for n in range(100):
        calls.mkdir(f"/{n}")
        node = calls.node(f"/{n}")
        node.start = big.start
        calls.tree.volume.save(node)
    calls.tree.destroy()
    calls = Calls(mounted(device))
    handle = calls.tree.opendir(ROOT, calls.tree.root())
    for *_, child in calls.tree.entries(handle, 0):  # READDIRPLUS
        if child is not None:
            assert calls.tree.getattr(child).size > 500 * 32
            calls.tree.known(child)
    children = calls.tree.root().dir
    assert children is not None
    assert sum(child.dir is not None for child in children.inodes.values()) <= 4
    assert calls.list("/77") == [f"FILE{n}" for n in range(500)]


@pytest.mark.parametrize("name", [b"a/b", b"..", b".", b"", b"\0"])
def test_a_long_name_that_no_caller_could_say(name: bytes) -> None:
    device = Memory(made("FAT32"))
    calls = Calls(mounted(device))
    calls.write("/name to be changed", b"")
    at = device.data.index("name to".encode("utf-16-le")[:10])
    text = name.decode().encode("utf-16-le") + b"\0\0"
    device.data[at : at + 10] = text.ljust(10, b"\xff")[:10]
    calls = Calls(mounted(device))
    names = calls.list()
    assert not {"a/b", "\0", "", ".", ".."} & set(names)
    handle = calls.tree.opendir(ROOT, calls.node(""))
    assert len(list(calls.tree.entries(handle, 0))) == 2 + len(names)
