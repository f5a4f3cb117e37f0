"""Images with wrong structures: ``python3 -m tests.iso9660.hostile [COUNT [FIRST]]`` tries many.

Only OSErrors are answers, and each call ends.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from functools import cache

from tests.iso9660 import images
from tests.iso9660.build import SECTOR
from tests.support.tree_look import look, refused

OPTIONS = ["", "norock", "norock,nojoliet", "map=off,norock", "cruft", "showassoc,check=r", "hide"]
SIGNATURES = (b"SP", b"CE", b"ER", b"PX", b"PN", b"SL", b"NM", b"CL", b"TF", b"ZF", b"RE", b"RR")


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
        refused(problem, seen, "mount")
        return seen
    look(tree, seen)
    return seen


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
