"""Changes of a bound device: another file, size or block size, direct I/O."""

from __future__ import annotations

import os

from . import uapi
from .bench import Bench, content, flags_of, ioctl, number_out, scenario, size_of, status

SIZES = (0, 1, 256, 511, 512, 513, 1024, 4096, 8192, 65536, 131072, -1, 1 << 40)


def change_fd(fd: int, path: str, flags: int = os.O_RDONLY) -> None:
    file = os.open(path, flags | os.O_CLOEXEC)
    try:
        ioctl(fd, uapi.LOOP_CHANGE_FD, file)
    finally:
        os.close(file)


@scenario
def change_the_file(bench: Bench) -> None:
    first, second = bench.image(8192, b"A"), bench.image(8192, b"B")
    with bench.bound(first, flags=uapi.READ_ONLY) as (device, fd):
        bench.step("read before", lambda: os.pread(fd, 16384, 0))
        before = status(fd)["inode"]
        sequence = number_out(fd, uapi.BLKGETDISKSEQ, 8)
        bench.step("change", lambda: change_fd(fd, second))
        bench.step("read after", lambda: os.pread(fd, 16384, 0))
        bench.note("another inode", status(fd)["inode"] != before)
        bench.note("another medium", number_out(fd, uapi.BLKGETDISKSEQ, 8) > sequence)
        bench.step("flags", lambda: flags_of(fd))
        bench.step("larger", lambda: change_fd(fd, bench.image(8704)))
        bench.step("smaller", lambda: change_fd(fd, bench.image(4096)))
        bench.step("of as many sectors", lambda: change_fd(fd, bench.image(8300, b"C")))
        bench.step("read of that", lambda: os.pread(fd, 16384, 0))
        bench.step("itself", lambda: change_fd(fd, device.path))
        bench.step("a directory", lambda: change_fd(fd, bench.directory))
        bench.step("a character device", lambda: change_fd(fd, "/dev/null"))
        bench.step("closed", lambda: ioctl(fd, uapi.LOOP_CHANGE_FD, 999))
        bench.step("O_DIRECT", lambda: change_fd(fd, second, os.O_RDONLY | os.O_DIRECT))
        bench.step("flags after O_DIRECT", lambda: flags_of(fd))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("by a reader", lambda: change_fd(reader, first))
    with bench.bound(first) as (_, fd):
        bench.step("of a writable device", lambda: change_fd(fd, second))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: change_fd(fd, second))
        bench.step("unbound, closed", lambda: ioctl(fd, uapi.LOOP_CHANGE_FD, 999))


@scenario
def change_the_file_behind_an_offset(bench: Bench) -> None:
    first, second = bench.image(8192, b"A"), bench.image(16384, b"B")
    fields = {"offset": 512, "sizelimit": 4096, "flags": uapi.READ_ONLY}
    with bench.bound(first, **fields) as (_, fd):
        bench.step("the limit makes them equal", lambda: change_fd(fd, second))
        bench.step("read", lambda: os.pread(fd, 8192, 0))
        with open(second, "r+b") as file:
            file.truncate(2048)
        bench.step("both shorter now", lambda: change_fd(fd, bench.image(2048)))
        bench.step("size", lambda: size_of(fd))


@scenario
def see_the_size_anew(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with bench.bound(image, offset=512) as (device, fd), device.opened(os.O_RDONLY) as reader:
        for size in (16384, 16384 + 300, 4096, 512, 0, 8192):
            os.truncate(image, size)
            bench.step(f"before, {size}", lambda: size_of(fd))
            bench.step(f"set, {size}", lambda: ioctl(fd, uapi.LOOP_SET_CAPACITY, 0))
            bench.step(f"after, {size}", lambda: size_of(reader))
            bench.step(f"end, {size}", lambda: os.lseek(reader, 0, os.SEEK_END))
            bench.step(f"read, {size}", lambda: len(os.pread(reader, 32768, 0)))
        bench.step("by a reader", lambda: ioctl(reader, uapi.LOOP_SET_CAPACITY, 0))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: ioctl(fd, uapi.LOOP_SET_CAPACITY, 0))


@scenario
def logical_block_sizes(bench: Bench) -> None:
    image = bench.image(65536, b"A")
    with bench.bound(image) as (device, fd):
        for size in SIZES:
            bench.step(f"set {size}", lambda s=size: ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, s))
            bench.step(f"logical after {size}", lambda: number_out(fd, uapi.BLKSSZGET, 4))
            bench.step(f"physical after {size}", lambda: number_out(fd, uapi.BLKPBSZGET, 4))
            bench.step(f"soft after {size}", lambda: number_out(fd, uapi.BLKBSZGET, 4))
            bench.step(f"size after {size}", lambda: size_of(fd))
        ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, 4096)
        bench.step(
            "discard of a sector", lambda: ioctl(fd, uapi.BLKDISCARD, uapi.byte_range(0, 512))
        )
        bench.step("discard", lambda: ioctl(fd, uapi.BLKDISCARD, uapi.byte_range(0, 4096)))
        bench.step("write of a sector", lambda: os.pwrite(fd, b"B" * 512, 8192))
        os.fsync(fd)
        bench.note("image", content(image))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("by a reader", lambda: ioctl(reader, uapi.LOOP_SET_BLOCK_SIZE, 512))
        with device.opened(os.O_RDWR | os.O_EXCL) as holder:
            bench.step("by another", lambda: ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, 1024))
            bench.step("by the holder", lambda: ioctl(holder, uapi.LOOP_SET_BLOCK_SIZE, 1024))
            bench.step("after it", lambda: number_out(fd, uapi.BLKSSZGET, 4))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, 4096))


@scenario
def odd_size_and_large_blocks(bench: Bench) -> None:
    with bench.bound(bench.image(4096 * 3 + 512)) as (_, fd):
        bench.step("set", lambda: ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, 4096))
        bench.step("size", lambda: size_of(fd))
        bench.step("the last sector", lambda: os.pread(fd, 4096, 4096 * 3))


@scenario
def direct_io_to_the_file(bench: Bench) -> None:
    image = bench.image(65536, b"A")
    with bench.bound(image) as (device, fd):
        for value in (1, 1, 0, 0, 77):
            number = bench.count()
            bench.step(
                f"set {value} ({number})", lambda v=value: ioctl(fd, uapi.LOOP_SET_DIRECT_IO, v)
            )
            bench.step(f"flags ({number})", lambda: flags_of(fd))
        bench.step("write", lambda: os.pwrite(fd, b"B" * 4096, 0))
        os.fsync(fd)
        bench.note("image", content(image))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("by a reader", lambda: ioctl(reader, uapi.LOOP_SET_DIRECT_IO, 0))
        odd = uapi.info64(offset=100)
        bench.step("an odd offset", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, odd))
        bench.step("flags with it", lambda: flags_of(fd))
        bench.step("set with it", lambda: ioctl(fd, uapi.LOOP_SET_DIRECT_IO, 1))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: ioctl(fd, uapi.LOOP_SET_DIRECT_IO, 1))
