"""read(2), write(2) and related calls, in particular at the ends of a device."""

from __future__ import annotations

import os

from . import uapi
from .bench import (
    NOWHERE,
    Bench,
    aligned,
    call,
    content,
    ioctl,
    scenario,
    size_of,
)

END = 1 << 20
FAR = 1 << 40
PLACES = (0, 1, 511, 4095, END - 4096, END - 100, END - 1, END, END + 1, END + 4096, FAR)
LARGEST = (1 << 63) - 1


@scenario
def read_edges(bench: Bench) -> None:
    with bench.bound(bench.image(END, b"ABCD")) as (_, fd):
        for at in (*PLACES, LARGEST, LARGEST - 4096):
            bench.step(f"512 at {at}", lambda at=at: len(os.pread(fd, 512, at)))
        bench.step("at -1", lambda: os.pread(fd, 512, -1))
        bench.step("three times the size", lambda: len(os.pread(fd, 3 * END, 0)))
        bench.step("nothing", lambda: os.pread(fd, 0, 0))
        bench.step("nothing at the end", lambda: os.pread(fd, 0, END))
        bench.step("odd", lambda: os.pread(fd, 7, 4093).hex())
        bench.step("read", lambda: len(os.read(fd, 1000)))
        bench.step("position", lambda: os.lseek(fd, 0, os.SEEK_CUR))
        bench.step("seek to the end", lambda: os.lseek(fd, -10, os.SEEK_END))
        bench.step("read at the end", lambda: len(os.read(fd, 1000)))
        bench.step("read after the end", lambda: len(os.read(fd, 1000)))
        bench.step("position at the end", lambda: os.lseek(fd, 0, os.SEEK_CUR))
        bench.step("into nowhere", lambda: call("pread", fd, NOWHERE, 512, 0))
        bench.step("into nowhere at the end", lambda: call("pread", fd, NOWHERE, 512, END))


@scenario
def write_edges(bench: Bench) -> None:
    image = bench.image(END)
    with bench.bound(image) as (_, fd):
        for at in (*PLACES, LARGEST, LARGEST - 4096):
            bench.step(f"512 at {at}", lambda at=at: os.pwrite(fd, b"w" * 512, at))
            bench.step(f"nothing at {at}", lambda at=at: os.pwrite(fd, b"", at))
        bench.step("at -1", lambda: os.pwrite(fd, b"x", -1))
        bench.step("three times the size", lambda: os.pwrite(fd, bytes(3 * END), 4096))
        bench.step("odd", lambda: os.pwrite(fd, b"seven..", 4093))
        bench.step("from nowhere", lambda: call("pwrite", fd, NOWHERE, 512, 0))
        bench.step("from nowhere at the end", lambda: call("pwrite", fd, NOWHERE, 512, END))
        bench.step("write", lambda: os.write(fd, b"y" * 1000))
        bench.step("seek to the end", lambda: os.lseek(fd, -10, os.SEEK_END))
        bench.step("write over the end", lambda: os.write(fd, b"z" * 1000))
        bench.step("write at the end", lambda: os.write(fd, b"z" * 1000))
        bench.step("position", lambda: os.lseek(fd, 0, os.SEEK_CUR))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", content(image))
        bench.note("image's size", os.path.getsize(image))


@scenario
def wrong_access(bench: Bench) -> None:
    with bench.bound(openings=os.O_RDONLY) as (device, reader), device.opened(1) as writer:
        bench.step("write by a reader", lambda: os.write(reader, b"x"))
        bench.step("read by a writer", lambda: os.read(writer, 512))
        bench.step("fsync by a reader", lambda: os.fsync(reader))
        bench.step("size for a writer", lambda: size_of(writer))


@scenario
def append(bench: Bench) -> None:
    with bench.bound(bench.image(4096, b"A"), openings=os.O_RDWR | os.O_APPEND) as (_, fd):
        bench.step("write", lambda: os.write(fd, b"x" * 512))
        bench.step("pwrite", lambda: os.pwrite(fd, b"x" * 512, 0))
        bench.step("write nothing", lambda: os.write(fd, b""))
        bench.step("position", lambda: os.lseek(fd, 0, os.SEEK_CUR))
        bench.step("read", lambda: os.pread(fd, 8192, 0))
    with bench.bound(bench.image(4096, b"A")) as (_, fd):
        bench.step("RWF_APPEND", lambda: os.pwritev(fd, [b"y" * 512], 0, os.RWF_APPEND))
        bench.step("read after RWF_APPEND", lambda: os.pread(fd, 8192, 0))


@scenario
def lseek(bench: Bench) -> None:
    names = {os.SEEK_SET: "SET", os.SEEK_CUR: "CUR", os.SEEK_END: "END"}
    names |= {os.SEEK_DATA: "DATA", os.SEEK_HOLE: "HOLE", 17: "17"}
    with bench.bound() as (_device, fd):
        for whence, name in names.items():
            for offset in (0, 100, -1, -END, -END - 1, END, END + 1, FAR, LARGEST):
                os.lseek(fd, 0, os.SEEK_SET)
                step = f"SEEK_{name} {offset}"
                bench.step(step, lambda o=offset, w=whence: os.lseek(fd, o, w))
    with bench.device().opened() as fd:
        bench.step("unbound: end", lambda: os.lseek(fd, 0, os.SEEK_END))
        bench.step("unbound: 1", lambda: os.lseek(fd, 1, os.SEEK_SET))


@scenario
def vectors(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with bench.bound(image) as (_, fd):
        parts = [b"B" * 100, b"", b"C" * 500, b"D" * 4000]
        bench.step("pwritev", lambda: os.pwritev(fd, parts, 50))
        bench.step("pwritev over the end", lambda: os.pwritev(fd, parts, 8192 - 300))
        bench.step("pwritev at the end", lambda: os.pwritev(fd, parts, 8192))
        bench.step("pwritev, RWF_DSYNC", lambda: os.pwritev(fd, parts, 4000, os.RWF_DSYNC))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", content(image))
        buffers = [bytearray(10), bytearray(0), bytearray(6000)]
        bench.step("preadv", lambda: os.preadv(fd, buffers, 4096))
        bench.note("what was read", [bytes(part) for part in buffers])
        bench.step("preadv at the end", lambda: os.preadv(fd, buffers, 8192))
        bench.step("writev", lambda: os.writev(fd, parts))
        bench.step("readv", lambda: os.readv(fd, buffers))
        bench.step("position", lambda: os.lseek(fd, 0, os.SEEK_CUR))


@scenario
def sync_calls(bench: Bench) -> None:
    image = bench.image()
    with bench.bound(image) as (device, fd), bench.device().opened() as unbound:
        for name, file in (("bound", fd), ("unbound", unbound)):
            bench.step(f"{name}: fsync", lambda f=file: os.fsync(f))
            bench.step(f"{name}: fdatasync", lambda f=file: os.fdatasync(f))
            bench.step(f"{name}: syncfs", lambda f=file: call("syncfs", f))
            for flags in (0, 1, 2, 7, 8):
                step = f"{name}: sync_file_range {flags}"
                bench.step(step, lambda f=file, g=flags: call("sync_file_range", f, 0, 4096, g))
            bench.step(f"{name}: fadvise", lambda f=file: os.posix_fadvise(f, 0, 0, 4))
            bench.step(f"{name}: bad advice", lambda f=file: os.posix_fadvise(f, 0, 0, 99))
            bench.step(f"{name}: readahead", lambda f=file: call("readahead", f, 0, 4096))
        with device.opened(os.O_SYNC | os.O_RDWR) as syncing:
            bench.step("O_SYNC write", lambda: os.pwrite(syncing, b"s" * 512, 512))
            bench.note("is in the image", content(image)[:1024])


@scenario
def truncate(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with bench.bound(image) as (device, fd), bench.device().opened() as unbound:
        for size in (0, 512, 8192, 16384, -1, LARGEST):
            bench.step(f"ftruncate {size}", lambda size=size: os.ftruncate(fd, size))
            bench.step(f"truncate {size}", lambda s=size: os.truncate(device.path, s))
        bench.step("unbound", lambda: os.ftruncate(unbound, 0))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("a reader", lambda: os.ftruncate(reader, 0))
        bench.step("O_TRUNC", lambda: os.close(device.open(os.O_RDWR | os.O_TRUNC)))
        bench.step("size", lambda: size_of(fd))
        bench.note("image", content(image))


@scenario
def two_descriptors(bench: Bench) -> None:
    """What one opener writes the other reads at once, whatever it has read before."""
    with bench.bound(bench.image(8192, b"A")) as (device, first), device.opened() as second:
        bench.step("read", lambda: os.pread(second, 8192, 0))
        bench.step("write", lambda: os.pwrite(first, b"B" * 4096, 2048))
        bench.step("read what was written", lambda: os.pread(second, 8192, 0))
        with device.opened(os.O_RDWR | os.O_DIRECT) as direct:
            os.fsync(first)
            memory = aligned(4096, b"C")
            bench.step("write directly", lambda: call("pwrite", direct, memory, 4096, 4096))
            bench.step("read after it", lambda: os.pread(second, 8192, 0))
            bench.step("write beside it", lambda: os.pwrite(first, b"D" * 512, 0))
            bench.step("fsync", lambda: os.fsync(first))
            bench.step("read directly", lambda: call("pread", direct, memory, 4096, 0))
            bench.note("what was read", memory[:4096])


@scenario
def image_shrinks(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image, openings=os.O_RDWR | os.O_DIRECT) as (_, fd):
        os.truncate(image, 8192 + 512)
        memory = aligned(8192)
        bench.step("size", lambda: size_of(fd))
        for at in (0, 8192 - 512, 8192, 8192 + 512, 65536, END - 4096):
            for size in (512, 4096):
                step = f"read {size} at {at}"
                memory[:] = b"\xa5" * len(memory)
                if bench.step(step, lambda a=at, s=size: call("pread", fd, memory, s, a)):
                    bench.note(f"{step}: data", memory[:size])
        bench.step("write", lambda: call("pwrite", fd, aligned(512, b"W"), 512, 65536))
        bench.note("image's size", os.path.getsize(image))
        bench.step("read it", lambda: call("pread", fd, memory, 512, 65536))
        bench.note("it", memory[:512])
        bench.step("fsync", lambda: os.fsync(fd))
        bench.step("size in the end", lambda: size_of(fd))


@scenario
def image_is_emptied(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image) as (_, fd):
        os.truncate(image, 0)
        bench.step("read", lambda: os.pread(fd, 4096, 0))
        bench.step("write", lambda: os.pwrite(fd, b"B" * 4096, 8192))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", content(image))
        rng = uapi.byte_range(END - 4096, 4096)
        bench.step("BLKZEROOUT", lambda: ioctl(fd, uapi.BLKZEROOUT, rng))


@scenario
def image_is_unlinked(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with bench.bound(image) as (device, fd):
        os.unlink(image)
        bench.step("read", lambda: os.pread(fd, 4096, 0))
        bench.step("write", lambda: os.pwrite(fd, b"B" * 4096, 4096))
        bench.step("fsync", lambda: os.fsync(fd))
        with device.opened(os.O_RDONLY) as other:
            bench.step("read again", lambda: os.pread(other, 8192, 0))
        bench.step("clear", lambda: ioctl(fd, uapi.LOOP_CLR_FD))


@scenario
def image_grows(bench: Bench) -> None:
    image = bench.image(4096, b"A")
    with bench.bound(image) as (device, fd):
        os.truncate(image, 8192)
        bench.step("size", lambda: size_of(fd))
        bench.step("end", lambda: os.lseek(fd, 0, os.SEEK_END))
        bench.step("write past the old end", lambda: os.pwrite(fd, b"B" * 512, 4096))
        with device.opened() as later:
            bench.step("size for a later opener", lambda: size_of(later))
