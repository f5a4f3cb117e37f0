"""Calls by path on an image, without FUSE: the requests that the kernel would send."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from loopfs.ext4.errors import refused
from loopfs.ext4.filesystem import Ext4
from loopfs.ext4.inode import Inode
from loopfs.fuse.tree import Caller, Changes, Handle

ROOT = Caller(0, 0, 1)
_PIECE = 1 << 17  # bytes: of one write


class Opened(NamedTuple):
    """An open file."""

    tree: Ext4
    handle: Handle[Inode]

    def read(self) -> bytes:
        """All of it."""
        out, at, size = [], 0, self.handle.node.size
        while at < size:
            piece = bytes(self.tree.read(self.handle, at, min(size - at, 1 << 20)))
            out.append(piece)
            at += len(piece)
            if not piece:
                break
        return b"".join(out)

    def write(self, data: bytes, offset: int = 0) -> None:
        """All of it, in pieces. Raises OSError ENOSPC: some may be stored."""
        view = memoryview(data)
        while view:
            done = self.tree.write(self.handle, offset, view[:_PIECE])
            view, offset = view[done:], offset + done

    def sync(self) -> None:
        """fsync(2)."""
        later = self.tree.fsync(self.handle, False)
        if later is not None:
            later.work()

    def close(self) -> None:
        """It and its node are let go of."""
        self.tree.release(self.handle)
        self.tree.server.forget(self.handle.node.nodeid, 1)


class Direct:
    """System calls with paths from the root."""

    def __init__(self, tree: Ext4) -> None:
        self.tree = tree

    @contextmanager
    def node(self, path: str) -> Iterator[Inode]:
        """What a path leads to, known to the kernel for a while."""
        server, known = self.tree.server, []
        node = self.tree.root()
        try:
            for name in filter(None, path.split("/")):
                node, _ = self.tree.lookup(node, os.fsencode(name))
                server.count_lookup(node)
                known.append(node)
            yield node
        finally:
            for one in known:
                server.forget(one.nodeid, 1)

    @contextmanager
    def at(self, path: str) -> Iterator[tuple[Inode, bytes]]:
        """The directory of a path, and its last name."""
        directory, _, name = path.rpartition("/")
        with self.node(directory) as node:
            yield node, os.fsencode(name)

    def open(self, path: str, flags: int = os.O_RDONLY) -> Opened:
        """open(2); with O_CREAT the name is new."""
        if flags & os.O_CREAT:
            with self.at(path) as (parent, name):
                (node, _), handle = self.tree.create(ROOT, parent, name, 0o644, flags)
                self.tree.server.count_lookup(node)
            return Opened(self.tree, handle)
        with self.node(path) as node:
            if node.is_link:
                raise refused(errno.ELOOP)
            handle = self.tree.open(ROOT, node, flags)
            self.tree.server.count_lookup(node)
            return Opened(self.tree, handle)

    def write(self, path: str, data: bytes, *, sync: bool = False) -> None:
        """A file with these contents."""
        try:
            file = self.open(path, os.O_RDWR | os.O_TRUNC)
        except FileNotFoundError:
            file = self.open(path, os.O_RDWR | os.O_CREAT)
        try:
            file.write(data)
            if sync:
                file.sync()
        finally:
            file.close()

    def read(self, path: str) -> bytes:
        """A file's contents."""
        file = self.open(path)
        try:
            return file.read()
        finally:
            file.close()

    def list(self, path: str = "") -> list[str]:
        """Names, without the dots."""
        with self.node(path) as node:
            handle = self.tree.opendir(ROOT, node)
            entries = list(self.tree.entries(handle, 0))
            self.tree.release(handle)
        return [os.fsdecode(name) for _, name, *_ in entries[2:]]

    def mkdir(self, path: str) -> None:
        with self.at(path) as (parent, name):
            self.tree.mkdir(ROOT, parent, name, 0o755)

    def symlink(self, target: str, path: str) -> None:
        with self.at(path) as (parent, name):
            self.tree.symlink(ROOT, parent, name, os.fsencode(target))

    def link(self, path: str, to: str) -> None:
        with self.node(path) as node, self.at(to) as (parent, name):
            self.tree.link(ROOT, node, parent, name)

    def unlink(self, path: str) -> None:
        with self.at(path) as (parent, name):
            self.tree.unlink(ROOT, parent, name)

    def rmdir(self, path: str) -> None:
        with self.at(path) as (parent, name):
            self.tree.rmdir(ROOT, parent, name)

    def rename(self, path: str, to: str, flags: int = 0) -> None:
        with self.at(path) as (parent, name), self.at(to) as (target, new):
            self.tree.rename(ROOT, parent, name, target, new, flags)

    def truncate(self, path: str, size: int) -> None:
        with self.node(path) as node:
            if not node.is_regular:
                raise refused(errno.EINVAL)
            self.tree.setattr(ROOT, node, Changes(size=size))

    def fallocate(self, path: str, mode: int, offset: int, length: int) -> None:
        file = self.open(path, os.O_RDWR)
        try:
            self.tree.fallocate(file.handle, mode, offset, length)
        finally:
            file.close()

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        with self.node(path) as node:
            if node.is_link:  # xattr_permission()
                raise refused(errno.EPERM)
            self.tree.setxattr(ROOT, node, os.fsencode(name), value, 0)

    def removexattr(self, path: str, name: str) -> None:
        with self.node(path) as node:
            self.tree.removexattr(ROOT, node, os.fsencode(name))

    def xattrs(self, path: str) -> dict[str, bytes]:
        """All extended attributes."""
        with self.node(path) as node:
            names = self.tree.listxattr(node)
            return {os.fsdecode(name): self.tree.getxattr(node, name) for name in names}
