"""btrfs, by dissect.btrfs."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dissect.btrfs import btrfs

from loopfs.engines.embedded.volume import Inode, Volume
from loopfs.errors import LoopfsError


def volume(device: BinaryIO, options: list[str]) -> Volume:
    fs = btrfs.Btrfs(device)
    root = _subvolume(fs, dict(o.split("=", 1) for o in options if "=" in o)).root
    return Volume(BtrfsFile(root), fs.sb.total_bytes, fs.sb.sectorsize)


def _subvolume(fs: Any, options: dict[str, str]) -> Any:
    if "subvolid" in options:
        return fs.open_subvolume(int(options["subvolid"], 0))
    if "subvol" in options:
        found = fs.find_subvolume(options["subvol"].strip("/"))
        if found is None:
            raise LoopfsError(errno.ENOENT, f"there is no subvolume '{options['subvol']}'")
        return found
    return fs.default_subvolume


class BtrfsFile(NamedTuple):
    node: Any

    @property
    def key(self) -> object:
        return self.node.subvolume.objectid, self.node.inum

    def inode(self) -> Inode:
        node, raw = self.node, self.node.inode
        times = (node.atime_ns, node.mtime_ns, node.ctime_ns)
        rdev = os.makedev(raw.rdev >> 20, raw.rdev & 0xFFFFF)
        return Inode(node.inum, node.mode, node.size, times, raw.nlink, node.uid, node.gid, rdev)

    def names(self) -> Iterator[tuple[bytes, BtrfsFile]]:
        for name, node in self.node.iterdir():
            if name not in (".", ".."):
                yield os.fsencode(name), BtrfsFile(node)

    def target(self) -> bytes:
        return os.fsencode(self.node.link)

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.node.open()
        return stream
