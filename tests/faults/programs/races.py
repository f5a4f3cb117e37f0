"""Many callers at once, on one node or for one device; unexpected results of each."""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from loopfs.uapi.loop import LoopInfo64
from tests.faults.programs.devices import (
    NR,
    cycle,
    edge_of,
    ioctl,
    new_device,
    new_file,
    report,
    status,
    syscall,
)

AT_FDCWD = -100
TIMES = 1500
LOOP_CTL_GET_FREE = 0x4C82


def faces() -> list[str]:
    """One node is looked at and opened in every way at once."""
    device = new_device(new_file("disk.img", 1 << 20))
    path = f"/dev/loop{status(device).number}"
    how = edge_of(struct.pack("=QQQ", os.O_RDONLY, 0, 0))

    def by_openat2() -> int:
        fd = syscall(NR["openat2"], AT_FDCWD, path.encode(), how, 24)
        if not isinstance(fd, int):
            raise OSError(fd)
        return fd

    def seen_by_stat() -> int:
        return os.stat(path).st_mode

    def seen_by_o_path() -> int:
        return seen_and_closed(os.open(path, os.O_PATH))

    def seen_opened(opened: Callable[[], int]) -> Callable[[], int]:
        def look() -> int:
            fd = opened()
            if len(os.pread(fd, 512, 0)) != 512:
                raise OSError("a short read")
            return seen_and_closed(fd)

        return look

    def seen_and_closed(fd: int) -> int:
        try:
            return os.fstat(fd).st_mode
        finally:
            os.close(fd)

    looks = [
        seen_by_stat,
        seen_by_o_path,
        seen_opened(lambda: os.open(path, os.O_RDONLY)),
        seen_opened(by_openat2),
    ]

    def look_often(look: Callable[[], int]) -> list[str]:
        wrong = []
        for _ in range(TIMES):
            try:
                mode = look()
            except OSError as problem:
                wrong.append(str(problem))
            else:
                if not stat.S_ISBLK(mode):
                    wrong.append(f"{look.__name__}: {mode:o}")
        return wrong

    with ThreadPoolExecutor(len(looks)) as threads:
        return [wrong for found in threads.map(look_often, looks) for wrong in found]


def free_devices() -> list[int]:
    """The numbers of devices that many found free and bound at the same time."""
    files = [new_file(f"{n}.img", 1 << 20) for n in range(64)]
    with ThreadPoolExecutor(8) as threads:
        devices = list(threads.map(lambda fd: new_device(fd, LoopInfo64()), files))
    pairs = zip(files, devices, strict=True)
    assert all(status(device).inode == os.fstat(file).st_ino for file, device in pairs)
    return [status(device).number for device in devices]


def closing() -> list[int | str]:
    """A descriptor is closed by one thread while others ask the device by its number."""
    control = os.open("/dev/loop-control", os.O_RDWR)
    fds = [os.open("/dev/loop-control", os.O_RDWR) for _ in range(500)]

    def ask(fd: int) -> int | str:
        return ioctl(fd, LOOP_CTL_GET_FREE, 0)

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, fd) for fd in fds]
        closed = [threads.submit(os.close, fd) for fd in fds]
        answers = {future.result() for future in asked}
        for future in closed:
            future.result()
    free = ask(control)
    return sorted(answers - {free, "EBADF"}, key=str)


SCENARIOS: dict[str, Callable[[], object]] = {f.__name__: f for f in (faces, free_devices, closing)}

if __name__ == "__main__":
    found = SCENARIOS[sys.argv[1]]()
    cycle("after.img", b"still works")
    report(found)
