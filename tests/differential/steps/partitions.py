"""Partitions made by ioctls, as not every kernel reads partition tables."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from . import uapi
from .bench import Bench, Device, aligned, content, flags_of, ioctl, number_out, scenario, size_of

SECTOR = 512
END = 1 << 20
ADD, DELETE, RESIZE = 1, 2, 3


def nodes(device: Device) -> list[str]:
    """The partitions that have nodes beside the disk's."""
    directory, name = os.path.split(device.path)
    return sorted(n[len(name) :] for n in os.listdir(directory) if n.startswith(f"{name}p"))


def partition(device: Device, number: int) -> Device:
    return Device(device.number, f"{device.path}p{number}")


def blkpg(operation: int, number: int, start: int = 0, size: int = 0) -> bytes:
    """What to pass to :func:`pg`."""
    return struct.pack("=i4xqqi132x", operation, start, size, number)


def pg(fd: int, request: bytes) -> int:
    operation, inner = request[:4], request[8:]
    kept = ctypes.create_string_buffer(inner, len(inner))
    address = ctypes.addressof(kept)
    return ioctl(fd, uapi.BLKPG, operation + struct.pack("=ii4xQ", 0, len(inner), address))


@contextmanager
def parted(bench: Bench, path: str | None = None, **fields: int) -> Iterator[tuple[Device, int]]:
    """A bound device with the partitions 1, 3 and 5, and an open descriptor of it."""
    with bench.bound(path or bench.image(END, b"A"), **fields) as (device, fd):
        for number, start, sectors in ((1, 8, 100), (3, 1000, 1048), (5, 208, 92)):
            pg(fd, blkpg(ADD, number, start * SECTOR, sectors * SECTOR))
        yield device, fd


@scenario
def partitions_of_a_disk(bench: Bench) -> None:
    with parted(bench, flags=uapi.PARTSCAN) as (device, fd):
        bench.step("flags", lambda: flags_of(fd))
        bench.step("nodes", lambda: nodes(device))
        for number in (1, 3, 5):
            with partition(device, number).opened() as part:
                bench.step(f"{number}: size", lambda p=part: size_of(p))
                bench.step(f"{number}: sectors", lambda p=part: number_out(p, uapi.BLKGETSIZE, 8))
                bench.step(f"{number}: block", lambda p=part: number_out(p, uapi.BLKSSZGET, 4))
                bench.step(f"{number}: soft", lambda p=part: number_out(p, uapi.BLKBSZGET, 4))
                bench.step(f"{number}: end", lambda p=part: os.lseek(p, 0, os.SEEK_END))
                bench.step(f"{number}: flags", lambda p=part: flags_of(p))
                bench.step(
                    f"{number}: read at the end", lambda p=part: os.pread(p, 512, size_of(p))
                )
                bench.step(
                    f"{number}: write at the end",
                    lambda p=part: os.pwrite(p, b"x" * 512, size_of(p)),
                )
        bench.step("7", lambda: os.close(partition(device, 7).open()))
    bench.step("nodes afterwards", lambda: nodes(device))


@scenario
def data_of_a_partition(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with parted(bench, image, flags=uapi.PARTSCAN) as (device, fd):
        with partition(device, 1).opened() as part:
            bench.step("write", lambda: os.pwrite(part, b"B" * 1024, 512))
            bench.step("write over the end", lambda: os.pwrite(part, b"C" * 1024, 99 * SECTOR))
            bench.step("fsync", lambda: os.fsync(part))
            bench.note("image", content(image)[8 * SECTOR : 110 * SECTOR])
            zero = uapi.byte_range(1024, 1024)
            bench.step("zero out", lambda: ioctl(part, uapi.BLKZEROOUT, zero))
            over = uapi.byte_range(99 * SECTOR, 1024)
            bench.step("discard over the end", lambda: ioctl(part, uapi.BLKDISCARD, over))
            bench.step("read", lambda: os.pread(part, END, 0))
        bench.step("read of the disk", lambda: os.pread(fd, 8192, 8 * SECTOR))


@scenario
def a_partition_keeps_its_disk_busy(bench: Bench) -> None:
    with parted(bench, flags=uapi.PARTSCAN) as (device, fd):
        part = partition(device, 1).open()
        bench.step("scan", lambda: ioctl(fd, uapi.BLKRRPART))
        bench.step("delete", lambda: pg(fd, blkpg(DELETE, 1)))
        bench.step("delete another", lambda: pg(fd, blkpg(DELETE, 3)))
        bench.step("clear", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
        bench.step("flags", lambda: flags_of(fd))
    bench.step("still there", lambda: os.pread(part, 16, 0))
    bench.step("nodes", lambda: nodes(device))
    bench.step("remove", lambda: ioctl(bench.control, uapi.LOOP_CTL_REMOVE, device.number))
    os.close(part)
    time.sleep(0.05)
    bench.step("nodes afterwards", lambda: nodes(device))
    with device.opened() as fd:
        bench.step("size afterwards", lambda: size_of(fd))


@scenario
def claims_of_partitions(bench: Bench) -> None:
    with parted(bench, flags=uapi.PARTSCAN) as (device, fd):
        one, three = partition(device, 1), partition(device, 3)
        with one.opened(os.O_RDWR | os.O_EXCL):
            bench.step("the same", lambda: os.close(one.open(os.O_RDWR | os.O_EXCL)))
            bench.step("another", lambda: os.close(three.open(os.O_RDWR | os.O_EXCL)))
            bench.step("the disk", lambda: os.close(device.open(os.O_RDWR | os.O_EXCL)))
            bench.step("the disk, shared", lambda: os.close(device.open()))
            bench.step("block size", lambda: ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, 1024))
            bench.step("scan", lambda: ioctl(fd, uapi.BLKRRPART))
        with device.opened(os.O_RDWR | os.O_EXCL):
            bench.step(
                "a part of a claimed disk", lambda: os.close(one.open(os.O_RDWR | os.O_EXCL))
            )
            bench.step("shared", lambda: os.close(one.open()))
            bench.step("scan by another", lambda: ioctl(fd, uapi.BLKRRPART))


@scenario
def scan_for_partitions(bench: Bench) -> None:
    """Where there is no table: what was there goes."""
    with parted(bench) as (device, fd):
        bench.step("without the flag", lambda: ioctl(fd, uapi.BLKRRPART))
        bench.step("nodes without", lambda: nodes(device))
        scanned = uapi.info64(flags=uapi.PARTSCAN)
        bench.step("set the flag", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, scanned))
        bench.step("flags", lambda: flags_of(fd))
        bench.step("nodes with", lambda: nodes(device))
        bench.step("clear the flag", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, uapi.info64()))
        bench.step("flags still", lambda: flags_of(fd))
        pg(fd, blkpg(ADD, 9, 4096, 4096))
        bench.step("set it again", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, scanned))
        bench.step("nodes with it again", lambda: nodes(device))
        bench.step("scan", lambda: ioctl(fd, uapi.BLKRRPART))
        bench.step("nodes after a scan", lambda: nodes(device))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("by a reader", lambda: ioctl(reader, uapi.BLKRRPART))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: ioctl(fd, uapi.BLKRRPART))


@scenario
def partitions_outlive_their_medium(bench: Bench) -> None:
    """Without LO_FLAGS_PARTSCAN nobody forgets them."""
    with parted(bench) as (device, fd):
        ioctl(fd, uapi.LOOP_CLR_FD)
    bench.step("unbound", lambda: nodes(device))
    with device.opened() as fd:
        bench.step("opened", lambda: nodes(device))
        with partition(device, 1).opened() as part:
            bench.step("size", lambda: size_of(part))
            bench.step("read", lambda: os.pread(part, 512, 0))
            bench.step("write", lambda: os.pwrite(part, b"x" * 512, 0))
            bench.step("fsync", lambda: os.fsync(part))
        bench.bind(fd, bench.image(END, b"B"))
        with partition(device, 1).opened() as part:
            bench.step("read of another medium", lambda: os.pread(part, 512, 0))
        ioctl(fd, uapi.LOOP_CLR_FD)
    bench.step("remove", lambda: ioctl(bench.control, uapi.LOOP_CTL_REMOVE, device.number))
    bench.step("removed", lambda: nodes(device))


@scenario
def partitions_by_hand(bench: Bench) -> None:
    with bench.bound(bench.image(END, b"A")) as (device, fd):
        steps = {
            "add": blkpg(ADD, 1, 4096, 8192),
            "again": blkpg(ADD, 1, 65536, 8192),
            "overlapping": blkpg(ADD, 2, 8192, 8192),
            "beside it": blkpg(ADD, 2, 12288, 4096),
            "not aligned": blkpg(ADD, 3, 100, 4096),
            "past the end": blkpg(ADD, 3, END - 4096, 8192),
            "at the end": blkpg(ADD, 3, END, 512),
            "negative": blkpg(ADD, 3, -512, 1024),
            "empty": blkpg(ADD, 3, 32768, 0),
            "overflow": blkpg(ADD, 3, 1 << 62, 1 << 62),
            "number 0": blkpg(ADD, 0, 32768, 512),
            "number -1": blkpg(ADD, -1, 32768, 512),
            "number 255": blkpg(ADD, 255, 32768, 512),
            "number 256": blkpg(ADD, 256, 65536, 512),
            "grow": blkpg(RESIZE, 2, 12288, 8192),
            "grow into another": blkpg(RESIZE, 1, 4096, 16384),
            "move": blkpg(RESIZE, 1, 0, 8192),
            "resize none": blkpg(RESIZE, 9, 0, 8192),
            "delete none": blkpg(DELETE, 9),
            "delete": blkpg(DELETE, 1),
            "another operation": blkpg(9, 1, 4096, 512),
        }
        for name, request in steps.items():
            bench.step(name, lambda r=request: pg(fd, r))
            bench.step(f"{name}: nodes", lambda: nodes(device))
        with partition(device, 2).opened() as part:
            bench.step("size", lambda: size_of(part))
            bench.step("resize an open one", lambda: pg(fd, blkpg(RESIZE, 2, 12288, 4096)))
            bench.step("its size", lambda: size_of(part))
            bench.step("in a partition", lambda: pg(part, blkpg(ADD, 1, 0, 512)))
            bench.step("scan of a partition", lambda: ioctl(part, uapi.BLKRRPART))
            bench.step("clear by a partition", lambda: ioctl(part, uapi.LOOP_CLR_FD))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("by a reader", lambda: pg(reader, blkpg(DELETE, 255)))
    bench.step("nodes after the last close", lambda: nodes(device))
    with device.opened() as fd:
        bench.step("nodes when opened again", lambda: nodes(device))


@scenario
def read_only_partitions(bench: Bench) -> None:
    flags = uapi.PARTSCAN | uapi.READ_ONLY
    with (
        parted(bench, flags=flags) as (device, _),
        partition(device, 1).opened() as part,
    ):
        bench.step("BLKROGET", lambda: number_out(part, uapi.BLKROGET, 4))
        bench.step("write", lambda: os.pwrite(part, b"x" * 512, 0))
    with parted(bench) as (device, fd), partition(device, 1).opened() as part:
        ioctl(part, uapi.BLKROSET, b"\1\0\0\0")
        bench.step("one of them", lambda: number_out(part, uapi.BLKROGET, 4))
        bench.step("its disk", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("write to it", lambda: os.pwrite(part, b"x" * 512, 0))
        bench.step("write to the disk", lambda: os.pwrite(fd, b"x" * 512, 0))


@scenario
def a_disk_that_shrinks_under_a_partition(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with (
        parted(bench, image) as (device, fd),
        partition(device, 3).opened() as part,
    ):
        os.truncate(image, 1200 * SECTOR)
        bench.step("set capacity", lambda: ioctl(fd, uapi.LOOP_SET_CAPACITY))
        bench.step("disk", lambda: size_of(fd))
        bench.step("partition", lambda: size_of(part))
        bench.step("read what is there", lambda: os.pread(part, 4096, 0))
        bench.step("read what is not", lambda: os.pread(part, 4096, 400 * SECTOR))


@scenario
def a_partition_that_is_resized_while_it_is_open(bench: Bench) -> None:
    """Descriptors that were open before see it at once."""
    image = bench.image(END, b"A")
    with bench.bound(image) as (device, fd):
        pg(fd, blkpg(ADD, 1, 4096, 8192))
        one = partition(device, 1)
        with one.opened() as part, one.opened(os.O_RDONLY) as reader:
            bench.step("read to the end", lambda: len(os.pread(reader, END, 0)))
            for size in (16384, 4096, 12288, 8192 + 512, END - 4096, 512, 8192):
                what = f"to {size}"
                bench.step(what, lambda s=size: pg(fd, blkpg(RESIZE, 1, 4096, s)))
                bench.step(f"{what}: size", lambda: size_of(part))
                bench.step(f"{what}: end", lambda: os.lseek(reader, 0, os.SEEK_END))
                bench.step(f"{what}: read", lambda: len(os.pread(reader, END, 0)))
                bench.step(f"{what}: write", lambda s=size: os.pwrite(part, b"B" * 1024, s - 512))
                os.fsync(part)  # a kernel forgets what it has not written when the end moves
                bench.step(f"{what}: at the end", lambda s=size: os.pwrite(part, b"C" * 512, s))
                bench.step(f"{what}: see", lambda s=size: os.pread(reader, 512, s - 512)[:4])
        bench.note("image", content(image))


@scenario
def partitions_of_large_sectors(bench: Bench) -> None:
    with bench.bound(bench.image(END, b"A"), block_size=4096) as (device, fd):
        for start, size in ((4096, 8192), (512, 4096), (4096, 512), (16384, 4096 + 512)):
            step = f"{start} {size}"
            bench.step(f"add {step}", lambda s=start, n=size: pg(fd, blkpg(ADD, 1, s, n)))
            bench.step(f"resize {step}", lambda s=start, n=size: pg(fd, blkpg(RESIZE, 1, s, n)))
        with partition(device, 1).opened() as part:
            bench.step("size", lambda: size_of(part))
            bench.step("sector", lambda: number_out(part, uapi.BLKSSZGET, 4))
            bench.step("block", lambda: number_out(part, uapi.BLKBSZGET, 4))
            bench.step("discard half a sector", lambda: _discard(part, 0, 512))
            bench.step("discard one", lambda: _discard(part, 0, 4096))
            bench.step("write", lambda: os.pwrite(part, b"B" * 512, 1024))
            bench.step("over the end", lambda: os.pwrite(part, b"C" * 1024, 8192 - 512))
            bench.step("smaller sectors", lambda: ioctl(fd, uapi.LOOP_SET_BLOCK_SIZE, 512))
            bench.step("its sector then", lambda: number_out(part, uapi.BLKSSZGET, 4))
        bench.step("add a small one", lambda: pg(fd, blkpg(ADD, 2, 16384 + 512, 512)))
        bench.step("nodes", lambda: nodes(device))


def _discard(fd: int, start: int, length: int) -> int:
    return ioctl(fd, uapi.BLKDISCARD, uapi.byte_range(start, length))


@scenario
def a_held_partition(bench: Bench) -> None:
    """What is claimed is claimed for its disk, and the other way round."""
    with parted(bench) as (device, fd):
        one, three = partition(device, 1), partition(device, 3)
        with one.opened(os.O_RDWR | os.O_EXCL):
            bench.step("delete it", lambda: pg(fd, blkpg(DELETE, 1)))
            bench.step("resize it", lambda: pg(fd, blkpg(RESIZE, 1, 8 * SECTOR, 50 * SECTOR)))
            bench.step("delete another", lambda: pg(fd, blkpg(DELETE, 3)))
            bench.step("add one", lambda: pg(fd, blkpg(ADD, 3, 1000 * SECTOR, 8 * SECTOR)))
            bench.step("another, exclusively", lambda: os.close(three.open(os.O_EXCL)))
            bench.step("block size", lambda: ioctl(fd, uapi.BLKBSZSET, b"\0\x04\0\0"))
            bench.step("the disk's status", lambda: flags_of(fd))
            bench.step("capacity", lambda: ioctl(fd, uapi.LOOP_SET_CAPACITY))
            info = uapi.info64(offset=512)
            bench.step("offset", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, info))
        with device.opened(os.O_RDWR | os.O_EXCL) as holder:
            bench.step("add while the disk is held", lambda: pg(fd, blkpg(ADD, 9, 8192, 4096)))
            bench.step("add by the holder", lambda: pg(holder, blkpg(ADD, 7, 65536, 4096)))
            bench.step("delete by the holder", lambda: pg(holder, blkpg(DELETE, 7)))
            bench.step("clear by another", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
    bench.step("nodes", lambda: nodes(device))


@scenario
def what_disk_partition_and_file_show(bench: Bench) -> None:
    """Each has a cache of its own: what one writes the others show once they forget theirs."""
    image = bench.image(END, b"A")
    start = 8 * SECTOR
    with parted(bench, image) as (device, fd), partition(device, 1).opened() as part:
        with open(image, "r+b", buffering=0) as file:

            def show(step: str) -> None:
                bench.step(f"{step}: disk", lambda: os.pread(fd, 3, start))
                bench.step(f"{step}: partition", lambda: os.pread(part, 3, 0))
                bench.step(f"{step}: file", lambda: os.pread(file.fileno(), 3, start))

            show("at first")
            os.pwrite(part, b"B" * 4096, 0)
            os.fsync(part)
            show("written to the partition")
            ioctl(fd, uapi.BLKFLSBUF)
            show("the disk's cache flushed")
            os.pwrite(fd, b"C" * 4096, start)
            os.fsync(fd)
            show("written to the disk")
            ioctl(part, uapi.BLKFLSBUF)
            show("the partition's cache flushed")
            os.pwrite(file.fileno(), b"D" * 4096, start)
            show("written to the file")
        for each in (fd, part):
            ioctl(each, uapi.BLKFLSBUF)
        show_again = [os.pread(fd, 3, start), os.pread(part, 3, 0)]
        bench.note("all flushed", show_again)
        with partition(device, 1).opened(os.O_RDONLY | os.O_DIRECT) as straight:
            os.pwrite(fd, b"E" * 4096, start)
            os.fsync(fd)
            memory = aligned(4096)
            os.preadv(straight, [memory], 0)
            bench.note("read without a cache", memory[:3])
