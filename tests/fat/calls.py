"""Calls by path on a mounted volume: the requests that the kernel would send."""

from __future__ import annotations

import os
from typing import NamedTuple

from loopfs.fat.filesystem import Vfat
from loopfs.fat.inode import Inode
from loopfs.fuse.tree import Caller, Changes, Handle

ROOT = Caller(0, 0, 1)


class Opened(NamedTuple):
    """An open file."""

    tree: Vfat
    handle: Handle[Inode]

    def read(self, offset: int = 0, size: int = 1 << 30) -> bytes:
        out = []
        while size > 0:
            piece = bytes(self.tree.read(self.handle, offset, min(size, 1 << 20)))
            out.append(piece)
            offset, size = offset + len(piece), size - len(piece)
            if not piece:
                break
        return b"".join(out)

    def write(self, data: bytes, offset: int = 0) -> int:
        return self.tree.write(self.handle, offset, memoryview(data))

    def sync(self) -> None:
        self.tree.fsync(self.handle, False).work()

    def close(self) -> None:
        self.tree.release(self.handle)


class Calls:
    """System calls with paths from the root."""

    def __init__(self, tree: Vfat) -> None:
        self.tree = tree

    def node(self, path: str) -> Inode:
        node = self.tree.root()
        for name in filter(None, path.split("/")):
            node, _ = self.tree.lookup(node, name.encode())
        return node

    def _at(self, path: str) -> tuple[Inode, bytes]:
        directory, _, name = path.rpartition("/")
        return self.node(directory), name.encode()

    def open(self, path: str, flags: int = os.O_RDONLY) -> Opened:
        if flags & os.O_CREAT:
            parent, name = self._at(path)
            _, handle = self.tree.create(ROOT, parent, name, 0o644, flags)
        else:
            handle = self.tree.open(ROOT, self.node(path), flags)
        return Opened(self.tree, handle)

    def write(self, path: str, data: bytes) -> None:
        """A new file, or other contents for one."""
        file = self.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        try:
            at = 0
            while at < len(data):
                at += file.write(data[at:], at)
        finally:
            file.close()

    def read(self, path: str) -> bytes:
        file = self.open(path)
        try:
            return file.read()
        finally:
            file.close()

    def list(self, path: str = "") -> list[str]:
        handle = self.tree.opendir(ROOT, self.node(path))
        try:
            entries = list(self.tree.entries(handle, 0))
        finally:
            self.tree.release(handle)
        return [name.decode() for _, name, *_ in entries[2:]]

    def mkdir(self, path: str) -> None:
        self.tree.mkdir(ROOT, *self._at(path), 0o755)

    def unlink(self, path: str) -> None:
        self.tree.unlink(ROOT, *self._at(path))

    def rmdir(self, path: str) -> None:
        self.tree.rmdir(ROOT, *self._at(path))

    def rename(self, path: str, to: str, flags: int = 0) -> None:
        self.tree.rename(ROOT, *self._at(path), *self._at(to), flags)

    def truncate(self, path: str, size: int) -> None:
        self.set(path, Changes(size=size))

    def set(self, path: str, changes: Changes) -> None:
        self.tree.setattr(ROOT, self.node(path), changes)

    def size(self, path: str) -> int:
        return self.tree.getattr(self.node(path)).size

    def snapshot(self, path: str = "") -> dict[str, object]:
        """All there is, as nested dictionaries of names and contents."""
        out: dict[str, object] = {}
        for name in self.list(path):
            at = f"{path}/{name}"
            out[name] = self.snapshot(at) if self.node(at).is_dir else self.read(at)
        return out
