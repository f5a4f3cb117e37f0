"""Images with damaged structures: every call ends, and fails only with an errno.

    python3 -m tests.ext4.hostile 10000 [--seed N]

in the checkout. In half of the cases the checksums are made right again. Each image is mounted in
process, walked, read and written to, within limits of time and memory.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from types import FrameType

from tests.ext4.direct import ROOT, Direct
from tests.ext4.images import MIB, Memory, made, use
from tests.ext4.structures import Structure, find

KINDS = (
    "-b 1024 -J size=1",
    "-b 1024 -O ^metadata_csum,^64bit -J size=1",
    "-b 1024 -I 512 -O inline_data -J size=1",
    "-b 1024 -t ext3 -J size=1",
    "-b 1024 -t ext2",
    "-b 1024 -O encrypt,verity,casefold,ea_inode,mmp -J size=1",
    "-b 1024 -O meta_bg,^resize_inode,orphan_file -g 1024 -J size=1",
    "-b 4096 -I 128 -O ^metadata_csum,uninit_bg,^has_journal",
)
SIZE = 8 * MIB
SECONDS = 10.0  # of the processor, for one image
MEMORY = 300 * MIB  # beside what the program has at the beginning
SENSIBLE = (
    *(errno.EUCLEAN, errno.EBADMSG, errno.EIO, errno.EINVAL, errno.EROFS, errno.ENOSPC),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY, errno.EISDIR, errno.EFBIG),
    *(errno.EMLINK, errno.EPERM, errno.ENODATA, errno.EOPNOTSUPP, errno.ELOOP, errno.ENODEV),
    *(errno.ENXIO, errno.EBUSY),
)
_MOST_NAMES = 400  # that are looked at
_MOST_READ = 1 << 20  # bytes of a file


class TooLong(BaseException):
    """The limit of time; nothing of ours may catch it."""


class Image:
    """An image with a bit of everything, and where it has what.

    Attributes:
        whole: unmounted; its structures.
        left: not unmounted, with a journal that is to be replayed, and an orphan.
    """

    def __init__(self, kind: str) -> None:
        data = made(kind, SIZE)
        tree, _ = use(Memory(data))
        _fill(Direct(tree))
        tree.destroy()
        self.whole = bytes(data), find(data)
        tree, _ = use(Memory(data))
        calls = Direct(tree)
        for n in range(20):
            calls.write(f"late {n}", bytes(n * 300), sync=True)
        self._orphan = calls.open("late 4")
        calls.unlink("late 4")
        calls.write("last", b"", sync=True)
        journal = [one for one in find(data) if one.kind.startswith("journal")]
        self.left = bytes(data), journal + self.whole[1]


def _fill(calls: Direct) -> None:
    for directory in ("few", "many", "few/inner"):
        calls.mkdir(directory)
    for n in range(150):
        calls.write(f"many/a name that takes some room {n}", b"")
    calls.write("whole", b"w" * 50_000)
    calls.write("holes", b"")
    file = calls.open("holes", os.O_RDWR)
    for n in range(60):
        file.write(b"h" * 1024, n * 9000)
    file.close()
    calls.write("few/unwritten", b"")
    with suppress(OSError):  # not with block maps
        calls.fallocate("few/unwritten", 0, 0, 100_000)
    calls.write("few/attributes", b"a")
    calls.write("few/small", b"s" * 100)
    for n in range(5):
        calls.setxattr("few/attributes", f"user.{n}", b"v" * 90)
    with suppress(OSError):  # only in inodes of their own
        calls.setxattr("few/attributes", "user.large", b"L" * 5000)
        calls.setxattr("few/small", "user.large", b"L" * 3000)
    calls.symlink("short", "few/short link")
    calls.symlink("long" * 40, "few/long link")
    calls.link("whole", "few/other name")


@cache
def image(kind: str) -> Image:
    """One of a kind."""
    return Image(kind)


# --- changing ---------------------------------------------------------------------------


def mutated(words: str, seed: int) -> tuple[bytearray, list[str]]:
    """An image with some structures changed, and which."""
    chance = random.Random(f"{words} {seed}")
    base, structures = image(words).left if chance.random() < 0.3 else image(words).whole
    data, said = bytearray(base), []
    sealed = chance.random() < 0.5
    kinds = sorted({one.kind for one in structures})
    kinds += ["inode"] * 6
    if "journal block" in kinds and base is image(words).left[0]:
        kinds += ["journal block"] * 4
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        kind = chance.choice(kinds)
        structure = chance.choice([one for one in structures if one.kind == kind])
        before = data[structure.offset : structure.offset + structure.length]
        _change(data, structure, chance)
        after = data[structure.offset : structure.offset + structure.length]
        at = next(
            (n for n, pair in enumerate(zip(before, after, strict=True)) if len(set(pair)) > 1), 0
        )
        said.append(
            f"{structure.kind}+{at}: {before[at : at + 8].hex()} {after[at : at + 8].hex()}"
        )
        if sealed:
            structure.seal(data)
    return data, [*said, "sealed" if sealed else "not sealed"]


def _change(data: bytearray, structure: Structure, chance: random.Random) -> None:
    """Some bytes of a structure."""
    size = chance.choice((1, 2, 2, 4, 4, 4, 8))
    at = structure.offset + chance.randrange(structure.used) // size * size
    old = int.from_bytes(data[at : at + size], "little")
    whole = (1 << size * 8) - 1
    new = chance.choice(
        (
            lambda: old ^ 1 << chance.randrange(size * 8),
            lambda: old + chance.choice((-1, 1, 4, -4, 8)),
            lambda: chance.randrange(whole + 1),
            lambda: chance.choice((0, 1, whole, whole >> 1, 2, 11, 12, 255, 1024, 0x8000)),
            lambda: chance.randrange(SIZE // 1024),  # a block, perhaps
            lambda: int.from_bytes(data[at + size : at + 2 * size], "little"),
        )
    )()
    data[at : at + size] = (new & whole).to_bytes(size, "little")
    if chance.random() < 0.1:  # another part of it
        other = structure.offset + chance.randrange(structure.used) // 4 * 4
        data[at : at + 4] = data[other : other + 4]


# --- using --------------------------------------------------------------------------------


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Not longer than so many seconds of the processor."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def exercise(data: bytearray, seed: int, errors: list[int]) -> None:
    """Use an image; ``errors`` are the errnos that came."""
    chance = random.Random(seed)
    options = "errors=remount-ro" if chance.random() < 0.1 else ""

    def attempt(act: Callable[[], object]) -> object:
        try:
            return act()
        except OSError as problem:
            errors.append(problem.errno or 0)
            tree.failed(problem)
            return None

    try:
        tree, _ = use(Memory(data), read_only=chance.random() < 0.2, options=options)
    except OSError as problem:
        errors.append(problem.errno or 0)
        return
    calls = Direct(tree)
    attempt(tree.statfs)
    paths = _walk(calls, attempt)
    chance.shuffle(paths)
    paths.sort(key=lambda path: path.startswith("/many/"))
    for number, path in enumerate(paths[:40]):
        _write_to(calls, path, number, chance, attempt)
    attempt(tree.destroy)


Attempt = Callable[[Callable[[], object]], object]


def _walk(calls: Direct, attempt: Attempt) -> list[str]:
    """All paths that can be reached, each looked at."""
    paths, queue = [""], [""]
    while queue and len(paths) < _MOST_NAMES:
        directory = queue.pop()
        names = attempt(partial(calls.list, directory))
        for name in names[:200] if isinstance(names, list) else ():
            path = f"{directory}/{name}"
            paths.append(path)
            attempt(partial(calls.xattrs, path))
            if attempt(partial(_look, calls, path)) and path.count("/") < 6:
                queue.append(path)
    return paths


def _look(calls: Direct, path: str) -> bool:
    """Read what there is; it is a directory."""
    with calls.node(path) as node:
        tree = calls.tree
        tree.getattr(node)
        if node.is_link:
            tree.readlink(node)
        if node.is_regular:
            handle = tree.open(ROOT, node, os.O_RDONLY)
            for offset in (0, 1 << 16, max(node.size - 5000, 0)):
                tree.read(handle, offset, _MOST_READ)
            if node.size:
                tree.lseek(handle, 0, os.SEEK_HOLE)
        return node.is_dir


def _write_to(
    calls: Direct, path: str, number: int, chance: random.Random, attempt: Attempt
) -> None:
    """Change what is at a path."""
    new, end = f"{path}/new {number}", chance.randrange(200_000)
    for act in chance.sample(
        (
            lambda: calls.write(new, b"n" * end),
            lambda: calls.mkdir(new),
            lambda: calls.symlink("s" * 100, new),
            lambda: calls.write(path, b"x" * end, sync=True),
            lambda: calls.truncate(path, end),
            lambda: calls.fallocate(path, chance.choice((0, 3, 16)), end, 30_000),
            lambda: calls.setxattr(path, "user.y", bytes(end & 255)),
            lambda: calls.setxattr(path, "user.large", bytes(end & 0xFFFF)),
            lambda: calls.removexattr(path, "user.1"),
            lambda: calls.link(path, f"/link {number}"),
            lambda: calls.rename(path, f"/many/renamed {number}"),
            lambda: calls.unlink(path),
            lambda: calls.rmdir(path),
        ),
        5,
    ):
        attempt(act)


def check(kind: str, seed: int) -> str:
    """What is wrong with the answers to one image; empty: nothing is."""
    data, said = mutated(kind, seed)
    errors: list[int] = []
    try:
        with limited(SECONDS):
            exercise(data, seed, errors)
    except (Exception, TooLong) as problem:
        lines = traceback.format_exception(problem)
        return f"{kind!r} seed {seed}: {said}\n" + "".join(lines[-14:])
    gc.collect()  # an image is large, and in circles of references
    strange = {one for one in errors if one not in SENSIBLE}
    if strange:
        return f"{kind!r} seed {seed}: {said}: errno {sorted(strange)}\n"
    return ""


def main() -> int:
    """Exit status: 1 something is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.hostile")
    parser.add_argument("images", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", default="", help="arguments of mke2fs: only this kind")
    parser.add_argument("--faults", type=int, default=10, help="after how many to end")
    options = parser.parse_args()
    kinds = (options.kind,) if options.kind else KINDS
    for kind in kinds:
        image(kind)
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    begin, done, faults = time.monotonic(), 0, 0
    for turn in range(options.images):
        found = check(kinds[turn % len(kinds)], options.seed + turn)
        done += 1
        if found:
            faults += 1
            print(found, flush=True)
            if faults >= options.faults:
                break
    seconds = time.monotonic() - begin
    print(f"seed {options.seed}: {done} images in {seconds:.0f} s, {faults} with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
