"""Read a tree that may be damaged: calls must end, and fail only with OSErrors."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from typing import Any

from loopfs.fuse.tree import Caller, Tree

MOST = 3000  # the maximum number of entries that are read
_NOBODY = Caller(0, 0, 0)


def look(tree: Tree[Any], seen: Counter[str]) -> None:
    """Read every directory once, and a part of every file; count the results in ``seen``."""
    left, done = [tree.root()], set()
    tree.statfs()
    while left and sum(seen.values()) < MOST:
        directory = left.pop()
        if directory.nodeid in done:
            continue
        done.add(directory.nodeid)
        try:
            handle = tree.opendir(_NOBODY, directory)
            for _, name, _, _, node in tree.entries(handle, 0):
                seen["listed"] += 1
                assert name and b"/" not in name and b"\0" not in name
                if name not in (b".", b"..") and sum(seen.values()) < MOST:
                    _one(tree, directory, name, left, seen)
                assert node is None or node.nodeid
        except OSError as problem:
            refused(problem, seen)


def refused(problem: OSError, seen: Counter[str], what: str = "errno") -> None:
    """Count an error."""
    seen[f"{what} {errno.errorcode[problem.errno or 0]}"] += 1


def _one(tree: Tree[Any], directory: Any, name: bytes, left: list[Any], seen: Counter[str]) -> None:
    try:
        node, _ = tree.lookup(directory, name)
        attr = tree.getattr(node)
        attr.pack()
        tree.known(node)
        if stat.S_ISDIR(attr.mode):
            left.append(node)
        elif stat.S_ISLNK(attr.mode):
            assert len(tree.readlink(node)) < 4096
        elif stat.S_ISREG(attr.mode):
            handle = tree.open(_NOBODY, node, os.O_RDONLY)
            for offset in {0, max(attr.size - 4096, 0) & ~4095}:
                wanted = min(1 << 17, attr.size - offset)
                assert wanted <= 0 or len(tree.read(handle, offset, wanted)) == wanted
        seen["looked at"] += 1
    except OSError as problem:
        refused(problem, seen)
