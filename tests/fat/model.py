"""Random calls on a volume and on a model of it, a tree of dictionaries.

``python -m tests.fat.model [STEPS [SEED]]`` makes 100,000 on each geometry: after each thousand
the image is closed, looked at by fsck.fat, and opened again.
"""

from __future__ import annotations

import errno
import os
import random
import sys
from typing import Union

from tests.fat.calls import Calls, Opened
from tests.fat.images import GEOMETRIES, Memory, fsck, made, mounted

_NAMES = ("file", "FILE", "Ünï", "日本", "a b", "x" * 40, "Long Name With Spaces", "README", "q")
_ENDS = ("", ".txt", ".TXT", ".c", ".jpeg", ".a.b")
_SIZES = (0, 1, 100, 512, 4096, 20000, 70000)
_BIG = 300_000
Dir = dict[str, Union["Dir", "File"]]


class File:
    """A file of the model."""

    def __init__(self) -> None:
        self.data = bytearray()


def plain(directory: Dir) -> dict[str, object]:
    """As Calls.snapshot() has it."""
    return {
        name: bytes(thing.data) if isinstance(thing, File) else plain(thing)
        for name, thing in directory.items()
    }


def _spelled(directory: Dir, name: str) -> str | None:
    """How a name is written that is there already: bytes of ASCII have two cases."""
    wanted = name.encode().lower()
    return next((n for n in directory if n.encode().lower() == wanted), None)


def _expect(problem: OSError, *codes: int) -> None:
    if problem.errno not in codes:
        raise problem


class Machine:
    """A volume, its model and a source of chance."""

    def __init__(self, geometry: str, seed: int) -> None:
        self.device = Memory(made(geometry))
        self.random = random.Random(f"{geometry} {seed}")
        self.model: Dir = {}
        self.full = 0  # how often it was
        self.open: list[tuple[Opened, File]] = []
        self.calls = Calls(mounted(self.device))
        self.free = self.calls.tree.statfs().free

    def reopen(self) -> None:
        """Unmount, look, mount again: all must be there."""
        while self.open:
            self.open.pop()[0].close()
        self.calls.tree.destroy()
        assert (found := fsck(self.device.data)) == "", found
        self.calls = Calls(mounted(self.device))
        assert self.calls.snapshot() == plain(self.model)

    def empty(self) -> None:
        """Remove all: as much is free as was in the beginning."""
        self._remove("", self.model)
        self.reopen()
        left = self.calls.node("").dir
        assert left is not None
        used = len(left.data) // self.calls.tree.volume.cluster  # the root's, of FAT32
        if not self.calls.tree.volume.shape.root_size:
            assert self.calls.tree.statfs().free == self.free - used + 1

    def _remove(self, path: str, directory: Dir) -> None:
        for name, thing in list(directory.items()):
            at = f"{path}/{name}"
            if isinstance(thing, File):
                self.calls.unlink(at)
            else:
                self._remove(at, thing)
                self.calls.rmdir(at)
            del directory[name]

    # --- what to do -----------------------------------------------------------

    def step(self) -> None:
        """One call, or few."""
        weighed = (
            (22, self._create),
            (20, self._write),
            (8, self._truncate),
            (10, self._mkdir),
            (12, self._rename),
            (13, self._unlink),
            (5, self._rmdir),
            (5, self._use_open),
            (5, self._read),
        )
        (act,) = self.random.choices([a for _, a in weighed], [w for w, _ in weighed])
        act()

    def _name(self) -> str:
        r = self.random
        return f"{r.choice(_NAMES)}{r.randrange(60)}{r.choice(_ENDS)}"

    def _directory(self) -> tuple[str, Dir]:
        path, directory = "", self.model
        while self.random.random() < 0.6:
            inner = [n for n, thing in directory.items() if isinstance(thing, dict)]
            if not inner:
                break
            name = self.random.choice(inner)
            thing = directory[name]
            assert isinstance(thing, dict)
            path, directory = f"{path}/{name}", thing
        return path, directory

    def _some(self, kind: type) -> tuple[str, Dir, str] | None:
        for _ in range(20):
            path, directory = self._directory()
            if names := [n for n, thing in directory.items() if isinstance(thing, kind)]:
                return path, directory, self.random.choice(names)
        return None

    def _file(self) -> tuple[str, File] | None:
        if (found := self._some(File)) is None:
            return None
        path, directory, name = found
        thing = directory[name]
        assert isinstance(thing, File)
        return f"{path}/{name}", thing

    def _is_full(self, problem: OSError) -> None:
        _expect(problem, errno.ENOSPC)
        self.full += 1

    def _create(self) -> None:
        path, directory = self._directory()
        name = self._name()
        at, there = f"{path}/{name}", _spelled(directory, name)
        thing = directory[there] if there else File()
        try:
            opened = self.calls.open(at, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        except OSError as problem:
            if not (isinstance(thing, dict) and problem.errno == errno.EISDIR):
                self._is_full(problem)
            return
        assert isinstance(thing, File)
        directory[there or name] = thing
        thing.data.clear()
        size = self.random.choice([*_SIZES, self.random.randrange(_BIG)])
        self._store(opened, thing, self.random.randbytes(size), 0)
        opened.close()

    def _store(self, opened: Opened, file: File, data: bytes, at: int) -> None:
        """Write all, as long as there is room."""
        while data:
            try:
                done = opened.write(data, at)
            except OSError as problem:
                self._is_full(problem)
                assert opened.handle.node.size == len(file.data)
                return
            assert done > 0
            file.data.extend(bytes(max(at - len(file.data), 0)))
            file.data[at : at + done] = data[:done]
            data, at = data[done:], at + done

    def _write(self) -> None:
        if (found := self._file()) is None:
            return
        path, file = found
        opened = self.calls.open(path, os.O_RDWR)
        at = self.random.randrange(len(file.data) + 3000)
        self._store(opened, file, self.random.randbytes(self.random.randrange(1, 9000)), at)
        opened.close()

    def _truncate(self) -> None:
        if (found := self._file()) is None:
            return
        path, file = found
        size = self.random.randrange(60000)
        try:
            self.calls.truncate(path, size)
        except OSError as problem:
            self._is_full(problem)
            return
        del file.data[size:]
        file.data.extend(bytes(size - len(file.data)))

    def _mkdir(self) -> None:
        path, directory = self._directory()
        name = self._name()
        if path.count("/") > 5:
            return
        there = _spelled(directory, name)
        try:
            self.calls.mkdir(f"{path}/{name}")
        except FileExistsError:
            assert there
        except OSError as problem:
            self._is_full(problem)
        else:
            assert not there
            directory[name] = {}

    def _rename(self) -> None:
        if (found := self._some(object)) is None:
            return
        (path, directory, name), (to, target) = found, self._directory()
        new = self._name()
        there = _spelled(target, new)
        thing, victim = directory[name], target.get(there) if there else None
        old_path = f"{path}/{name}"
        inside = isinstance(thing, dict) and f"{to}/".startswith(f"{old_path}/")
        try:
            self.calls.rename(old_path, f"{to}/{new}")
        except OSError as problem:
            if problem.errno == errno.ENOSPC:
                self.full += 1
            elif inside:
                _expect(problem, errno.EINVAL, errno.ENOTEMPTY)
            else:
                _expect(problem, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR)
            return
        assert not inside
        if victim is thing:
            return
        assert victim is None or isinstance(victim, File) == isinstance(thing, File)
        assert isinstance(victim, File) or not victim
        del directory[name]
        target[there or new] = thing

    def _unlink(self) -> None:
        if (found := self._some(File)) is None:
            return
        path, directory, name = found
        file = directory.pop(name)
        assert isinstance(file, File)
        if self.random.random() < 0.2 and len(self.open) < 8:
            self.open.append((self.calls.open(f"{path}/{name}", os.O_RDWR), file))
        spelled = name.swapcase() if name.isascii() and self.random.random() < 0.5 else name
        self.calls.unlink(f"{path}/{spelled}")

    def _rmdir(self) -> None:
        if (found := self._some(dict)) is None:
            return
        path, directory, name = found
        try:
            self.calls.rmdir(f"{path}/{name}")
        except OSError as problem:
            _expect(problem, errno.ENOTEMPTY)
            empty = False
        else:
            empty = True
        assert bool(directory[name]) != empty
        if empty:
            del directory[name]

    def _use_open(self) -> None:
        """A file that was unlinked while it was open."""
        if not self.open:
            return
        opened, file = self.open.pop(self.random.randrange(len(self.open)))
        assert opened.read() == file.data
        if self.random.random() < 0.5:
            opened.close()
            return
        self._store(opened, file, b"more" * 2000, len(file.data))
        assert opened.read() == file.data
        self.open.append((opened, file))

    def _read(self) -> None:
        if (found := self._file()) is not None:
            assert self.calls.read(found[0]) == found[1].data


def run(geometry: str, steps: int, seed: int, every: int = 1000) -> Machine:
    """So many steps; returns the machine, with its volume closed and opened again."""
    machine = Machine(geometry, seed)
    for step in range(1, steps + 1):
        machine.step()
        if step % every == 0 or step == steps:
            machine.reopen()
    return machine


def main(steps: int = 100_000, seed: int = 1) -> None:
    """Each geometry."""
    for geometry in GEOMETRIES:
        machine = run(geometry, steps, seed)
        print(f"{geometry}: {steps} steps, {machine.full} times full", flush=True)
        machine.empty()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
