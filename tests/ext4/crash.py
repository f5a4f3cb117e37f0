"""The server ends, or power fails, in the middle of a write.

    python3 -m tests.ext4.crash 1000 [--seed N]

in the checkout. The image is in memory. At an end of the server all writes before are there, and
half of the last one; at a loss of power those since the last sync are there or not, each by
chance. Then e2fsck finds nothing but the journal; the replay by ours leaves an image that is
clean, and so does the kernel's (as root); what was synced is whole in each. Without a journal
e2fsck repairs the image, and what was synced is whole, though it may be in lost+found.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from loopfs.ext4.super import OFFSET
from loopfs.ext4.super import SIZE as SUPER_SIZE
from loopfs.file_device import FileDevice
from tests.ext4.direct import Direct
from tests.ext4.images import MIB, Memory, fsck, made, tool, use
from tests.ext4.sequence import by_kernel, own_mounts

KINDS = (
    "-b 1024 -J size=1",
    "-b 4096",
    "-b 1024 -O ^64bit,^metadata_csum -J size=1",
    "-b 4096 -O ^metadata_csum,uninit_bg",
    "-b 1024 -t ext3 -J size=1",
    "-b 2048 -O inline_data -I 512 -J size=2",
    "-b 1024 -t ext2",
    "-b 4096 -O ^has_journal",
    "-b 4096 -O orphan_file,metadata_csum_seed",
    "-b 1024 -O ea_inode -J size=1",
)
SIZE = 24 * MIB
_MOST = 1500  # writes of one run
# What e2fsck may say of an image whose journal is all that is to be done.
_QUIET = re.compile(
    r"^(e2fsck |Pass |.*recovering journal|Clearing orphaned inode|Truncating orphaned inode"
    r"|.*\(uid=|.*files \(|.*FILE SYSTEM WAS MODIFIED|Setting free \w+ count|$)"
)
_EXPECTED = (errno.ENOENT, errno.EEXIST, errno.ENOSPC, errno.ELOOP, errno.EINVAL, errno.EPERM)
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Crashed(BaseException):
    """The end; nothing of ours may catch it."""


def _cut(offset: int, length: int) -> int:
    """Where a write at ``offset`` can be cut.

    Not in the superblock: half of one has a wrong checksum, and nobody mounts it, the kernel
    neither.
    """
    return OFFSET - offset if OFFSET < offset + length < OFFSET + SUPER_SIZE else length


class Fragile(Memory):
    """A device whose server ends at a write.

    Args:
        left: which one.
        power: of the writes since the last sync, only some are there.
    """

    def __init__(self, data: bytearray, left: int, chance: random.Random, *, power: bool) -> None:
        super().__init__(data)
        self._left = left
        self._chance = chance
        self._durable = bytearray(data) if power else None
        self._pending: list[tuple[int, bytes]] = []

    def store(self, offset: int, data: bytes) -> None:
        self._left -= 1
        if self._left <= 0:
            data = data[: _cut(offset, len(data) // 2)]
        super().store(offset, data)
        if self._durable is not None:
            self._pending.append((offset, data))
        if self._left <= 0:
            raise Crashed

    def barrier(self) -> None:
        if self._durable is not None:
            for offset, data in self._pending:
                self._durable[offset : offset + len(data)] = data
            self._pending.clear()

    def left_behind(self) -> bytearray:
        """What is there afterwards; sectors of 512 bytes are whole."""
        if self._durable is None:
            return self.data
        for offset, data in self._pending:
            fate = self._chance.random()
            at = 0
            while at < len(data):
                end = at + 512
                while _cut(offset, end) != end:
                    end += 512
                if fate < 0.4 or (fate < 0.7 and self._chance.random() < 0.5):
                    piece = data[at:end]
                    self._durable[offset + at : offset + at + len(piece)] = piece
                at = end
        return self._durable


class Program:
    """Works on a filesystem until that ends.

    Attributes:
        kept: contents by path of what was synced and must be there.
    """

    def __init__(self, calls: Direct, chance: random.Random) -> None:
        self._calls = calls
        self._chance = chance
        self.kept: dict[str, bytes] = {}
        self.steps = 0

    def run(self) -> None:
        """Until the device ends it."""
        while True:
            self.steps += 1
            directory = f"d{self._chance.randrange(5)}"
            if directory not in self._calls.list():
                self._calls.mkdir(directory)
            for _ in range(self._chance.randrange(1, 25)):
                self._change(directory)
            name = f"{directory}/kept {self.steps}"
            data = self._chance.randbytes(self._chance.choice((20, 3000, 60_000, 200_000)))
            try:
                self._calls.write(name, data, sync=True)
                self.kept[name] = data
            except OSError as problem:
                if problem.errno != errno.ENOSPC:
                    raise
            if self._chance.random() < 0.5 or is_nearly_full(self._calls):
                self._forget_one()

    def _forget_one(self) -> None:
        if self.kept:
            name = self._chance.choice(list(self.kept))
            del self.kept[name]
            if self._chance.random() < 0.5:
                self._calls.unlink(name)
            else:
                self._calls.truncate(name, self._chance.randrange(60_000))

    def _change(self, directory: str) -> None:
        chance, calls = self._chance, self._calls
        name, other = (f"{directory}/{'n' * chance.randrange(80)}{n}" for n in self._two())
        kind = chance.randrange(9)
        acts: tuple[Callable[[], None], ...] = (
            lambda: calls.write(name, chance.randbytes(chance.randrange(30_000))),
            lambda: calls.write(name, b""),
            lambda: calls.unlink(name),
            lambda: calls.rename(name, other),
            lambda: calls.truncate(name, chance.randrange(40_000)),
            lambda: calls.fallocate(name, 3, chance.randrange(20_000), chance.randrange(1, 9000)),
            lambda: calls.setxattr(name, "user.x", bytes(chance.choice((399, 9000)))),
            lambda: calls.link(name, other),
            lambda: calls.symlink("t" * chance.randrange(1, 200), other),
        )
        try:
            acts[kind]()
        except OSError as problem:
            if problem.errno not in _EXPECTED:
                raise

    def _two(self) -> tuple[int, int]:
        return self._chance.randrange(60), self._chance.randrange(60)


def is_nearly_full(calls: Direct) -> bool:
    """It is nearly full."""
    space = calls.tree.statfs()
    return space.free < space.blocks // 4


def crash(kind: str, seed: int) -> tuple[bytearray, dict[str, bytes]]:
    """An image that was left behind, and what must be in it."""
    chance = random.Random(f"{kind} {seed}")
    random.seed(seed)  # for the generations of inodes
    left = chance.randrange(3, _MOST)
    device = Fragile(made(kind, SIZE), left, chance, power=bool(seed & 1))
    program = None
    try:
        tree, _ = use(device)
        program = Program(Direct(tree), chance)
        program.run()
    except Crashed:
        pass
    return device.left_behind(), program.kept if program is not None else {}


def check(kind: str, seed: int, *, kernel: bool) -> list[str]:
    """What is wrong after one crash.

    Args:
        kernel: it replays, too: needs root, and a mount namespace that nobody else sees.
    """
    image, kept = crash(kind, seed)
    has_journal = "t ext2" not in kind and "^has_journal" not in kind
    with tempfile.TemporaryDirectory(prefix="loopfs-test-", dir=MEMORY) as directory:
        path = Path(directory, "image")
        if not has_journal:
            return _check_repair(path, image, kept, has_journal=False)
        path.write_bytes(image)
        open_and_end(path)
        faults = _check_clean(path, kept, "after ours")
        if kernel:
            path.write_bytes(image)
            (place := Path(directory, "m")).mkdir()
            with by_kernel(path, place):
                pass
            faults += _check_clean(path, kept, "after the kernel")
        return faults + _check_repair(path, image, kept, has_journal=True)


def _check_clean(path: Path, kept: dict[str, bytes], when: str) -> list[str]:
    problems = fsck(path)
    faults = [f"{when}: {problems[:1500]}"] if problems else []
    return faults + missing(path, kept, when)


def _check_repair(
    path: Path, image: bytearray, kept: dict[str, bytes], *, has_journal: bool
) -> list[str]:
    path.write_bytes(image)
    done = tool("e2fsck", "-fy", path)
    wrong = [line for line in done.stdout.splitlines() if not _QUIET.match(line)]
    faults = [f"e2fsck: {wrong[:20]}"] if has_journal and wrong else []
    if problems := fsck(path):
        faults.append(f"after e2fsck: {problems[:1500]}")
    return faults + missing(path, kept, "after e2fsck", elsewhere=not has_journal)


def open_and_end(path: Path) -> None:
    """Mounted and unmounted by ours."""
    fd = os.open(path, os.O_RDWR)
    try:
        tree, _ = use(FileDevice(fd))
        tree.destroy()
    finally:
        os.close(fd)


def missing(path: Path, kept: dict[str, bytes], when: str, *, elsewhere: bool = False) -> list[str]:
    """What was synced and is not there.

    Args:
        elsewhere: it may be in lost+found.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        calls = Direct(use(FileDevice(fd), read_only=True)[0])
        found = _lost_and_found(calls) if elsewhere else set()
        return [
            f"{when}: {name} is not whole"
            for name, data in kept.items()
            if _read(calls, name) != data and data not in found
        ]
    finally:
        os.close(fd)


def _read(calls: Direct, name: str) -> bytes | None:
    try:
        return calls.read(name)
    except FileNotFoundError:
        return None


def _lost_and_found(calls: Direct) -> set[bytes]:
    found = set()
    for name in calls.list("lost+found"):
        path = f"lost+found/{name}"
        with calls.node(path) as node:
            regular, directory = node.is_regular, node.is_dir
        if regular:
            found.add(calls.read(path))
        elif directory:
            found |= {calls.read(f"{path}/{one}") for one in calls.list(path) if "kept" in one}
    return found


def main() -> int:
    """Exit status: 1 something is wrong."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.ext4.crash")
    parser.add_argument("crashes", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kind", default="", help="arguments of mke2fs: only this kind")
    parser.add_argument("--faults", type=int, default=5, help="after how many to end")
    parser.add_argument("--no-kernel", action="store_true", help="the kernel's replay is left out")
    options = parser.parse_args()
    kernel = not options.no_kernel and own_mounts()
    begin, done, faults = time.monotonic(), 0, 0
    for turn in range(options.crashes):
        kind = options.kind or KINDS[turn % len(KINDS)]
        found = check(kind, options.seed + turn, kernel=kernel)
        done += 1
        if found:
            faults += 1
            print(f"{kind!r} seed {options.seed + turn}:", *found, sep="\n", flush=True)
            if faults >= options.faults:
                break
    seconds = time.monotonic() - begin
    print(f"seed {options.seed}: {done} crashes in {seconds:.0f} s, {faults} with faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
