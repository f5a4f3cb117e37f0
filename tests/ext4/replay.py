"""Journals left by other drivers are replayed as by e2fsck and the kernel.

    python3 -m tests.ext4.replay 1000 [--seed N]

in the checkout: so many journals written by chance, against e2fsck; and, as root, a tenth as many
that the kernel has left, against the kernel.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from loopfs import syscalls
from loopfs.file_device import FileDevice
from loopfs.filesystems.lending import REMOUNT
from tests.ext4.calls import digest
from tests.ext4.crash import MEMORY
from tests.ext4.direct import Direct
from tests.ext4.images import MIB, Memory, fsck, made, make_image, tool, use
from tests.ext4.logs import TARGETS, Version, Writer
from tests.ext4.sequence import by_kernel, own_mounts

VERSIONS = {
    Version(0, False): "-b 1024 -O ^metadata_csum,^64bit -J size=1",
    Version(0, True): "-b 1024 -O ^metadata_csum,64bit -J size=1",
    Version(1, False): "-b 1024 -O ^metadata_csum,^64bit -J size=1",
    Version(1, True): "-b 1024 -O ^metadata_csum,64bit -J size=1",
    Version(2, False): "-b 1024 -O metadata_csum,^64bit -J size=1",
    Version(2, True): "-b 1024 -O metadata_csum,64bit -J size=1",
    Version(3, False): "-b 1024 -O metadata_csum,^64bit -J size=1",
    Version(3, True): "-b 1024 -O metadata_csum,64bit -J size=1",
}
# The arguments of mke2fs, and the options of the kernel's mount.
KERNEL = (
    ("-b 1024 -J size=1", ""),
    ("-b 4096", "data=journal"),
    ("-b 1024 -O ^metadata_csum,^64bit -J size=2", ""),
    ("-b 1024 -O ^metadata_csum,^64bit -J size=2", "journal_checksum"),
    ("-b 4096 -O ^metadata_csum", "journal_checksum,journal_async_commit,data=writeback"),
    ("-b 1024 -t ext3 -J size=2", ""),
    ("-b 2048 -O metadata_csum_seed -J size=4", "journal_async_commit,data=writeback"),
)
SIZE = 8 * MIB
Found = dict[str, tuple[object, ...]]


def by_chance(version: Version, seed: int) -> list[str]:
    """What e2fsck and ours make of a journal written by chance."""
    chance = Random(f"{version} {seed}")
    data = made(VERSIONS[version], SIZE)
    Writer(data, version, chance).write(chance.randrange(1, 7))
    with tempfile.TemporaryDirectory(prefix="loopfs-test-", dir=MEMORY) as directory:
        path = Path(directory, "image")
        path.write_bytes(data)
        done = tool("e2fsck", "-fy", "-E", "journal_only", path)
        wanted = path.read_bytes()
    if done.returncode > 1:
        return [f"e2fsck: {done.stdout} {done.stderr}"]
    before = bytes(data)
    tree, _ = use(Memory(data), read_only=True)
    reading = [tree.volume.device.read(n * 1024, 1024) for n in TARGETS]
    faults = ["a mount for reading has written"] if before != data else []
    remounted = bytearray(data)
    tree, _ = use(Memory(remounted), read_only=True)
    tree.control(2, REMOUNT, (0,))
    tree.destroy()
    use(Memory(data))[0].destroy()
    for number, read in zip(TARGETS, reading, strict=True):
        place = slice(number * 1024, (number + 1) * 1024)
        if data[place] != wanted[place]:
            faults.append(f"block {number}: e2fsck {wanted[place][:8]!r}, ours {data[place][:8]!r}")
        if read != wanted[place]:
            faults.append(f"block {number}, read only: {wanted[place][:8]!r}, ours {read[:8]!r}")
        if remounted[place] != wanted[place]:
            faults.append(f"block {number}, remounted: {wanted[place][:8]!r}")
    return faults


# --- journals of the kernel ------------------------------------------------------------------


def by_the_kernel(words: str, options: str, seed: int) -> list[str]:
    """What the kernel and ours make of a journal that the kernel has left."""
    with tempfile.TemporaryDirectory(prefix="loopfs-test-", dir=MEMORY) as directory:
        image, other, place = (Path(directory, name) for name in ("image", "other", "m"))
        place.mkdir()
        make_image(image, words, 32 * MIB)
        with by_kernel(image, place, options):
            _work(place, Random(seed))
            shutil.copyfile(image, other)
        shutil.copyfile(other, image)
        with by_kernel(image, place):
            wanted = seen_by_kernel(place)
        fd = os.open(other, os.O_RDWR)
        try:
            reading = seen(Direct(use(FileDevice(fd), read_only=True)[0]))
            tree, _ = use(FileDevice(fd))
            writing = seen(Direct(tree))
            tree.destroy()
        finally:
            os.close(fd)
        faults = [
            f"{words} {options} seed {seed}: {problems}" for problems in (fsck(other),) if problems
        ]
        for found, how in ((reading, "for reading"), (writing, "for writing")):
            faults += [
                f"{how}: {path}: kernel {wanted.get(path)}, ours {found.get(path)}"
                for path in sorted(wanted.keys() | found.keys())
                if wanted.get(path) != found.get(path)
            ]
        return faults


def _work(place: Path, chance: Random) -> None:
    """Names and blocks of metadata come and go, which makes it revoke; then all is synced."""
    for turn in range(chance.randrange(2, 12)):
        directory = place / f"d{chance.randrange(4)}"
        if directory.exists() and chance.random() < 0.4:
            shutil.rmtree(directory)
        directory.mkdir(exist_ok=True)
        for n in range(chance.randrange(150)):
            path = directory / f"{'n' * chance.randrange(60)}{n}"
            path.write_bytes(chance.randbytes(chance.choice((0, 100, 5000, 40_000))))
            if chance.random() < 0.2:
                os.setxattr(path, "user.x", bytes(chance.randrange(500)))
            if chance.random() < 0.2:
                path.unlink()
        if turn % 2:
            _sync(place)
    _sync(place)


def _sync(place: Path) -> None:
    fd = os.open(place, os.O_RDONLY)
    try:
        syscalls.syncfs(fd)
    finally:
        os.close(fd)


def seen_by_kernel(place: Path) -> Found:
    """All there is, as :func:`seen` has it."""
    found: Found = {}
    for directory, names, files in os.walk(place):
        for name in names + files:
            path = os.path.join(directory, name)
            s = os.lstat(path)
            data = Path(path).read_bytes() if name in files else b""
            found[path[len(str(place)) :]] = s.st_mode, s.st_nlink, s.st_ino, digest(data)
    return found


def seen(calls: Direct, directory: str = "") -> Found:
    """All there is, by path."""
    found: Found = {}
    for name in calls.list(directory):
        path = f"{directory}/{name}"
        with calls.node(path) as node:
            row = node.mode, node.nlink, node.ino
            is_dir = node.is_dir
        found[path] = *row, digest(b"" if is_dir else calls.read(path))
        if is_dir:
            found |= seen(calls, path)
    return found


def main() -> int:
    """Exit status: 1 something differs."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.replay")
    parser.add_argument("journals", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    kernel = own_mounts()
    begin, faults, theirs = time.monotonic(), 0, 0
    for turn in range(options.journals):
        seed = options.seed + turn
        version = list(VERSIONS)[turn % len(VERSIONS)]
        found = [f"{version} seed {seed}: {one}" for one in by_chance(version, seed)]
        if kernel and turn % 10 == 0:
            theirs += 1
            found += by_the_kernel(*KERNEL[theirs % len(KERNEL)], seed)
        faults += bool(found)
        print(*found[:12], sep="\n", end="\n" if found else "", flush=True)
        if faults >= 5:
            break
    seconds = time.monotonic() - begin
    counts = f"{turn + 1} journals, {theirs} of the kernel, in {seconds:.0f} s"
    print(f"seed {options.seed}: {counts}, {faults} with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
