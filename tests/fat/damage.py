"""Damaged images: all calls end, and fail only with an errno.

``python -m tests.fat.damage [COUNT [FIRST_SEED]]`` tries so many of each geometry.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

from loopfs.fat import ioctl
from loopfs.fat.filesystem import Vfat
from loopfs.fat.inode import Inode
from loopfs.fuse.tree import Changes, Handle
from tests.fat.calls import ROOT, Calls, Opened
from tests.fat.images import GEOMETRIES, Memory, made, mounted

# What a damaged image may be answered with: damage, what its names and attributes say, and what
# is asked of it besides.
EXPECTED = {
    errno.EIO,
    errno.EROFS,
    errno.EINVAL,
    errno.ENOENT,
    errno.ENOSPC,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOTTY,
    errno.EPERM,
}
_MOST_DIRECTORIES = 60


def filled(geometry: str) -> bytearray:
    """An image with something of everything in it."""
    device = Memory(made(geometry))
    calls = Calls(mounted(device))
    chance = random.Random(geometry)
    for directory in ("", "/a", "/a/b", "/a long directory name"):
        if directory:
            calls.mkdir(directory)
        for n in range(12):
            name = chance.choice(["SHORT%d.TXT", "long name number %d", "日本%d", "mixed%d.C"]) % n
            calls.write(f"{directory}/{name}", chance.randbytes(chance.choice([0, 10, 600, 9000])))
    for n in range(0, 12, 3):  # holes in chains
        for name in calls.list("/a"):
            if str(n) in name and "." in name:
                calls.write(f"/a/{name}", chance.randbytes(5000))
    calls.tree.destroy()
    return device.data


def damaged(image: bytearray, chance: random.Random) -> bytearray:
    """Some bits or bytes of it are others, most of them in the first part, where the tables are."""
    image = bytearray(image)
    used = min(len(image), 200_000)
    for _ in range(chance.choice([1, 3, 30, 300])):
        at = chance.randrange(512) if chance.random() < 0.1 else chance.randrange(512, used)
        flipped = image[at] ^ 1 << chance.randrange(8)
        image[at] = chance.choice([0, 255, chance.randrange(256), flipped])
    return image


class Tour:
    """Every call on what can be found in an image."""

    def __init__(self, tree: Vfat, chance: random.Random) -> None:
        self.tree = tree
        self.calls = Calls(tree)
        self.random = chance
        self.seen: Counter[int] = Counter()
        self._number = 0

    def go(self) -> None:
        todo, count = [self.tree.root()], 0
        while todo and count < _MOST_DIRECTORIES:
            directory = todo.pop(self.random.randrange(len(todo)))
            count += 1
            children = self._children(directory)
            todo += [child for child in children if child.is_dir][:5]
            for child in self.random.sample(children, min(len(children), 4)):
                self._all_of(directory, child)
        self._try(self.tree.statfs)
        self._try(lambda: self._fsync(self.tree.root()))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as problem:
            self._note(problem)

    def _note(self, problem: OSError) -> None:
        if problem.errno not in EXPECTED:
            raise problem
        self.seen[problem.errno] += 1

    def end(self) -> None:
        """The unmount."""
        self._try(self.tree.destroy)

    def _children(self, directory: Inode) -> list[Inode]:
        try:
            handle = self.tree.opendir(ROOT, directory)
        except OSError as problem:
            self._note(problem)
            return []
        for cmd in ioctl.READDIRS:
            self._try(partial(self.tree.ioctl, ROOT, handle, cmd, 0, b"", False))
        nodes = [node for *_, node in self.tree.entries(handle, 0) if node is not None]
        for node in nodes:  # the kernel would, until the end
            self.tree.known(node)
        self._try(partial(self.tree.release, handle))
        return nodes

    def _all_of(self, directory: Inode, child: Inode) -> None:
        tree, chance = self.tree, self.random
        self._number += 1
        new = b"a new long name %d" % self._number
        todo: list[Callable[[], object]] = [
            lambda: tree.getattr(child),
            lambda: tree.lookup(directory, child.name),
            lambda: tree.lookup(directory, child.name.swapcase()),
            lambda: self._use(child),
            lambda: tree.setattr(ROOT, child, Changes(size=chance.randrange(30000))),
            lambda: tree.setattr(ROOT, child, Changes(mode=0o444, mtime=chance.randrange(1 << 62))),
            lambda: tree.mkdir(ROOT, directory, new, 0o755),
            lambda: self._create(directory, new + b".txt"),
            lambda: tree.rename(ROOT, directory, child.name, tree.root(), new + b" too", 0),
            lambda: tree.rename(ROOT, directory, child.name, directory, new + b".txt", 2),
            lambda: tree.unlink(ROOT, directory, child.name),
            lambda: tree.rmdir(ROOT, directory, child.name),
        ]
        for call in chance.sample(todo, 6):
            self._try(call)

    def _create(self, directory: Inode, name: bytes) -> None:
        _, handle = self.tree.create(ROOT, directory, name, 0o644, os.O_RDWR)
        Opened(self.tree, handle).write(bytes(3000))
        self.tree.release(handle)

    def _use(self, child: Inode) -> None:
        if child.is_dir:
            return
        opened = Opened(self.tree, self.tree.open(ROOT, child, os.O_RDWR))
        at = self.random.randrange(min(child.size, 1 << 20) + 1)
        fallocate = self.tree.fallocate
        data = self.random.randbytes(5000)
        for call in (
            lambda: opened.read(at, 100_000),
            lambda: opened.write(data, at),
            lambda: fallocate(opened.handle, 1, at, 20000),
            lambda: self._attributes(opened.handle),
            opened.sync,
            opened.close,
        ):
            self._try(call)

    def _attributes(self, handle: Handle[Inode]) -> None:
        for cmd in (ioctl.FAT_IOCTL_GET_ATTRIBUTES, ioctl.FAT_IOCTL_SET_ATTRIBUTES):
            self.tree.ioctl(ROOT, handle, cmd, 0, b"\x27\0\0\0", False)

    def _fsync(self, directory: Inode) -> None:
        handle = self.tree.opendir(ROOT, directory)
        self.tree.fsync(handle, False).work()
        self.tree.release(handle)


def survive(image: bytearray, seed: int) -> Counter[int]:
    """The errnos of a tour; those that no tour may give are raised."""
    chance = random.Random(seed)
    options = chance.choice(["", "errors=continue", "errors=continue,discard,usefree"])
    try:
        tree = mounted(Memory(damaged(image, chance)), options)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.EIO):
            raise
        return Counter({problem.errno: 1})
    tour = Tour(tree, chance)
    tour.go()
    tour.end()
    return tour.seen


def main(count: int = 1000, first: int = 0) -> None:
    """Each geometry, with so many seeds."""
    for geometry in GEOMETRIES:
        image, seen = filled(geometry), Counter[int]()
        for seed in range(first, first + count):
            try:
                seen += survive(image, seed)
            except BaseException:
                print(f"{geometry}, seed {seed}", flush=True)
                raise
        print(geometry, {errno.errorcode[code]: n for code, n in seen.items()}, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
