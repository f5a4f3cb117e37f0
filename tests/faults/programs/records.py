"""Numbered records that are synced, on a raw device and in a filesystem, until it is stopped.

The argument is the filesystem's type, which is in disk.img: one of REPAIRS.

A line on standard output says what happens next or has happened: "raw synced 7" follows the
sync of record 7. Two writers, which end when standard input does, are started again when
something kills them. The filesystem is mounted and unmounted again and again; when its engine
is gone, it is repaired and mounted anew.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import NoReturn

BLOCK = 4096  # bytes: a record of the raw device
# Files whose records lie one beside the other: bytes of a record, a whole block of the filesystem
# or less, and how many there are before the oldest is written over.
PLACES = {"entries": (512, 128), "slots": (1024, 8)}
PER_MOUNT = 12  # records
RAW, MOUNTED = 0, 1  # whose number it is
# What makes and repairs a filesystem of the type, but for the image.
FORMATS = {"ext4": ("mkfs.ext4", "-q", "-F"), "vfat": ("mkfs.fat", "-F16", "-s1")}
REPAIRS = {"ext4": ("e2fsck", "-fy"), "vfat": ("fsck.fat", "-aw")}

LIBC = ctypes.CDLL(None, use_errno=True)

numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # the writers' last, for their heirs


def pattern(number: int, size: int) -> bytes:
    """What record ``number`` holds, in ``size`` bytes."""
    text = b"%07d\n" % number
    return (text * (size // len(text) + 1))[:size]


def name_of_file(number: int) -> str:
    """Where record ``number`` is in the filesystem."""
    return (str(number), *PLACES)[number % 3]


def place_of(number: int, count: int) -> int:
    """Which of ``count`` records of its file it is."""
    return number // 3 % count


def size_of_file(number: int) -> int:
    """Bytes of a record that is a file of its own."""
    return 1 + number * 1237 % 5000


def main(fstype: str) -> int:
    device = tool("losetup", "-f", "--show", "raw.img").stdout.strip()
    todo = [partial(write_raw, device), partial(write_files, fstype)]
    writers = {start(writer): writer for writer in todo}
    worst = 0
    while writers:
        pid, status = os.wait()
        writer = writers.pop(pid, None)
        if writer is not None and os.WIFSIGNALED(status):
            report("command restarts a writer")
            writers[start(writer)] = writer
        elif writer is not None:
            worst = max(worst, os.waitstatus_to_exitcode(status))
    return worst


def start(writer: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        be(writer)
    return pid


def be(writer: Callable[[], None]) -> NoReturn:
    status = 1
    try:
        writer()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def write_raw(device: str) -> None:
    fd = os.open(device, os.O_RDWR)
    last = os.lseek(fd, 0, os.SEEK_END) // BLOCK - 1
    while numbers[RAW] < last and not stopped():
        number = numbers[RAW] = numbers[RAW] + 1
        report("raw writing", number)
        os.pwrite(fd, pattern(number, BLOCK), number * BLOCK)
        report("raw written", number)
        os.fsync(fd)
        report("raw synced", number)
    select.select([0], [], [])


def write_files(fstype: str) -> None:
    while not stopped():
        try:
            write_to_mount(fstype)
        except OSError as problem:
            report("files", f"has lost its mount: {problem}")
            tool("umount", "mnt")
            if not tool("losetup", "-j", "disk.img").stdout:  # nobody has it open
                tool(*REPAIRS[fstype], "disk.img")


def write_to_mount(fstype: str) -> None:
    if not is_mounted():
        report("files mounting")
        mount = tool("mount", "-t", fstype, "-o", "loop", "disk.img", "mnt")
        if mount.returncode:
            raise OSError(f"mount: {mount.returncode} {mount.stdout!r}")
    for _ in range(PER_MOUNT):
        if stopped():
            return  # the filesystem is for the end of the sandbox to unmount
        number = numbers[MOUNTED] = numbers[MOUNTED] + 1
        write_file(number)
    report("files unmounting")
    tool("umount", "mnt")


def write_file(number: int) -> None:
    """A new file, or a record of a file that there is, in turn."""
    name = name_of_file(number)
    with opened(f"mnt/{name}") as fd:
        size, count = PLACES.get(name, (size_of_file(number), 1))
        if name in PLACES:
            fill(fd, size * count)
        report("files writing", number)
        os.pwrite(fd, pattern(number, size), place_of(number, count) * size)
        report("files written", number)
        sync(number, fd, f"mnt/{name}")
        report("files synced", number)


def sync(number: int, fd: int, path: str) -> None:
    """In turn: of the file as it is open, of a descriptor for reading, of the filesystem."""
    way = number // 3 % 3
    if way == 0:
        os.fsync(fd)
        return
    reader = os.open(path, os.O_RDONLY)
    try:
        if way == 1:
            os.fsync(reader)
        elif LIBC.syncfs(reader):
            raise OSError(ctypes.get_errno(), "syncfs")
    finally:
        with suppress(OSError):
            os.close(reader)


def fill(fd: int, size: int) -> None:
    """Let a file grow once and for all: growing, it could lose what it has (see the reference)."""
    there = os.fstat(fd).st_size
    if there < size:
        os.pwrite(fd, bytes(size - there), there)
        os.fsync(fd)


@contextmanager
def opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.fstat(fd).st_dev == os.stat(".").st_dev:
            os.unlink(path)
            raise OSError("nothing is mounted")
        yield fd
    finally:
        with suppress(OSError):  # of an engine that is gone; what counts is fsync's answer
            os.close(fd)


def is_mounted() -> bool:
    return os.stat("mnt").st_dev != os.stat(".").st_dev


def tool(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that dies with us, lest it works on an image that our heir has mounted."""
    return subprocess.run(
        ["setpriv", "--pdeathsig", "KILL", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def report(what: str, detail: int | str = "") -> None:
    os.write(1, f"{what} {detail}".strip().encode() + b"\n")


def stopped() -> bool:
    """Has standard input ended?"""
    return bool(select.select([0], [], [], 0)[0])


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1]))
