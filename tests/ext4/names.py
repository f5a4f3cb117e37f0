"""Directories with many names, whose index has levels: made by loopfs, changed by the kernel.

    python3 -m tests.ext4.names 20000 [--seed N]

in the checkout, without FUSE. So many names are made in one directory, a third of them go, half of
those come again; e2fsck has to find the index right. As root the kernel then lists the directory,
looks names up, removes some and makes others, and ours lists that.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.ext4.crash import MEMORY
from tests.ext4.direct import Direct
from tests.ext4.images import MIB, fsck, make_image, open_image
from tests.ext4.sequence import by_kernel, own_mounts

KINDS = (
    "-b 1024",
    "-b 1024 ; tune2fs -E hash_alg=tea",
    "-b 1024 -O ^metadata_csum,^64bit ; tune2fs -E hash_alg=legacy",
    "-b 4096",
    "-b 1024 -O large_dir",
    "-b 2048 -t ext3",
    "-b 1024 -O ^dir_index",
)
LEVELLED = 6000  # names, in blocks of 1 KiB: so many need two levels


def _name(number: int, chance: Random) -> str:
    return f"{'long ' * chance.choice((1, 4, 12))}{number}\u00e9"


def check(kind: str, count: int, seed: int, *, kernel: bool) -> list[str]:
    """What is wrong with a directory of ``count`` names."""
    chance = Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory(prefix="loopfs-test-", dir=MEMORY) as directory:
        path = Path(directory, "image")
        make_image(path, f"-N {count + 2000} {kind}", 96 * MIB)
        names, levels = _make(path, count, chance)
        faults = _compare(path, names, "made by ours")
        indexed = kind.startswith("-b 1024") and "dir_index" not in kind
        if indexed and count >= LEVELLED and not levels:
            faults.append(f"the index has {levels} levels")
        if kernel:
            (place := Path(directory, "m")).mkdir()
            with by_kernel(path, place):
                faults += _go_on(place / "d", names, chance)
            faults += _compare(path, names, "changed by the kernel")
        return [f"{kind!r} seed {seed}: {one}" for one in faults]


def _make(path: Path, count: int, chance: Random) -> tuple[set[str], int]:
    """Make names by ours; returns them, and the levels of the index."""
    tree, fd = open_image(path)
    try:
        calls = Direct(tree)
        calls.mkdir("d")
        made = [_name(n, chance) for n in range(count)]
        for name in made:
            calls.open(f"d/{name}", os.O_CREAT | os.O_RDWR).close()
        gone = chance.sample(made, count // 3)
        for name in gone:
            calls.unlink(f"d/{name}")
        again = gone[: len(gone) // 2]
        for name in again:
            calls.open(f"d/{name}", os.O_CREAT | os.O_RDWR).close()
        with calls.node("d") as node:
            _, _, place, _ = tree.volume.map(node)[0]
            levels = tree.volume.blocks.get(place)[30]
        tree.destroy()
        return set(made) - set(gone) | set(again), levels
    finally:
        os.close(fd)


def _compare(path: Path, names: set[str], when: str) -> list[str]:
    problems = fsck(path)
    faults = [f"{when}: {problems[:1000]}"] if problems else []
    tree, fd = open_image(path, read_only=True)
    try:
        different = names ^ set(Direct(tree).list("d"))
    finally:
        os.close(fd)
    return faults + [f"{when}: {sorted(different)[:5]}"] * bool(different)


def _go_on(directory: Path, names: set[str], chance: Random) -> list[str]:
    """The kernel looks up, removes and makes names."""
    faults = []
    if set(os.listdir(directory)) != names:
        faults.append("the kernel lists others")
    for name in chance.sample(sorted(names), min(len(names), 1500)):
        try:
            if chance.random() < 0.5:
                (directory / name).unlink()
                names.remove(name)
            else:
                (directory / name).stat()
        except FileNotFoundError:
            faults.append(f"the kernel does not find {name}")
    for n in range(800):
        (directory / f"made by the kernel {n}").touch()
        names.add(f"made by the kernel {n}")
    return faults[:10]


def main() -> int:
    """Exit status: 1 something is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.names")
    parser.add_argument("names", type=int, help="in a directory")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", default="", help="arguments of mke2fs: only this kind")
    options = parser.parse_args()
    kernel, begin, wrong = own_mounts(), time.monotonic(), 0
    kinds = (options.kind,) if options.kind else KINDS
    for kind in kinds:
        found = check(kind, options.names, options.seed, kernel=kernel)
        wrong += bool(found)
        print(*found, sep="\n", end="\n" if found else "", flush=True)
    seconds = time.monotonic() - begin
    print(f"seed {options.seed}: {len(kinds)} directories in {seconds:.0f} s, {wrong} with faults")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
