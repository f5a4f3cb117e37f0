"""Calls that fail half-way change nothing, and the image agrees with memory.

    python3 -m tests.ext4.faults 10000 [--seed N] [--kind WORDS]

in the checkout. No room, or an error of the device, comes at a random place inside of random
calls; each call that fails has to have changed nothing but times, and data that was being written.
Each is a transaction of its own, and what was read is let go of. At last e2fsck finds nothing, and
what is there after the next mount is what was there before.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from loopfs.ext4.errors import refused
from loopfs.file_device import Buffer
from loopfs.fuse.tree import Changes
from tests.ext4.direct import ROOT, Direct
from tests.ext4.images import MIB, Memory, fsck, made, on_disk, use

KINDS = (
    "-b 1024 -J size=1",
    "-b 1024 -I 512 -O inline_data,ea_inode -J size=1",
    "-b 1024 -t ext2",
    "-b 4096 -O ea_inode,^dir_index",
)
SIZE = 16 * MIB
LENGTH = 300  # calls of one image
_EXPECTED = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.EIO, errno.ENOTEMPTY, errno.EISDIR),
    *(errno.ENOTDIR, errno.EINVAL, errno.EPERM, errno.ELOOP, errno.EOPNOTSUPP, errno.ENODATA),
    errno.ENODEV,
)
Tree = dict[str, tuple[object, ...]]


class Failing(Memory):
    """A device that fails when it is told to.

    Attributes:
        left: so many requests are done yet; negative: it never fails.
    """

    def __init__(self, data: bytearray) -> None:
        super().__init__(data)
        self.left = -1

    def step(self, code: int) -> None:
        """Raise OSError if it is time."""
        self.left -= self.left >= 0
        if self.left == 0:
            raise refused(code)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.step(errno.EIO)
        super().read_into(offset, buffer)

    def write(self, offset: int, *parts: Buffer) -> None:
        self.step(errno.EIO)
        super().write(offset, *parts)


class Machine:
    """Random calls on an image."""

    def __init__(self, kind: str, seed: int) -> None:
        self._chance = random.Random(f"{kind} {seed}")
        self._device = Failing(made(kind, SIZE))
        self.failed = 0
        self._open()

    def _open(self) -> None:
        self._tree, commits = use(self._device)
        assert commits is not None
        commits.most = 0
        self._commits, self._calls = commits, Direct(self._tree)
        groups = self._tree.volume.groups
        allocate, new_inode = groups.allocate, groups.new_inode

        def failing_allocate(goal: int, want: int, keep: int) -> tuple[int, int]:
            self._device.step(errno.ENOSPC)
            return allocate(goal, min(want, self._chance.choice((1, 3, want))), keep)

        def failing_inode(parent: int, directory: bool) -> int:
            self._device.step(errno.ENOSPC)
            return new_inode(parent, directory)

        groups.allocate = failing_allocate  # type: ignore[method-assign]
        groups.new_inode = failing_inode  # type: ignore[method-assign]

    @contextmanager
    def _fault(self) -> Iterator[None]:
        self._device.left = self._chance.choice((-1, *range(1, 25)))
        try:
            yield
        finally:
            self._device.left = -1

    def tree(self) -> Tree:
        """All there is."""
        found: Tree = {}
        queue = [""]
        while queue:
            path = queue.pop()
            with self._calls.node(path) as node:
                attr = self._tree.getattr(node)
                row: tuple[object, ...] = (*attr[:1], *attr[2:7])
                if not node.is_dir:
                    row += (attr[1], *attr[8:])
                if node.is_link:
                    row += (self._tree.readlink(node),)
                kinds = node.is_dir, node.is_regular
            row += tuple(sorted(self._calls.xattrs(path).items()))
            if kinds[0]:
                queue += [f"{path}/{name}" for name in self._calls.list(path)]
            if kinds[1]:
                row += (hashlib.md5(self._calls.read(path), usedforsecurity=False).digest(),)
            found[path] = row
        return found

    def step(self) -> None:
        """One call, which may fail."""
        before = self.tree()
        self._commits.commit_and_wait()
        volume = self._tree.volume
        for inode in list(volume.inodes.values()):
            if not inode.known:
                volume.forget(inode)
        volume.get(2).dir = volume.get(2).map = None
        volume.blocks._cache = {n: b for n, b in volume.blocks._cache.items() if n in self._busy()}
        name, act = self._call(before)
        problem = self._error_of(act)
        if problem is None:
            return
        assert problem.errno in _EXPECTED, (name, problem)
        assert not volume.error, (name, "the filesystem is read-only")
        self.failed += 1
        after = self.tree()
        if name not in ("write", "fallocate"):
            assert before == after, (name, problem, different(before, after))

    def _error_of(self, act: Callable[[], object]) -> OSError | None:
        try:
            with self._fault():
                act()
        except OSError as problem:
            return problem
        return None

    def _busy(self) -> set[int]:
        blocks = self._tree.volume.blocks
        return blocks.dirty | blocks.busy.keys()

    def _call(self, tree: Tree) -> tuple[str, Callable[[], object]]:
        r, calls = self._chance, self._calls
        paths = [path for path in tree if path and "lost+found" not in path]
        path = r.choice(paths) if paths else "/first"
        other = r.choice(paths) if paths and r.random() < 0.3 else self._new(tree)
        if f"{other}/".startswith(f"{path}/") or f"{path}/".startswith(f"{other}/"):
            other = self._new({"": tree[""]})  # the VFS sees to that
        file = next((one for one in r.sample(paths, len(paths)) if _kind(tree[one]) == 8), "/x")
        size = r.choice((0, 50, 700, 5000, 90_000))
        acts: dict[str, Callable[[], object]] = {
            "create": lambda: self._create(self._new(tree)),
            "mkdir": lambda: calls.mkdir(self._new(tree)),
            "symlink": lambda: calls.symlink("t" * r.choice((5, 200)), self._new(tree)),
            "write": lambda: self._write(file, bytes([r.randrange(256)]) * size, r.randrange(9000)),
            "truncate": lambda: calls.truncate(file, size),
            "fallocate": lambda: calls.fallocate(file, r.choice((0, 1, 3, 16)), 3000, 1 + size),
            "unlink": lambda: calls.unlink(path),
            "rmdir": lambda: calls.rmdir(path),
            "rename": lambda: calls.rename(path, other, r.choice((0, 0, 1, 2, 4))),
            "link": lambda: calls.link(file, other),
            "setxattr": lambda: calls.setxattr(
                path, f"user.{r.randrange(3)}", b"v" * min(size, 60_000)
            ),
            "removexattr": lambda: calls.removexattr(path, f"user.{r.randrange(3)}"),
            "chown": lambda: self._change(path, Changes(uid=r.randrange(9), mode=r.randrange(512))),
        }
        name = r.choice(list(acts))
        return name, acts[name]

    def _new(self, tree: Tree) -> str:
        r = self._chance
        kinds = [path for path, row in tree.items() if path.count("/") < 4 and _kind(row) == 4]
        return f"{r.choice(kinds)}/{'n' * r.choice((1, 30, 200))}{r.randrange(500)}"

    def _create(self, path: str) -> None:
        self._calls.open(path, os.O_RDWR | os.O_CREAT).close()

    def _write(self, path: str, data: bytes, offset: int) -> None:
        file = self._calls.open(path, os.O_RDWR)
        try:
            file.write(data, offset)
        finally:
            file.close()

    def _change(self, path: str, changes: Changes) -> None:
        with self._calls.node(path) as node:
            self._tree.setattr(ROOT, node, changes)

    def end(self) -> None:
        """Unmounted it is clean; mounted again all is there."""
        before = self.tree()
        self._tree.destroy()
        with on_disk(self._device.data) as path:
            assert (problems := fsck(path)) == "", problems
        self._open()
        after = self.tree()
        assert before == after, different(before, after)


def different(before: Tree, after: Tree) -> list[tuple[str, str, str]]:
    """What is not the same, in short."""
    return [
        (path[:20], str(before.get(path))[:200], str(after.get(path))[:200])
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    ]


def _kind(row: tuple[object, ...]) -> int:
    """S_IFMT of a mode, its upper bits."""
    assert isinstance(row[1], int)
    return row[1] >> 12


def run(kind: str, seed: int, calls: int) -> int:
    """So many calls on one image; returns how many failed."""
    machine = Machine(kind, seed)
    for _ in range(calls):
        machine.step()
    machine.end()
    return machine.failed


def main() -> int:
    """Exit status: 1 something is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.faults")
    parser.add_argument("calls", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", default="", help="arguments of mke2fs: only this kind")
    options = parser.parse_args()
    kinds, failed = (options.kind,) if options.kind else KINDS, 0
    for turn, first in enumerate(range(0, options.calls, LENGTH)):
        kind, seed = kinds[turn % len(kinds)], options.seed + turn
        try:
            failed += run(kind, seed, min(LENGTH, options.calls - first))
        except BaseException:
            print(f"{kind!r} seed {seed}", flush=True)
            raise
    print(f"seed {options.seed}: {options.calls} calls, {failed} failed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
