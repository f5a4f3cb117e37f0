"""Dump a tree of loopfs, in the form of :mod:`tests.support.tree_dump`."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from typing import Any

from loopfs.fuse.tree import Caller, Tree

_MOST_DEPTH = 12
_PIECE = 128 << 10
_NOBODY = Caller(0, 0, 0)


def dump(tree: Tree[Any]) -> dict[str, object]:
    """statfs, and all entries."""
    space = tree.statfs()
    return {
        "statfs": [space.bsize, space.blocks, space.files, space.namelen],
        "entries": entries(tree, tree.root(), b"", 0),
    }


def listed(tree: Tree[Any], node: Any) -> list[bytes]:
    """The names in a directory, but for the dots, in pages as the kernel asks for them."""
    handle, place = tree.opendir(_NOBODY, node), 0
    names: list[bytes] = []
    while True:
        page = []
        for following, name, _, _, _ in tree.entries(handle, place):
            page.append(name)
            place = following
            if len(page) == 20:
                break
        if not page:
            return [name for name in names if name not in (b".", b"..")]
        names += page


def entries(tree: Tree[Any], directory: Any, path: bytes, depth: int) -> list[list[object]]:
    try:
        names = sorted(listed(tree, directory))
    except OSError as problem:
        return [[path.decode("latin-1"), "listdir", problem.errno]]
    out: list[list[object]] = []
    for name in names:
        shown = (path + b"/" + name).decode("latin-1")
        try:
            node, _ = tree.lookup(directory, name)
            attr = tree.getattr(node)
        except OSError as problem:
            out.append([shown, "lstat", problem.errno])
            continue
        tree.known(node)
        rdev = os.makedev(attr.rdev >> 8 & 0xFFF, attr.rdev & 0xFF | attr.rdev >> 12 & 0xFFF00)
        numbers = attr.mode, attr.nlink, attr.uid, attr.gid, attr.size
        more = rdev, attr.blocks, attr.blksize, attr.ino
        out.append([shown, *numbers, *more, *attr.times, content(tree, node, attr.mode, attr.size)])
        if stat.S_ISDIR(attr.mode) and depth < _MOST_DEPTH:
            out += entries(tree, node, path + b"/" + name, depth + 1)
        tree.forgotten(node)
    return out


def content(tree: Tree[Any], node: Any, mode: int, size: int) -> object:
    try:
        if stat.S_ISLNK(mode):
            return tree.readlink(node).decode("latin-1")
        if stat.S_ISREG(mode):
            handle, summed = tree.open(_NOBODY, node, os.O_RDONLY), hashlib.sha256()
            for offset in range(0, size, _PIECE):
                piece = tree.read(handle, offset, min(_PIECE, size - offset))
                summed.update(bytes(piece).ljust(min(_PIECE, size - offset), b"\0"))
            return summed.hexdigest()
    except OSError as problem:
        return problem.errno or errno.EIO
    return ""
