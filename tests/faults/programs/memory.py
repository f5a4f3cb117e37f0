"""Calls whose arguments are in memory that cannot be read or blocks."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from loopfs import syscalls
from loopfs.uapi.block import BLKGETSIZE64, BLKROGET
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LOOP_CLR_FD,
    LOOP_CONFIGURE,
    LOOP_CTL_GET_FREE,
    LOOP_GET_STATUS64,
    LOOP_SET_FD,
    LOOP_SET_STATUS64,
    LoopConfig,
    LoopInfo64,
)
from tests.faults.programs.devices import (
    NR,
    PAGE,
    Area,
    cycle,
    ioctl,
    libc,
    new_device,
    new_file,
    report,
    status,
    syscall,
)
from tests.faults.programs.stalled import stalled_file

SIZE = 1 << 20
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
MS_REMOUNT = 32
UFFD_USER_MODE_ONLY, UFFDIO_API, UFFDIO_REGISTER = 1, 0xC018AA3F, 0xC020AA00
USERFAULTFD = {"x86_64": 323, "aarch64": 282}


def protected() -> dict[str, object]:
    """The kernel does not write where the caller could not, and reads only what it could."""
    device = new_device(new_file("disk.img", SIZE))
    area = Area(PAGE)
    area.put(0, b"kept")
    good = LoopInfo64(file_name=b"name").pack()
    answers: dict[str, object] = {}
    area.protect(mmap.PROT_READ)
    answers["status into read-only"] = ioctl(device, LOOP_GET_STATUS64, area.start)
    answers["int into read-only"] = ioctl(device, BLKROGET, area.start)
    answers["fstat into read-only"] = syscall(NR["fstat"], device, area.start)
    answers["kept"] = area.get(0, 4).decode()
    area.protect(mmap.PROT_READ | mmap.PROT_WRITE)
    area.put(0, good)
    area.protect(0)
    answers["status from no access"] = ioctl(device, LOOP_SET_STATUS64, area.start)
    code = ctypes.cast(libc.getpid, ctypes.c_void_p).value
    answers["status into code"] = ioctl(device, LOOP_GET_STATUS64, code or 0)
    return answers


def own_pages() -> dict[str, object]:
    """Arguments in pages of the device itself: to copy them, the very server must answer."""
    backing = new_file("disk.img", SIZE)
    other = new_file("other.img", SIZE)
    places = [n * 16 * PAGE for n in range(8)]
    info, how = LoopInfo64(file_name=b"from the device"), struct.pack("=QQQ", os.O_RDWR, 0, 0)
    os.pwrite(backing, info.pack(), places[0])
    os.pwrite(backing, LoopConfig(fd=other).pack(), places[1])
    os.pwrite(backing, how, places[2])
    device = new_device(backing)
    own_path = f"/dev/loop{status(device).number}".encode()
    for place, text in zip(places[3:6], (own_path, b".", b"ext4"), strict=True):
        os.pwrite(backing, text + b"\0", place)
    area = Area(SIZE, device)
    at = [area.start + place for place in places]
    answers: dict[str, object] = {}
    answers["set"] = ioctl(device, LOOP_SET_STATUS64, at[0])
    answers["name"] = status(device).file_name.decode()
    control = os.open("/dev/loop-control", os.O_RDWR)
    path = f"/dev/loop{ioctl(control, LOOP_CTL_GET_FREE, 0)}"
    second = os.open(path, os.O_RDWR)
    answers["configure"] = ioctl(second, LOOP_CONFIGURE, at[1])
    third = syscall(NR["openat2"], AT_FDCWD, path.encode(), at[2], len(how))
    answers["openat2"] = isinstance(third, int) and stat.S_ISBLK(os.fstat(third).st_mode)
    answers["mount"] = syscall(NR["mount"], at[3], at[4], at[5], 0, 0)
    answers["get"] = ioctl(device, LOOP_GET_STATUS64, at[6])
    os.fsync(device)
    stored = LoopInfo64.unpack(os.pread(backing, len(info.pack()), places[6]))
    answers["stored"] = stored.file_name.decode()
    answers["fstat"] = syscall(NR["fstat"], device, at[7])
    answers["size"] = ioctl(device, BLKGETSIZE64, at[7])
    answers["is size"] = struct.unpack("=Q", area.get(places[7], 8))[0] == SIZE
    answers["clear"] = ioctl(device, LOOP_CLR_FD, 0)  # with dirty pages
    return answers


def stalled() -> dict[str, object]:
    """A call whose argument never comes costs no user of another instance anything."""
    backing = new_file("disk.img", SIZE)
    os.mkdir("instance")
    syscalls.mount("none", "instance", "loop", 0, None)
    device = new_device(backing, directory="instance")
    answers: dict[str, object] = {}
    slowest = 0.0

    def caller(name: str, call: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            answers[name] = call()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    with stalled_file("stalled") as file:
        area = Area(SIZE, file)
        page = iter(range(area.start, area.start + SIZE, 16 * PAGE))
        path = f"instance/loop{status(device).number}".encode()
        calls: dict[str, Callable[[], object]] = {
            "get": lambda: ioctl(device, LOOP_GET_STATUS64, next(page)),
            "set": lambda: ioctl(device, LOOP_SET_STATUS64, next(page)),
            "configure": lambda: ioctl(device, LOOP_CONFIGURE, next(page)),
            "openat2": lambda: syscall(NR["openat2"], AT_FDCWD, path, next(page), 24),
            "fstat": lambda: syscall(NR["fstat"], device, next(page)),
            "mount": lambda: syscall(NR["mount"], next(page), b".", b"ext4", 0, 0),
        }
        threads = [caller(name, call) for name, call in calls.items()]
        time.sleep(0.2)
        for n in range(20):
            start = time.monotonic()
            cycle(f"cycle{n}.img", b"text")
            slowest = max(slowest, time.monotonic() - start)
        answers["still waiting"] = all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join(10)
    os.close(device)
    syscalls.umount2("instance", 2)
    answers["others were answered"] = slowest < 3
    return answers


def killed() -> dict[str, object]:
    """Callers that are killed in the middle of each call, by each of its pointers.

    Returns:
        how each ended: the number of the signal.
    """
    device = new_device(new_file("disk.img", SIZE))
    os.mkdir("instance")
    syscalls.mount("none", "instance", "loop", 0, None)
    answers: dict[str, object] = {}
    with stalled_file("stalled") as file:
        never = Area(SIZE, file).start
        instance = os.open("instance", os.O_RDONLY)
        context = syscalls.fsopen("loop")
        calls: dict[str, tuple[int | bytes | None, ...]] = {
            "mount source": (never, b"instance", b"loop", 0, None),
            "mount target": (b"none", never, b"loop", 0, None),
            "mount type": (b"none", b"instance", never, 0, None),
            "mount data": (b"none", b"instance", b"loop", 0, never),
            "mount remounted": (None, never, None, MS_REMOUNT, None),
            "mount remount": (None, b"instance", None, MS_REMOUNT, never),
            "umount2": (never, 0),
            "fsopen": (never, 0),
            "fsconfig flag": (context, 0, never, None, 0),
            "fsconfig key": (context, 1, never, b"1", 0),
            "fsconfig value": (context, 1, b"max", never, 0),
            "fsconfig binary": (context, 2, b"max", never, PAGE),
            "fsconfig path": (context, 3, b"max", never, AT_FDCWD),
            "fspick": (AT_FDCWD, never, 0),
            "fspick place": (instance, never, 8),
            "statfs path": (never, never),
            "statfs": (b"instance", never),
            "fstatfs": (instance, never),
            "fstat": (device, never),
            "newfstatat path": (device, never, never, AT_EMPTY_PATH),
            "newfstatat": (device, b"", never, AT_EMPTY_PATH),
            "statx path": (device, never, AT_EMPTY_PATH, 0xFFF, never),
            "statx": (device, b"", AT_EMPTY_PATH, 0xFFF, never),
        }
        for label, arguments in calls.items():
            number = NR[label.split()[0]]
            answers[label] = _killed_in(number, partial(syscall, number, *arguments))
        os.close(instance)
        answers["fspick and fsconfig"] = _killed_in(NR["fsconfig"], lambda: _picked(never))
        # Contexts that are gone keep nothing, whoever is still stalled.
        other = new_device(new_file("other.img", SIZE), directory="instance")
        path = f"/sys/block/loop{status(other).number}/loop/backing_file"
        os.close(other)
        syscalls.umount2("instance", 0)
        while os.path.exists(path):
            pass
        cycle("cycle.img", b"text")
        syscalls.mount("none", "instance", "loop", 0, None)
        syscalls.umount2("instance", 0)
    return answers


def _picked(never: int) -> int | str:
    instance = os.open("instance", os.O_RDONLY)
    return syscall(NR["fsconfig"], syscalls.fspick(instance), 1, b"max", never, 0)


def _waits_in(process: int, number: int) -> bool:
    with open(f"/proc/{process}/syscall", encoding="ascii") as file:
        return file.read().split()[0] == str(number)


def _killed_in(number: int, call: Callable[[], object]) -> int:
    """How a process ends that is killed while it waits in a system call."""
    child = os.fork()
    if child == 0:
        call()
        os._exit(0)
    while not _waits_in(child, number):
        pass
    os.kill(child, signal.SIGKILL)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stalled_backing() -> dict[str, object]:
    """A device on a file that is not served costs only its own users anything."""
    with stalled_file("stalled") as file:
        device = new_device(file, LoopInfo64(flags=LO_FLAGS_AUTOCLEAR))
        reader = threading.Thread(target=lambda: answers.update(read=read(device)), daemon=True)
        answers: dict[str, object] = {}

        def read(fd: int) -> str:
            try:
                return str(len(os.pread(fd, 4096, 0)))
            except OSError as problem:
                return errno.errorcode[problem.errno or 0]

        reader.start()
        time.sleep(0.2)
        for n in range(20):
            cycle(f"cycle{n}.img", b"text")
        answers["still waiting"] = reader.is_alive()
    reader.join(10)
    os.close(device)
    return answers


def userfault() -> dict[str, object]:
    """Pages under userfaultfd(2) are not waited for: in user mode only, as users may have it."""
    device = new_device(new_file("disk.img", SIZE))
    area = Area(PAGE)
    fd = syscall(USERFAULTFD.get(os.uname().machine, -1), os.O_CLOEXEC | UFFD_USER_MODE_ONLY)
    if not isinstance(fd, int):
        return {"unavailable": fd}
    api = ctypes.create_string_buffer(struct.pack("=QQQ", 0xAA, 0, 0))
    registration = struct.pack("=QQQQ", area.start, PAGE, 1, 0)
    register = ctypes.create_string_buffer(registration)
    if ioctl(fd, UFFDIO_API, ctypes.addressof(api)) or ioctl(
        fd, UFFDIO_REGISTER, ctypes.addressof(register)
    ):
        return {"unavailable": "registration"}
    return {
        "get": ioctl(device, LOOP_GET_STATUS64, area.start),
        "set": ioctl(device, LOOP_SET_STATUS64, area.start),
        "fstat": syscall(NR["fstat"], device, area.start),
    }


def files() -> dict[str, object]:
    """A descriptor of everything that is open is offered as backing file."""
    device = new_device(new_file("disk.img", SIZE))
    second = os.open(f"/dev/loop{status(device).number}", os.O_RDWR)
    r, w = os.pipe()
    candidates = [device, second, r, w, 0, 1, os.memfd_create("m"), os.pidfd_open(os.getpid())]
    return {"answers": sorted({str(ioctl(second, LOOP_SET_FD, fd)) for fd in candidates})}


SCENARIOS = {
    f.__name__: f
    for f in (protected, own_pages, stalled, killed, stalled_backing, userfault, files)
}

if __name__ == "__main__":
    found = SCENARIOS[sys.argv[1]]()
    cycle("after.img", b"still works")
    report(found)
