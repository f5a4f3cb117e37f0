"""Devices and bare system calls for the other programs."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
from pathlib import Path

from loopfs.uapi.loop import (
    LOOP_CLR_FD,
    LOOP_CONFIGURE,
    LOOP_CTL_GET_FREE,
    LOOP_GET_STATUS64,
    LoopConfig,
    LoopInfo64,
)
from loopfs.uapi.syscalls import abis

PAGE = mmap.PAGESIZE
NR = abis()[0].numbers
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p


def syscall(number: int, *arguments: int | bytes | None) -> int | str:
    """A system call with bare registers: its result, or the name of its errno."""
    words = [a if isinstance(a, bytes) else ctypes.c_void_p(a) for a in arguments]
    result: int = libc.syscall(ctypes.c_long(number), *words)
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


def ioctl(fd: int, command: int, argument: int) -> int | str:
    """ioctl(2): its result, or the name of its errno."""
    result: int = libc.ioctl(fd, ctypes.c_ulong(command), ctypes.c_void_p(argument))
    return result if result >= 0 else errno.errorcode[ctypes.get_errno()]


class Area:
    """Pages of this process: by themselves, or of the open file ``fd``."""

    def __init__(
        self, size: int, fd: int = -1, protection: int = mmap.PROT_READ | mmap.PROT_WRITE
    ) -> None:
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        at = libc.mmap(None, ctypes.c_size_t(size), protection, flags, fd, ctypes.c_long(0))
        if at in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.start = int(at)
        self.size = size

    def unmap(self, start: int, size: int) -> None:
        libc.munmap(ctypes.c_void_p(self.start + start), ctypes.c_size_t(size))

    def map_again(self, start: int, size: int) -> None:
        """Pages of zeroes at a place that may be empty."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED
        at = ctypes.c_void_p(self.start + start)
        libc.mmap(at, ctypes.c_size_t(size), 3, flags, -1, ctypes.c_long(0))

    def protect(self, protection: int) -> None:
        libc.mprotect(ctypes.c_void_p(self.start), ctypes.c_size_t(self.size), protection)

    def put(self, offset: int, data: bytes) -> int:
        """Store ``data``; returns its address."""
        ctypes.memmove(self.start + offset, data, len(data))
        return self.start + offset

    def get(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self.start + offset, size)


def edge_of(data: bytes) -> int:
    """The address of ``data`` with nothing behind it."""
    area = Area(2 * PAGE)
    area.unmap(PAGE, PAGE)
    return area.put(PAGE - len(data), data)


def new_file(name: str, size: int) -> int:
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def new_device(backing: int, info: LoopInfo64 | None = None, directory: str = "/dev") -> int:
    """A free device, bound to ``backing`` and open; others may look for one as well.

    Args:
        directory: where the instance's nodes are.
    """
    config = bytearray(LoopConfig(fd=backing, info=info or LoopInfo64()).pack())
    control = os.open(f"{directory}/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = os.open(f"{directory}/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, config)
            except OSError as problem:
                os.close(device)
                if problem.errno != errno.EBUSY:
                    raise
            else:
                return device
    finally:
        os.close(control)


def status(device: int) -> LoopInfo64:
    buffer = bytearray(LoopInfo64().pack())
    fcntl.ioctl(device, LOOP_GET_STATUS64, buffer)
    return LoopInfo64.unpack(bytes(buffer))


def cycle(name: str, text: bytes) -> None:
    """What every well-behaved caller may expect: attach, look, write, detach."""
    backing = new_file(name, 1 << 20)
    device = new_device(backing)
    assert status(device).inode == os.fstat(backing).st_ino
    assert os.fstat(device).st_mode >> 12 == 6, "no block device"
    os.pwrite(device, text, 4096)
    os.fsync(device)
    assert os.pread(backing, len(text), 4096) == text
    fcntl.ioctl(device, LOOP_CLR_FD)
    os.close(device)
    os.close(backing)
    Path(name).unlink()


def report(answers: object) -> None:
    print(json.dumps(answers))
