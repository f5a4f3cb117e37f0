"""squashfs, by dissect.squashfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dissect.squashfs import squashfs

from loopfs.engines.embedded.volume import Inode, Volume


def volume(device: BinaryIO, options: list[str]) -> Volume:
    fs = squashfs.SquashFS(device)
    return Volume(SquashFile(fs.root), fs.sb.bytes_used, fs.block_size)


class SquashFile(NamedTuple):
    node: Any

    @property
    def key(self) -> object:
        return self.node.inode_number

    def inode(self) -> Inode:
        node, raw = self.node, self.node.header
        time = raw.mtime * 1_000_000_000
        rdev = 0
        if node.is_device():
            rdev = os.makedev((raw.rdev & 0xFFF00) >> 8, raw.rdev & 0xFF | raw.rdev >> 12 & 0xFFF00)
        size = node.size or 0
        if stat.S_ISDIR(node.mode):
            size = max(size - 3, 0)  # the size includes 3 for "." and ".."
        # A basic inode of a regular file has no link count: it has one name.
        nlink = getattr(raw, "nlink", 1)
        times = (time, time, time)
        return Inode(node.inode_number, node.mode, size, times, nlink, node.uid, node.gid, rdev)

    def names(self) -> Iterator[tuple[bytes, SquashFile]]:
        for node in self.node.iterdir():
            yield os.fsencode(node.name), SquashFile(node)

    def target(self) -> bytes:
        return os.fsencode(self.node.link)

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.node.open()
        return stream
