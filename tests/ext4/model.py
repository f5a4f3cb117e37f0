"""Random calls on small images, which get full, and on a model of them; without FUSE.

    python3 -m tests.ext4.model 100000 [--seed N]

in the checkout. Now and then all is compared, the image is unmounted, e2fsck looks at it, and it
is mounted again; at last all is removed, and as much has to be free as was in the beginning.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import sys
import time
from collections.abc import Callable

from loopfs.ext4.inode import FL_EXTENTS
from loopfs.ext4.ioctl import get_flags, set_flags
from loopfs.ext4.super import INCOMPAT_EXTENTS
from tests.ext4.direct import Direct, Opened
from tests.ext4.images import KINDS, MIB, Memory, fsck, made, on_disk, use

LENGTH = 1000  # steps of one image
EVERY = 250  # steps: after so many all is compared
# Beside KINDS, which the kernel must know, too.
LARGE = ("-b 65536", "-b 16384 -O inline_data -I 1024", "-b 65536 -t ext3", "-b 32768 -I 128")
_FAILURES = (errno.ENOSPC, errno.EOPNOTSUPP, errno.EFBIG)


class File:
    """A file of the model; several names may be of one."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.xattrs: dict[str, bytes] = {}
        self.opened: Opened | None = None


class Machine:
    """An image, its model and a source of chance.

    Attributes:
        full: how often it was.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._chance = random.Random(f"{kind} {seed}")
        block = int(kind.split()[1])
        size = 6 * MIB if block < 4096 else (24 if block < 16384 else 96) * MIB
        self._most = size // 8
        self._data = made(f"-N 160 {kind}" if "-N" not in kind else kind, size)
        self.full = 0
        self._files: dict[str, File] = {}
        self._directories = {""}
        self._links: dict[str, str] = {}
        self._unlinked: list[File] = []
        self._open()
        space = self._calls.tree.statfs()
        self._free = space.free, space.files_free

    def _open(self) -> None:
        self._calls = Direct(use(Memory(self._data))[0])

    # --- comparing ----------------------------------------------------------------------

    def compare(self) -> None:
        """All is as in the model."""
        calls = self._calls
        for file in self._unlinked:
            assert file.opened is not None
            assert file.opened.read() == file.data
        found: dict[str, object] = {}
        queue = [""]
        while queue:
            directory = queue.pop()
            for name in calls.list(directory):
                path = f"{directory}/{name}"
                with calls.node(path) as node:
                    if node.is_dir:
                        found[path] = None
                        queue.append(path)
                    elif node.is_link:
                        found[path] = calls.tree.readlink(node).decode()
                    else:
                        found[path] = calls.read(path), calls.xattrs(path)
        found.pop("/lost+found")
        wanted: dict[str, object] = dict.fromkeys(self._directories - {""})
        wanted |= self._links
        wanted |= {path: (bytes(file.data), file.xattrs) for path, file in self._files.items()}
        different = [
            path
            for path in wanted.keys() | found.keys()
            if wanted.get(path, 0) != found.get(path, 0)
        ]
        assert not different, different[:5]

    def reopen(self) -> None:
        """Unmounted it is clean; mounted again all is there."""
        while self._unlinked:
            opened = self._unlinked.pop().opened
            assert opened is not None
            opened.close()
        self._calls.tree.destroy()
        with on_disk(self._data) as path:
            assert (problems := fsck(path)) == "", problems
        self._open()
        self.compare()

    def empty(self) -> None:
        """All is removed, and free."""
        for path in [*self._files, *self._links]:
            self._calls.unlink(path)
        for path in sorted(self._directories - {""}, key=len, reverse=True):
            self._calls.rmdir(path)
        self._files, self._links, self._directories = {}, {}, {""}
        self.reopen()
        space = self._calls.tree.statfs()
        with self._calls.node("") as root:
            grown = root.sectors * 512 // self._calls.tree.volume.super.block_size
        assert (space.free + grown, space.files_free) >= self._free
        assert space.free <= self._free[0] + 1  # a directory that was inline has a block

    # --- steps -------------------------------------------------------------------------------

    def step(self) -> None:
        """One call, or few."""
        acts: tuple[tuple[int, Callable[[], None]], ...] = (
            *((9, self._create), (22, self._write), (8, self._truncate), (9, self._fallocate)),
            *((7, self._unlink), (6, self._rename), (3, self._link), (3, self._symlink)),
            *((5, self._mkdir), (3, self._rmdir), (9, self._xattr), (2, self._sync)),
            *((3, self._fill), (3, self._use_unlinked), (3, self._migrate)),
        )
        (act,) = self._chance.choices([a for _, a in acts], [w for w, _ in acts])
        act()

    def _path(self) -> str:
        r = self._chance
        name = "abcdefghi"[r.randrange(9)] * r.choice((1, 1, 20, 200)) + str(r.randrange(30))
        return f"{r.choice(sorted(self._directories))}/{name}"

    def _is_there(self, path: str) -> bool:
        return path in self._files or path in self._links or path in self._directories

    def _some(self) -> str | None:
        return self._chance.choice(sorted(self._files)) if self._files else None

    def _try(self, act: Callable[[], object]) -> bool:
        """It is done; False: there was no room."""
        try:
            act()
        except OSError as problem:
            if problem.errno not in _FAILURES:
                raise
            self.full += problem.errno == errno.ENOSPC
            return False
        return True

    def _create(self) -> None:
        path = self._path()
        if not self._is_there(path) and self._try(lambda: self._calls.write(path, b"")):
            self._files[path] = File()

    def _store(self, opened: Opened, file: File, offset: int, data: bytes) -> None:
        """What does not go in whole is there in part."""
        self._try(lambda: opened.write(data, offset))
        now, old = opened.read(), file.data
        wanted = old.ljust(offset + len(data), b"\0")
        wanted[offset : offset + len(data)] = data
        if now != wanted:
            same = next(
                (n for n, pair in enumerate(zip(now, wanted, strict=False)) if pair[0] != pair[1]),
                len(now),
            )
            done = max(min(same, len(now)) - offset, 0)
            wanted = bytearray(old)
            if done:
                wanted = old.ljust(offset + done, b"\0")
                wanted[offset : offset + done] = data[:done]
            assert now == wanted
        file.data = bytearray(now)

    def _write(self) -> None:
        path = self._some()
        if path is None:
            return
        r = self._chance
        offset = r.choice(
            (0, len(self._files[path].data), r.randrange(50_000), r.randrange(self._most))
        )
        data = r.randbytes(1) * r.choice((1, 100, 5000, r.randrange(90_000)))
        opened = self._calls.open(path, os.O_RDWR)
        self._store(opened, self._files[path], offset, data)
        opened.close()

    def _fill(self) -> None:
        """Until there is no room."""
        path = self._some()
        if path is None:
            return
        file, opened = self._files[path], self._calls.open(path, os.O_RDWR)
        before = self.full
        while self.full == before and len(file.data) < self._most:
            self._store(opened, file, len(file.data), b"f" * (self._most // 9))
        opened.close()

    def _truncate(self) -> None:
        path = self._some()
        if path is None:
            return
        size, file = self._chance.randrange(self._most), self._files[path]
        if self._try(lambda: self._calls.truncate(path, size)):
            file.data = file.data[:size].ljust(size, b"\0")

    def _fallocate(self) -> None:
        path = self._some()
        if path is None:
            return
        r, file = self._chance, self._files[path]
        mode, offset, length = (
            r.choice((0, 1, 3, 3, 16, 17)),
            r.randrange(self._most),
            r.randrange(1, self._most),
        )
        if r.random() < 0.7:
            offset, length = r.randrange(90_000), r.randrange(1, 30_000)
        if not self._try(lambda: self._calls.fallocate(path, mode, offset, length)):
            with self._calls.node(path) as node:  # zeroed in part, perhaps
                assert node.size >= len(file.data)
            now = self._calls.read(path)
            assert all(a in (b, 0) for a, b in zip(now, file.data, strict=False))
            file.data = bytearray(now)
            return
        if mode & 1 == 0:
            file.data = file.data.ljust(offset + length, b"\0")
        if mode & 18:
            end = min(offset + length, len(file.data))
            file.data[offset:end] = bytes(max(end - offset, 0))

    def _unlink(self) -> None:
        path = self._some()
        if path is None:
            return
        file = self._files.pop(path)
        alone = file not in self._files.values()
        if alone and self._chance.random() < 0.3 and len(self._unlinked) < 5:
            file.opened = self._calls.open(path, os.O_RDWR)
            self._unlinked.append(file)
        self._calls.unlink(path)

    def _use_unlinked(self) -> None:
        if not self._unlinked:
            return
        file = self._chance.choice(self._unlinked)
        assert file.opened is not None
        self._store(file.opened, file, self._chance.randrange(50_000), b"open" * 3000)
        if self._chance.random() < 0.3:
            self._unlinked.remove(file)
            file.opened.close()

    def _rename(self) -> None:
        path, to = self._some(), self._path()
        if path is None or to in self._directories or to == path:
            return
        file, other = self._files[path], self._files.get(to)
        if self._try(lambda: self._calls.rename(path, to)) and file is not other:
            del self._files[path]
            self._links.pop(to, None)
            self._files[to] = file

    def _link(self) -> None:
        path, to = self._some(), self._path()
        if path and not self._is_there(to) and self._try(lambda: self._calls.link(path, to)):
            self._files[to] = self._files[path]

    def _symlink(self) -> None:
        path = self._path()
        target = "t" * self._chance.choice((1, 59, 60, 300, 1000))
        if not self._is_there(path) and self._try(lambda: self._calls.symlink(target, path)):
            self._links[path] = target

    def _mkdir(self) -> None:
        path = self._path()
        deep = path.count("/") > 4
        if not deep and not self._is_there(path) and self._try(lambda: self._calls.mkdir(path)):
            self._directories.add(path)

    def _rmdir(self) -> None:
        path = self._chance.choice(sorted(self._directories))
        if not path:
            return
        try:
            self._calls.rmdir(path)
        except OSError as problem:
            if problem.errno != errno.ENOTEMPTY:
                raise
        else:
            self._directories.remove(path)

    def _xattr(self) -> None:
        path = self._some()
        if path is None:
            return
        r, file = self._chance, self._files[path]
        name = f"user.{'xyz'[r.randrange(3)] * r.choice((1, 30))}"
        if name in file.xattrs and r.random() < 0.5:
            if self._try(lambda: self._calls.removexattr(path, name)):
                del file.xattrs[name]
            return
        value = r.randbytes(r.choice((0, 1, 20, 100, 500, 900, 4000, 20_000)))
        if self._try(lambda: self._calls.setxattr(path, name, value)):
            file.xattrs[name] = value

    def _migrate(self) -> None:
        path, volume = self._some(), self._calls.tree.volume
        if path is None or not volume.super.incompat & INCOMPAT_EXTENTS:
            return
        with self._calls.node(path) as node:
            flags = get_flags(node) ^ FL_EXTENTS
            if not node.has_inline_data:
                self._try(lambda: set_flags(volume, node, flags))

    def _sync(self) -> None:
        path = self._some()
        if path is not None:
            opened = self._calls.open(path, os.O_RDWR)
            opened.sync()
            opened.close()


def run(kind: str, steps: int, seed: int) -> int:
    """So many steps on an image of a kind; returns how often it was full."""
    machine = Machine(kind, seed)
    for step in range(1, steps + 1):
        machine.step()
        if step % EVERY == 0:
            machine.compare()
            machine.reopen()
    machine.reopen()
    machine.empty()
    return machine.full


def main() -> int:
    """Exit status: 1 something is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.model")
    parser.add_argument("steps", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", default="", help="arguments of mke2fs: only this kind")
    options = parser.parse_args()
    kinds = (options.kind,) if options.kind else KINDS + LARGE
    begin, full = time.monotonic(), 0
    for turn, first in enumerate(range(0, options.steps, LENGTH)):
        kind, seed = kinds[turn % len(kinds)], options.seed + turn
        try:
            full += run(kind, min(LENGTH, options.steps - first), seed)
        except BaseException:
            print(f"{kind!r} seed {seed}", flush=True)
            raise
    seconds = time.monotonic() - begin
    print(f"seed {options.seed}: {options.steps} steps in {seconds:.0f} s, {full} times full")
    return 0


if __name__ == "__main__":
    sys.exit(main())
