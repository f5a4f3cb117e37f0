"""Readers and a writer of distant parts of one image at the same time: no data is mixed up.

    python3 -m tests.bytes.at_once [ROUNDS]

inside ``loopfs run``, in an empty directory that is not on a tmpfs (its files are not read through
mappings). Two partitions are mounted again and again, of a third one the node is read and written.
Exit status 1, and a sentence: somebody got other bytes.
"""

from __future__ import annotations

import fcntl
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from loopfs import syscalls
from loopfs.uapi.block import BLKFLSBUF
from loopfs.uapi.loop import LO_FLAGS_PARTSCAN, LoopInfo64
from tests.bytes.images import master_boot_record, numbered, tool
from tests.bytes.model import Fault, Range, compare
from tests.bytes.mounts import MS_RDONLY
from tests.bytes.world import bind, free_device

MIB = 1 << 20
# Each is in another part of 64 MiB, so much as is mapped at a time.
PARTS = [Range(at * MIB, (at + 48) * MIB) for at in (1, 70, 140)]
FILE_SIZE = 40 * MIB
REQUEST = 256 << 10  # bytes
RAW = 2  # which of them has no filesystem


def make_image(path: Path) -> None:
    with path.open("wb") as image:
        image.truncate(PARTS[-1].end)
        image.write(bytes(446) + master_boot_record(*PARTS))
        image.seek(PARTS[RAW].begin)
        image.write(numbered(0, len(PARTS[RAW]), 10 + RAW))
        for number, part in enumerate(PARTS[:RAW]):
            source, filesystem = Path("source"), Path("filesystem")
            source.mkdir(exist_ok=True)
            (source / "file").write_bytes(numbered(0, FILE_SIZE, 10 + number))
            tool("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", source, filesystem, "48M")
            image.seek(part.begin)
            image.write(filesystem.read_bytes())
            filesystem.unlink()


def read_all(path: str, number: int, size: int) -> None:
    """Raises Fault unless a file has its numbers."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for at in range(0, size, REQUEST):
            found = os.pread(fd, REQUEST, at)
            compare(f"{path}, read", at, found, numbered(at, len(found), 10 + number))
    finally:
        os.close(fd)


def rewrite(path: str, number: int) -> None:
    """Write what is there already, and read it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for at in range(0, len(PARTS[number]), 4 * REQUEST):
            os.pwrite(fd, numbered(at, REQUEST, 10 + number), at)
        fcntl.ioctl(fd, BLKFLSBUF)
    finally:
        os.close(fd)
    read_all(path, number, len(PARTS[number]))


def at_once(*calls: Callable[[], None]) -> None:
    """Raises the first problem that one of them has."""
    problems: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]


def play(device: str) -> None:
    """One round."""
    for number in range(RAW):
        flags = MS_RDONLY if number else 0
        syscalls.mount(f"{device}p{number + 1}", f"mnt{number}", "ext4", flags, None)
    try:
        at_once(
            *(
                lambda number=number: read_all(f"mnt{number}/file", number, FILE_SIZE)
                for number in range(RAW)
            ),
            lambda: rewrite(f"{device}p{RAW + 1}", RAW),
        )
    finally:
        for number in range(RAW):
            syscalls.umount2(f"mnt{number}", 0)


def main() -> int:
    image = Path("at_once.img")
    make_image(image)
    for number in range(RAW):
        Path(f"mnt{number}").mkdir()
    device = free_device()
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    bind(device, fd, LoopInfo64(flags=LO_FLAGS_PARTSCAN))
    try:
        for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
            play(device)
        with image.open("rb") as file:
            file.seek(PARTS[RAW].begin)
            found = file.read(len(PARTS[RAW]))
        compare("the image", PARTS[RAW].begin, found, numbered(0, len(found), 10 + RAW))
        for part in PARTS[:RAW]:
            tool("e2fsck", "-fn", f"{image}?offset={part.begin}")
    except Fault as fault:
        print(fault)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
