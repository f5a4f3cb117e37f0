"""ext2, ext3 and ext4, by dissect.extfs. The journal is not replayed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dissect.extfs import extfs

from loopfs.engines.embedded.volume import Inode, Volume


def volume(device: BinaryIO, options: list[str]) -> Volume:
    fs = extfs.ExtFS(device)
    return Volume(ExtFile(fs.root), fs.sb.s_blocks_count_lo * fs.block_size, fs.block_size)


class ExtFile(NamedTuple):
    node: Any

    @property
    def key(self) -> object:
        return self.node.inum

    def inode(self) -> Inode:
        node, raw = self.node, self.node.inode
        mode = raw.i_mode
        times = (node.atime_ns, node.mtime_ns, node.ctime_ns)
        rdev = _device(raw.i_block) if stat.S_ISBLK(mode) or stat.S_ISCHR(mode) else 0
        uid = raw.i_uid_high << 16 | raw.i_uid
        gid = raw.i_gid_high << 16 | raw.i_gid
        return Inode(node.inum, mode, node.size, times, raw.i_links_count, uid, gid, rdev)

    def names(self) -> Iterator[tuple[bytes, ExtFile]]:
        for node in self.node.iterdir():
            if node.filename not in (".", ".."):
                yield os.fsencode(node.filename), ExtFile(node)

    def target(self) -> bytes:
        return os.fsencode(self.node.link)

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.node.open()
        return stream


def _device(block: bytes) -> int:
    """ext4_iget: the old encoding (16 bits) in the first word, or the new in the second."""
    old = int.from_bytes(block[0:4], "little")
    if old:
        return os.makedev(old >> 8 & 0xFF, old & 0xFF)
    new = int.from_bytes(block[4:8], "little")
    return os.makedev((new & 0xFFF00) >> 8, new & 0xFF | new >> 12 & 0xFFF00)
