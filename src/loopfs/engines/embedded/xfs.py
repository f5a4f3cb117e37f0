"""xfs, by dissect.xfs. The log is not replayed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dissect.xfs import xfs

from loopfs.engines.embedded.volume import Inode, Volume


def volume(device: BinaryIO, options: list[str]) -> Volume:
    fs = xfs.XFS(device)
    return Volume(XfsFile(fs.root), fs.sb.sb_dblocks * fs.block_size, fs.block_size)


class XfsFile(NamedTuple):
    node: Any

    @property
    def key(self) -> object:
        return self.node.inum

    def inode(self) -> Inode:
        node, raw = self.node, self.node.inode
        mode = raw.di_mode
        times = (node.atime_ns, node.mtime_ns, node.ctime_ns)
        nlink = raw.di_nlink if raw.di_version > 1 else raw.di_onlink
        rdev = 0
        if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):  # xfs_dev_t: 14 and 18 bits, big-endian
            number = int.from_bytes(node.datafork().read(4), "big")
            rdev = os.makedev(number >> 18, number & 0x3FFFF)
        return Inode(node.inum, mode, node.size, times, nlink, raw.di_uid, raw.di_gid, rdev)

    def names(self) -> Iterator[tuple[bytes, XfsFile]]:
        for node in self.node.iterdir():
            if node.filename not in (".", ".."):
                yield os.fsencode(node.filename), XfsFile(node)

    def target(self) -> bytes:
        return os.fsencode(self.node.link)

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.node.open()
        return stream
