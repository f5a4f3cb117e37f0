"""Images with wrong structures: ``python3 -m tests.iso9660.hostile [COUNT [FIRST]]`` tries many.

Only OSErrors are answers, and each call ends.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import sys
import time
from collections import Counter
from functools import cache
from typing import Any

from loopfs.fuse.tree import Caller, Tree
from tests.iso9660 import images
from tests.iso9660.build import SECTOR

OPTIONS = ["", "norock", "norock,nojoliet", "map=off,norock", "cruft", "showassoc,check=r", "hide"]
SIGNATURES = (b"SP", b"CE", b"ER", b"PX", b"PN", b"SL", b"NM", b"CL", b"TF", b"ZF", b"RE", b"RR")
MOST = 3000  # entries that are looked at
_NOBODY = Caller(0, 0, 0)


def mutated(image: bytearray, seed: int) -> bytearray:
    """With some fields changed to what hurts most."""
    chance = random.Random(seed)
    out, blocks = bytearray(image), len(image) // SECTOR
    used = [at for at in range(16 * SECTOR, len(out)) if out[at]]
    for _ in range(chance.choice((1, 1, 2, 3, 8, 30))):
        at = chance.choice(used)
        number = chance.choice(
            (0, 1, chance.randrange(blocks), blocks - 1, blocks, 1 << 31, (1 << 32) - 1, SECTOR)
        )
        match chance.randrange(6):
            case 0:
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                out[at] = chance.choice((0, 1, 2, 33, 34, 127, 128, 254, 255))
            case 2:
                out[at : at + 4] = number.to_bytes(4, "little")
            case 3:  # a field of Rock Ridge
                places = [place for sig in SIGNATURES if (place := out.find(sig, at)) >= 0]
                place = chance.choice(places or [at])
                field = place + chance.choice((2, 4, 8, 12, 20))
                out[field : field + 4] = number.to_bytes(4, "little")
            case 4:  # extent or size of a record
                place = out.find(b";1", at)
                field = max(place, 64) - chance.randrange(20, 50)
                out[field : field + 4] = number.to_bytes(4, "little")
            case 5:
                other = chance.choice(used)
                length = chance.randrange(1, 40)
                out[at : at + length] = out[other : other + length]
    if chance.random() < 0.1:
        del out[chance.randrange(len(out)) :]
    return out[: len(image)]


def survive(image: bytearray, options: str) -> Counter[str]:
    """Look at everything, and count what was answered."""
    seen: Counter[str] = Counter()
    try:
        tree = images.mounted(image, options)
    except OSError as problem:
        seen[f"mount {errno.errorcode[problem.errno or 0]}"] += 1
        return seen
    look(tree, seen)
    return seen


def look(tree: Tree[Any], seen: Counter[str]) -> None:
    """Every directory once, and a part of every file."""
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
            seen[f"errno {errno.errorcode[problem.errno or 0]}"] += 1


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
        seen[f"errno {errno.errorcode[problem.errno or 0]}"] += 1


@cache
def _built(name: str) -> bytearray:
    return images.BUILT[name]()


def one(seed: int) -> Counter[str]:
    """An image that is wrong, by its seed."""
    names = [name for name in images.BUILT if name not in ("nothing", "short")]
    return survive(mutated(_built(names[seed % len(names)]), seed), OPTIONS[seed % len(OPTIONS)])


def main(count: int = 20000, first: int = 0) -> None:
    """Say what was answered, and which seed took longest."""
    seen: Counter[str] = Counter()
    slowest = 0.0, 0
    for seed in range(first, first + count):
        begun = time.monotonic()
        try:
            seen += one(seed)
        except BaseException:
            print("seed", seed)
            raise
        slowest = max(slowest, (time.monotonic() - begun, seed))
    print(dict(seen), "slowest:", slowest)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
