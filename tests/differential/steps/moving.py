"""Other transfers of data: O_DIRECT, mmap, fallocate, sendfile, splice, copies."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable

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
SHARED = mmap.MAP_SHARED
READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


@scenario
def direct_transfers(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image, openings=os.O_RDWR | os.O_DIRECT) as (_, fd):
        memory = aligned(16384, b"B")
        for name in ("pread", "pwrite"):
            for size, at in (
                *((512, 0), (4096, 512), (8192, 4096), (100, 0), (513, 512), (512, 100)),
                *((0, 0), (0, 100), (4096, END - 512), (512, END), (4096, END + 512)),
                *((100, END), (512, END + 100), (1024, END - 1024), (512, 1 << 40)),
            ):
                step = f"{name} {size} at {at}"
                bench.step(step, lambda n=name, s=size, a=at: call(n, fd, memory, s, a))
            bench.step(f"{name} to nowhere", lambda n=name: call(n, fd, NOWHERE << 12, 512, 0))
        bench.note("image", content(image))


@scenario
def direct_memory(bench: Bench) -> None:
    with bench.bound(openings=os.O_RDWR | os.O_DIRECT) as (_, fd):
        memory = aligned(8192)
        whole = memoryview(memory)
        for shift in (0, 512, 4, 8, 16, 256, 1, 3):
            part = whole[shift : shift + 1024]
            bench.step(f"read, {shift}", lambda part=part: os.preadv(fd, [part], 0))
            bench.step(f"write, {shift}", lambda part=part: os.pwritev(fd, [part], 0))
        parts = [whole[0:512], whole[1024:1536]]
        bench.step("two sectors", lambda: os.preadv(fd, parts, 0))
        parts = [whole[0:100], whole[512:924]]
        bench.step("one sector in two", lambda: os.preadv(fd, parts, 0))


@scenario
def direct_with_large_blocks(bench: Bench) -> None:
    device = bench.device()
    backing = os.open(bench.image(END), os.O_RDWR)
    with device.opened(os.O_RDWR | os.O_DIRECT) as fd:
        ioctl(fd, uapi.LOOP_CONFIGURE, uapi.config(backing, block_size=4096))
        memory = aligned(8192)
        for size, at in ((4096, 0), (512, 0), (4096, 512), (8192, 4096)):
            bench.step(f"read {size} at {at}", lambda s=size, a=at: call("pread", fd, memory, s, a))
            step = f"write {size} at {at}"
            bench.step(step, lambda s=size, a=at: call("pwrite", fd, memory, s, a))
    with device.opened() as fd:
        bench.step("buffered, 512", lambda: os.pwrite(fd, b"x" * 512, 512))
        bench.step("fallocate 512", lambda: call("fallocate", fd, 3, 0, 512))
        bench.step("zeroout", lambda: ioctl(fd, uapi.BLKZEROOUT, uapi.byte_range(512, 4096)))


MODES = {
    "plain": 0,
    "keep size": uapi.KEEP_SIZE,
    "punch": uapi.PUNCH_HOLE | uapi.KEEP_SIZE,
    "punch without keep": uapi.PUNCH_HOLE,
    "punch, no hide": uapi.PUNCH_HOLE | uapi.KEEP_SIZE | uapi.NO_HIDE_STALE,
    "zero": uapi.ZERO_RANGE,
    "zero, keep size": uapi.ZERO_RANGE | uapi.KEEP_SIZE,
    "collapse": uapi.COLLAPSE_RANGE,
    "insert": uapi.INSERT_RANGE,
    "unshare": uapi.UNSHARE_RANGE,
    "write zeroes": 0x80,
    "unknown": 1 << 20,
    "zero and punch": uapi.ZERO_RANGE | uapi.PUNCH_HOLE | uapi.KEEP_SIZE,
}
RANGES = (
    *((0, 4096), (4096, 8192), (512, 512), (100, 512), (512, 100), (0, 0), (-1, 512), (0, -1)),
    *((END - 4096, 4096), (END - 4096, 8192), (END, 512), (END + 4096, 512), (0, END)),
    *(((1 << 63) - 512, 512), ((1 << 63) - 4096, 8192)),
)


@scenario
def fallocate(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image) as (device, fd):
        for name, mode in MODES.items():
            for start, length in RANGES if mode in (3, 16, 17) else RANGES[:2]:
                _fallocate(bench, f"{name} {start} {length}", fd, image, (mode, start, length))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("reader", lambda: call("fallocate", reader, 3, 0, 4096))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: call("fallocate", fd, 3, 0, 4096))


def _fallocate(bench: Bench, step: str, fd: int, image: str, args: tuple[int, int, int]) -> None:
    bench.step(step, lambda: call("fallocate", fd, *args))
    os.fsync(fd)
    now = content(image)
    bench.note(f"{step}: image", now)
    bench.note(f"{step}: seen", os.pread(fd, END, 0) == now)
    os.pwrite(fd, b"A" * END, 0)
    os.fsync(fd)


@scenario
def punched_holes_are_holes(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image) as (_, fd):
        os.sync()
        before = os.stat(image).st_blocks
        bench.step("punch", lambda: call("fallocate", fd, 3, 0, 65536))
        bench.note("freed", (before - os.stat(image).st_blocks) * 512)
        rng = uapi.byte_range(65536, 65536)
        bench.step("discard", lambda: ioctl(fd, uapi.BLKDISCARD, rng))
        bench.note("freed by it, too", (before - os.stat(image).st_blocks) * 512)


@scenario
def shared_mapping(bench: Bench) -> None:
    image = bench.image(16384, b"A")
    with bench.bound(image) as (device, fd), device.opened() as other:
        memory = mmap.mmap(fd, 16384)
        bench.step("seen", lambda: memory[:16384])
        memory[4000:4200] = b"B" * 200
        bench.step("read", lambda: os.pread(other, 8192, 0))
        bench.step("msync", memory.flush)
        bench.note("image", content(image))
        bench.step("write", lambda: os.pwrite(other, b"C" * 100, 8192))
        bench.step("mapping sees it", lambda: memory[8192:8392])
        memory[16000:16384] = b"D" * 384
        bench.step("fsync", lambda: os.fsync(other))
        bench.note("image after fsync", content(image))
        bench.step("zero out", lambda: call("fallocate", fd, uapi.ZERO_RANGE, 4096, 4096))
        bench.step("mapping sees zeroes", lambda: memory[:16384])
        memory[0:10] = b"E" * 10
        memory.close()
    bench.note("image after close", content(image))


@scenario
def mapping_arguments(bench: Bench) -> None:
    with bench.bound(bench.image(8192, b"A")) as (device, fd):
        reader, writer = device.open(os.O_RDONLY), device.open(os.O_WRONLY)
        cases = {
            "shared": (4096, READ_WRITE, SHARED, fd, 0),
            "private": (4096, READ_WRITE, mmap.MAP_PRIVATE, fd, 0),
            "reader, writable": (4096, READ_WRITE, SHARED, reader, 0),
            "reader, private": (4096, READ_WRITE, mmap.MAP_PRIVATE, reader, 0),
            "reader, readable": (4096, mmap.PROT_READ, SHARED, reader, 0),
            "writer": (4096, mmap.PROT_WRITE, SHARED, writer, 0),
            "odd offset": (4096, READ_WRITE, SHARED, fd, 512),
            "past the end": (4096, READ_WRITE, SHARED, fd, 1 << 20),
            "nothing": (0, READ_WRITE, SHARED, fd, 0),
            "executable": (4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE, fd, 0),
            "validated": (4096, READ_WRITE, 3, fd, 0),
            "MAP_SYNC": (4096, READ_WRITE, 3 | 0x80000, fd, 0),
        }
        for name, (length, protection, kind, file, at) in cases.items():
            arguments = (0, length, protection, kind, file, at)
            bench.step(name, lambda a=arguments: call("mmap", *a) != 0)


@scenario
def mapping_past_the_end(bench: Bench) -> None:
    with bench.bound(bench.image(5120, b"A")) as (_, fd), bench.device().opened() as unbound:
        for name, file, at in (
            ("inside", fd, 0),
            ("last page", fd, 4096),
            ("after it", fd, 8192),
            ("far", fd, 1 << 30),
            ("unbound", unbound, 0),
        ):
            bench.note(f"{name}: read", _touch(_peek, file, at))
            bench.note(f"{name}: write", _touch(_poke, file, at))
        bench.step("size", lambda: size_of(fd))


def _map(fd: int, at: int) -> mmap.mmap:
    return mmap.mmap(fd, 4096, offset=at)


def _peek(fd: int, at: int) -> None:
    _ = _map(fd, at)[3]


def _poke(fd: int, at: int) -> None:
    _map(fd, at)[3] = 65


def _touch(action: Callable[[int, int], None], fd: int, at: int) -> str:
    """What becomes of a process that does it."""
    pid = os.fork()
    if pid == 0:
        try:
            action(fd, at)
        except (OSError, ValueError) as problem:
            os._exit(getattr(problem, "errno", None) or 255)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return signal.Signals(-code).name if code < 0 else str(code)


@scenario
def private_mapping(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with bench.bound(image) as (_, fd):
        memory = mmap.mmap(fd, 8192, mmap.MAP_PRIVATE, READ_WRITE)
        memory[0:10] = b"B" * 10
        bench.step("read", lambda: os.pread(fd, 100, 0))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", content(image))


@scenario
def mapping_without_descriptor(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    device = bench.device()
    with device.opened() as fd:
        bench.bind(fd, image)
        memory = mmap.mmap(fd, 8192)
        autoclear = uapi.info64(flags=uapi.AUTOCLEAR)
        bench.step("autoclear", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, autoclear))
    memory[0:10] = b"B" * 10
    with device.opened() as fd:
        bench.step("still bound", lambda: size_of(fd))
        bench.step("read", lambda: os.pread(fd, 100, 0))
    bench.step("msync", memory.flush)
    memory.close()
    bench.note("image", content(image))
    with device.opened() as fd:
        bench.step("unbound", lambda: size_of(fd))


@scenario
def sendfile(bench: Bench) -> None:
    with bench.bound(bench.image(8192, b"A")) as (_, fd):
        path = bench.image(8192, b"B")
        file = os.open(path, os.O_RDWR)
        bench.step("from the device", lambda: os.sendfile(file, fd, 0, 4096))
        bench.step("over its end", lambda: os.sendfile(file, fd, 8000, 4096))
        bench.step("at its end", lambda: os.sendfile(file, fd, 8192, 4096))
        bench.note("file", content(path))
        bench.step("to the device", lambda: os.sendfile(fd, file, 5000, 3000))
        bench.step("to the end", lambda: os.sendfile(fd, file, 0, 8192))
        bench.step("past the end", lambda: os.sendfile(fd, file, 0, 8192))
        bench.step("device", lambda: os.pread(fd, 9000, 0))


@scenario
def copies(bench: Bench) -> None:
    with bench.bound(bench.image(8192, b"A")) as (device, fd), device.opened() as other:
        file = os.open(bench.image(8192, b"B"), os.O_RDWR)
        for name, source, target in (
            ("from the device", fd, file),
            ("to the device", file, fd),
            ("in the device", fd, other),
        ):
            copy = os.copy_file_range
            bench.step(name, lambda s=source, t=target, c=copy: c(s, t, 512, 0, 4096))
        for name, cmd in (("FICLONE", 0x40049409), ("FIDEDUPERANGE", 0xC0189436)):
            bench.step(f"{name} from the device", lambda c=cmd: ioctl(file, c, fd))
            bench.step(f"{name} to the device", lambda c=cmd: ioctl(fd, c, file))


@scenario
def splices(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with bench.bound(image) as (_, fd):
        reading, writing = os.pipe()
        bench.step("to a pipe", lambda: os.splice(fd, writing, 1000, offset_src=100))
        bench.step("what came", lambda: os.read(reading, 4096))
        bench.step("at the end", lambda: os.splice(fd, writing, 1000, offset_src=8192))
        os.write(writing, b"C" * 1000)
        bench.step("from a pipe", lambda: os.splice(reading, fd, 700, offset_dst=50))
        bench.step("at the end from a pipe", lambda: os.splice(reading, fd, 100, offset_dst=8192))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", content(image))
