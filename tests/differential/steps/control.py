"""The control node, and the nodes as files: attributes, access, changes."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import stat
from typing import Any

from . import uapi
from .bench import NOWHERE, Bench, Device, call, ioctl, scenario, status

CONTROL = "/dev/loop-control"


@scenario
def add_and_remove(bench: Bench) -> None:
    device = bench.device()
    number = device.number
    for name, argument in (
        ("the same", number),
        ("2^20", 1 << 20),
        ("2^31-1", (1 << 31) - 1),
        ("high half", number | 1 << 40),
    ):
        bench.step(f"add {name}", lambda a=argument: ioctl(bench.control, uapi.LOOP_CTL_ADD, a))
    bench.step("add another", lambda: bench.device(number + 1000).number - number)
    bench.step("and it again", lambda: bench.device(number + 1000).number)
    bench.step("add the last", lambda: bench.device((1 << 20) - 1).number)
    for argument in (-1, -2, 1 << 20, (1 << 31) - 1, number + 500):
        name = str(argument) if argument != number + 500 else "unknown"
        step = f"remove {name}"
        bench.step(step, lambda a=argument: ioctl(bench.control, uapi.LOOP_CTL_REMOVE, a))
    bench.step("remove", lambda: ioctl(bench.control, uapi.LOOP_CTL_REMOVE, number))
    bench.step("remove again", lambda: ioctl(bench.control, uapi.LOOP_CTL_REMOVE, number))
    bench.note("the node is gone", not os.path.lexists(device.path))
    bench.step("open it", device.open)


@scenario
def remove_in_use(bench: Bench) -> None:
    device = bench.device()
    remove = uapi.LOOP_CTL_REMOVE
    with device.opened() as fd:
        bench.step("open", lambda: ioctl(bench.control, remove, device.number))
        bench.bind(fd, bench.image())
        bench.step("open and bound", lambda: ioctl(bench.control, remove, device.number))
    bench.step("bound", lambda: ioctl(bench.control, remove, device.number))
    with device.opened() as fd:
        ioctl(fd, uapi.LOOP_CLR_FD)
    bench.step("unbound", lambda: ioctl(bench.control, remove, device.number))


@scenario
def number_of_a_removed_device(bench: Bench) -> None:
    device = bench.device()
    ioctl(bench.control, uapi.LOOP_CTL_REMOVE, device.number)
    bench.step("add it again", lambda: bench.device(device.number).number == device.number)
    with device.opened() as fd:
        bench.step("bind", lambda: bench.bind(fd, bench.image()))
        bench.step("status", lambda: status(fd)["number"] == device.number)


@scenario
def free_device(bench: Bench) -> None:
    number = ioctl(bench.control, uapi.LOOP_CTL_GET_FREE)
    bench.note("same again", ioctl(bench.control, uapi.LOOP_CTL_GET_FREE) == number)
    bench.note("no argument is looked at", _get_free(bench, NOWHERE) == number)
    device = Device(number, os.path.realpath(f"/dev/loop{number}"))
    with device.opened() as fd:
        bench.step("status", lambda: status(fd))
        bench.note("same when it is open", _get_free(bench, 0) == number)
    with device.opened(os.O_RDWR) as fd:
        bench.bind(fd, bench.image())
        bench.note("another when it is bound", _get_free(bench, 0) != number)
        ioctl(fd, uapi.LOOP_CLR_FD)
        bench.note("another when it runs down", _get_free(bench, 0) != number)


def _get_free(bench: Bench, argument: int) -> int:
    return ioctl(bench.control, uapi.LOOP_CTL_GET_FREE, argument)


@scenario
def other_calls_on_the_control_node(bench: Bench) -> None:
    fd = bench.control
    for name in ("LOOP_SET_FD", "LOOP_CLR_FD", "LOOP_GET_STATUS64", "TCGETS", "BLKGETSIZE64"):
        bench.step(name, lambda n=name: ioctl(fd, getattr(uapi, n), 0))
    for cmd in (0, 0x4C7F, 0x4C83, 0xFFFFFFFF, 0x541B, 2):
        bench.step(f"{cmd:#x}", lambda cmd=cmd: ioctl(fd, cmd, bytes(64)))
    bench.step("read", lambda: os.read(fd, 16))
    bench.step("write", lambda: os.write(fd, b"x"))
    bench.step("read nothing", lambda: os.read(fd, 0))
    bench.step("pread", lambda: os.pread(fd, 16, 100))
    for whence in (os.SEEK_SET, os.SEEK_END, 17):
        bench.step(f"lseek {whence}", lambda w=whence: os.lseek(fd, 5, w))
    bench.step("fsync", lambda: os.fsync(fd))
    bench.step("ftruncate", lambda: os.ftruncate(fd, 0))
    bench.step("fallocate", lambda: call("fallocate", fd, 0, 0, 4096))
    bench.step("mmap", lambda: call("mmap", 0, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0) != 0)
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    bench.step("poll", lambda: [events for _, events in poll.poll(0)])


@scenario
def open_the_control_node(bench: Bench) -> None:
    path = os.path.realpath(CONTROL)
    for name in ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_EXCL", "O_TRUNC", "O_DIRECTORY", "O_CREAT"):
        flags = getattr(os, name) | (os.O_RDWR if name in ("O_TRUNC", "O_CREAT") else 0)
        bench.step(name, lambda flags=flags: os.close(os.open(path, flags)))
    bench.step("O_CREAT|O_EXCL", lambda: os.open(path, os.O_CREAT | os.O_EXCL))
    bench.step("O_DIRECT", lambda: os.close(os.open(path, os.O_DIRECT)))
    with Device(0, path).opened(os.O_RDONLY) as fd:
        bench.step("a reader may, too", lambda: ioctl(fd, uapi.LOOP_CTL_GET_FREE) >= 0)
    shape = _shape(os.stat(path))
    bench.note("fstat", _shape(os.fstat(bench.control)) == shape)
    shape["mode"] = shape["mode"][:4]  # udev may have given it a group
    bench.note("stat", shape)


def _shape(st: os.stat_result) -> dict[str, Any]:
    return {
        "mode": stat.filemode(st.st_mode),
        "links": st.st_nlink,
        "uid": st.st_uid,
        "major": os.major(st.st_rdev),
        "minor": os.minor(st.st_rdev) if os.major(st.st_rdev) == 10 else None,
        "size": st.st_size,
        "blocks": st.st_blocks,
    }


@scenario
def stat_of_a_device(bench: Bench) -> None:
    with bench.bound() as (device, fd):
        for name, st in (
            ("stat", os.stat(device.path)),
            ("lstat", os.lstat(device.path)),
            ("fstat", os.fstat(fd)),
            ("fstatat", os.stat(fd)),
        ):
            bench.note(name, _shape(st))
            bench.note(f"{name}: minor", os.minor(st.st_rdev) == device.number)
        bench.note("same file", os.path.samestat(os.stat(device.path), os.fstat(fd)))
        for mask in (0x7FF, 0xFFF, 0x200):
            bench.step(f"statx of the path, {mask:#x}", lambda m=mask: _statx(device, None, m))
            bench.step(f"statx of the descriptor, {mask:#x}", lambda m=mask: _statx(device, fd, m))
        bench.step("fstat to nowhere", lambda: call("fstat", fd, NOWHERE))
        bench.step("statx to nowhere", lambda: call("statx", fd, b"\0", 0x1000, 0x7FF, NOWHERE))
        bench.step("fstatat, bad flags", lambda: call("fstatat", fd, b"\0", 0x1080, NOWHERE))
        bench.step("statx, bad flags", lambda: call("statx", fd, b"\0", 0x81000, 0x7FF, bytes(256)))
        bench.step("statx, bad mask", lambda: call("statx", fd, b"\0", 0x1000, 1 << 31, bytes(256)))
        bench.step("fstat of a closed one", lambda: os.fstat(999))
    with bench.device().opened() as fd:
        bench.note("unbound", _shape(os.fstat(fd)))


def _statx(device: Device, fd: int | None, mask: int) -> dict[str, object]:
    buffer = ctypes.create_string_buffer(256)
    path, flags = (device.path.encode(), 0) if fd is None else (b"", uapi.AT_EMPTY_PATH)
    at = -100 if fd is None else fd
    call("statx", at, path + b"\0", flags, mask, ctypes.addressof(buffer))

    def word(at: int, size: int = 4) -> int:
        return int.from_bytes(buffer.raw[at : at + size], "little")

    return {
        "basic": f"{word(0) & 0x7FF:#x}",
        "blksize": word(4),
        "nlink": word(0x10),
        "mode": stat.filemode(word(0x1C, 2)),
        "size": word(0x28, 8),
        "blocks": word(0x30, 8),
        "major": word(0x80),
        "minor": word(0x84) == device.number,
        "mount": word(0x90, 8) > 0 if mask & 0x1000 else None,
    }


@scenario
def access(bench: Bench) -> None:
    with bench.bound() as (device, _):
        for mode in (os.F_OK, os.R_OK, os.W_OK, os.R_OK | os.W_OK, os.X_OK):
            bench.note(f"access {mode}", os.access(device.path, mode))
            bench.note(f"faccessat {mode}", os.access(device.path, mode, effective_ids=True))
        bench.step("below", lambda: os.stat(f"{device.path}/x"))
        bench.step("slash", lambda: os.stat(f"{device.path}/"))
        bench.step("readlink", lambda: os.readlink(device.path))
        bench.step("listdir", lambda: os.listdir(device.path))
        bench.step("chdir", lambda: os.chdir(device.path))
        bench.step("execute", lambda: os.execv(device.path, ["x"]))
        bench.note("directory lists it", _entry(device))


def _entry(device: Device) -> list[bool]:
    with os.scandir(os.path.dirname(device.path)) as entries:
        return [
            entry.is_file(follow_symlinks=False) or entry.is_symlink()
            for entry in entries
            if entry.name == os.path.basename(device.path)
        ]


@scenario
def changes_of_a_node(bench: Bench) -> None:
    with bench.bound() as (device, fd):
        for mode in (0o660, 0o444, 0o7777, 0o600):
            bench.step(f"chmod {mode:o}", lambda m=mode: os.chmod(device.path, m))
            bench.note(f"after {mode:o}", oct(os.stat(device.path).st_mode))
            bench.note(f"fstat after {mode:o}", oct(os.fstat(fd).st_mode))
        bench.step("fchmod", lambda: os.fchmod(fd, 0o640))
        bench.note("after fchmod", oct(os.stat(device.path).st_mode))
        bench.step("chown", lambda: os.chown(device.path, 1, 2))
        bench.note("owner", _owner(os.stat(device.path)))
        bench.step("fchown", lambda: os.fchown(fd, 3, -1))
        bench.note("owner after fchown", _owner(os.fstat(fd)))
        bench.step("lchown", lambda: os.lchown(device.path, 0, 0))
        bench.note("owner after lchown", _owner(os.lstat(device.path)))
        bench.step("utime", lambda: os.utime(device.path, ns=(1_000_000_001, 2_000_000_002)))
        bench.note("times", _times(os.stat(device.path)))
        bench.step("futimens", lambda: os.utime(fd, ns=(3_000_000_003, 4_000_000_004)))
        bench.note("times after futimens", _times(os.fstat(fd)))
        bench.note("type", stat.S_ISBLK(os.fstat(fd).st_mode))
        bench.step("still works", lambda: len(os.pread(fd, 512, 0)))


def _owner(st: os.stat_result) -> list[int]:
    return [st.st_uid, st.st_gid]


def _times(st: os.stat_result) -> list[int]:
    return [st.st_atime_ns, st.st_mtime_ns]


@scenario
def extended_attributes(bench: Bench) -> None:
    with bench.bound() as (device, fd):
        path = device.path
        bench.step("get user", lambda: os.getxattr(path, "user.name"))
        bench.step("set user", lambda: os.setxattr(path, "user.name", b"x"))
        bench.step("set user of the descriptor", lambda: os.setxattr(fd, "user.name", b"x"))
        bench.step("remove user", lambda: os.removexattr(path, "user.name"))
        bench.step("list", lambda: os.listxattr(path))
        bench.step("list of the descriptor", lambda: os.listxattr(fd))
        bench.step("access control list", lambda: os.getxattr(path, "system.posix_acl_access"))
        bench.step("capabilities", lambda: os.getxattr(path, "security.capability"))
