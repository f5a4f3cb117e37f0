"""Volumes with wrong structures: ``python3 -m tests.udf.hostile [COUNT [FIRST]]`` tries many."""

from __future__ import annotations

import random
import struct
import sys
import time
from collections import Counter
from functools import cache

from loopfs.udf import tag
from tests.support.tree_look import look, refused
from tests.udf.test_as_kernel import image_of, mounted

OPTIONS = ["", "novrs", "unhide,undelete", "iocharset=koi8-r", "mode=0777,umask=022"]
BLOCK_SIZES = {"2048": 2048, "hd-2.01": 512, "sparable": 2048, "virtual": 2048, "bridge": 2048}


@cache
def _tagged(name: str) -> list[tuple[int, int]]:
    """Where blocks with a tag are, and what place each tells."""
    image, size, out = image_of(name), BLOCK_SIZES[name], []
    for at in range(0, len(image), size):
        (location,) = struct.unpack_from("<I", image, at + 12)
        if any(image[at : at + 2]) and tag.identify(bytes(image[at : at + size]), location):
            out.append((at, location))
    return out


def retagged(raw: bytes, location: int) -> bytes:
    """A block whose tag is right again, for a place."""
    out = bytearray(raw)
    (length,) = struct.unpack_from("<H", out, 10)
    length = min(length, len(out) - 16)
    struct.pack_into("<HHI", out, 8, tag.crc(bytes(out[16 : 16 + length])), length, location)
    out[4] = 0
    out[4] = sum(out[:16]) & 0xFF
    return bytes(out)


def mutated(name: str, seed: int) -> bytearray:
    """With some fields changed to what hurts most, of descriptors and of directories."""
    chance = random.Random(seed)
    out, size = bytearray(image_of(name)), BLOCK_SIZES[name]
    blocks = len(out) // size
    numbers = 0, 1, 2, chance.randrange(blocks), blocks, (1 << 30) - 1, 1 << 30, 3 << 30, 0xFFFFFFFF
    for _ in range(chance.choice((1, 1, 2, 4, 10))):
        at, location = chance.choice(_tagged(name))
        field = chance.randrange(16, min(size, 512) - 4)
        match chance.randrange(4):
            case 0:
                out[at + field] ^= 1 << chance.randrange(8)
            case 1:
                struct.pack_into("<I", out, at + (field & ~3), chance.choice(numbers))
            case 2:
                struct.pack_into(
                    "<H", out, at + (field & ~1), chance.choice((0, 1, 3, 250, 0xFFFF))
                )
            case 3:  # where, and how large, its extents are
                field = chance.choice((56, 172, 176, 180, 184))
                struct.pack_into("<I", out, at + field, chance.choice(numbers))
        if chance.random() < 0.9:
            out[at : at + size] = retagged(bytes(out[at : at + size]), location)
    if chance.random() < 0.05:
        del out[chance.randrange(len(out)) :]
    return out


def one(seed: int) -> Counter[str]:
    """A volume that is wrong, by its seed: what was answered."""
    seen: Counter[str] = Counter()
    name = list(BLOCK_SIZES)[seed % len(BLOCK_SIZES)]
    try:
        tree = mounted(mutated(name, seed), OPTIONS[seed % len(OPTIONS)])
    except OSError as problem:
        refused(problem, seen, "mount")
        return seen
    look(tree, seen)
    return seen


def main(count: int = 5000, first: int = 0) -> None:
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
