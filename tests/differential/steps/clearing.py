"""LOOP_CLR_FD, autoclear, and a device between detach and last close."""

from __future__ import annotations

import os

from . import uapi
from .bench import Bench, content, flags_of, ioctl, number_out, scenario, size_of, status


@scenario
def clear_an_unbound_device(bench: Bench) -> None:
    with bench.device().opened() as fd:
        bench.step("clear", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
        bench.step("status", lambda: status(fd))
        bench.step("size", lambda: size_of(fd))
        bench.step("read", lambda: os.read(fd, 512))
        bench.step("write", lambda: os.write(fd, b"x" * 512))
        bench.step("write nothing", lambda: os.write(fd, b""))
        bench.step("fsync", lambda: os.fsync(fd))


@scenario
def clear_with_one_opener(bench: Bench) -> None:
    image = bench.image(fill=b"A")
    device = bench.device()
    with device.opened() as fd:
        bench.bind(fd, image)
        bench.step("clear", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
        bench.step("clear again", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
        bench.step("get_status64", lambda: status(fd))
        get_old = uapi.LOOP_GET_STATUS
        bench.step("get_status", lambda: number_out(fd, get_old, uapi.OLD_INFO_SIZE))
        bench.step("set_status64", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, uapi.info64()))
        bench.step("set_status", lambda: ioctl(fd, uapi.LOOP_SET_STATUS, uapi.old_info()))
        bench.step("set_fd", lambda: bench.bind(fd, image))
        backing = os.open(image, os.O_RDWR)
        bench.step("configure", lambda: ioctl(fd, uapi.LOOP_CONFIGURE, uapi.config(backing)))
        bench.step("open", lambda: device.open(os.O_RDONLY))
        bench.step("open to write", device.open)
        bench.step("open O_PATH", lambda: device.open(os.O_PATH) > 0)
        bench.step("remove", lambda: ioctl(bench.control, uapi.LOOP_CTL_REMOVE, device.number))
        bench.step("BLKROGET", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("BLKSSZGET", lambda: number_out(fd, uapi.BLKSSZGET, 4))
        bench.step("bind another device to it", lambda: _bind_to_it(bench, fd))
    bench.step("open after close", lambda: device.open() > 0)
    bench.step("the file is whole", lambda: content(image))


def _bind_to_it(bench: Bench, fd: int) -> None:
    with bench.device().opened() as other:
        ioctl(other, uapi.LOOP_SET_FD, fd)


@scenario
def data_of_a_device_that_runs_down(bench: Bench) -> None:
    with bench.device().opened() as fd:
        bench.bind(fd, bench.image(fill=b"A"))
        bench.step("read before", lambda: os.pread(fd, 4096, 0))
        ioctl(fd, uapi.LOOP_CLR_FD)
        bench.step("size", lambda: size_of(fd))
        bench.step("end", lambda: os.lseek(fd, 0, os.SEEK_END))
        # Far from what the first read, or its read-ahead, has brought into the cache.
        bench.step("read", lambda: os.pread(fd, 4096, 1 << 19))
        bench.step("read at the end", lambda: os.pread(fd, 4096, 1 << 20))
        bench.step("write past the end", lambda: os.pwrite(fd, b"x" * 512, 1 << 20))
        bench.step("BLKZEROOUT", lambda: ioctl(fd, uapi.BLKZEROOUT, uapi.byte_range(0, 4096)))


@scenario
def bind_again_after_the_last_close(bench: Bench) -> None:
    first, second = bench.image(8192, b"A"), bench.image(4096, b"B")
    device = bench.device()
    with device.opened() as fd:
        bench.bind(fd, first)
        bench.step("read", lambda: os.pread(fd, 9000, 0))
        ioctl(fd, uapi.LOOP_CLR_FD)
    with device.opened() as fd:
        bench.step("status between", lambda: status(fd))
        bench.step("size between", lambda: size_of(fd))
        bench.step("read between", lambda: os.pread(fd, 9000, 0))
        bench.step("bind again", lambda: bench.bind(fd, second))
        bench.step("flags", lambda: flags_of(fd))
        bench.step("read again", lambda: os.pread(fd, 9000, 0))
        bench.step("end", lambda: os.lseek(fd, 0, os.SEEK_END))


@scenario
def clear_with_two_openers(bench: Bench) -> None:
    image = bench.image(fill=b"A")
    device = bench.device()
    other = device.open()
    with device.opened() as fd:
        bench.bind(fd, image)
        bench.step("clear", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
        bench.step("flags", lambda: flags_of(fd))
        bench.step("size", lambda: size_of(fd))
        bench.step("read", lambda: os.pread(fd, 4096, 0))
        bench.step("write", lambda: os.pwrite(other, b"B" * 4096, 0))
        # What is only in the cache of the kernel's device is lost when it runs down.
        bench.step("fsync", lambda: os.fsync(other))
        bench.step("set_fd", lambda: bench.bind(other, image))
        bench.step("clear again", lambda: ioctl(other, uapi.LOOP_CLR_FD))
        bench.step("open a third", lambda: os.close(device.open()))
    bench.step("after one close: flags", lambda: flags_of(other))
    bench.step("after one close: read", lambda: os.pread(other, 4096, 8192))
    bench.step("clear as the last", lambda: ioctl(other, uapi.LOOP_CLR_FD))
    bench.step("status", lambda: status(other))
    os.close(other)
    with device.opened() as fd:
        bench.step("in the end: status", lambda: status(fd))
        bench.step("in the end: bind", lambda: bench.bind(fd, image))
        bench.step("written", lambda: content(image)[:8192])


@scenario
def a_duplicate_is_no_second_opener(bench: Bench) -> None:
    device = bench.device()
    fd = device.open()
    bench.bind(fd, bench.image())
    copy = os.dup(fd)
    os.close(fd)
    bench.step("size", lambda: size_of(copy))
    bench.step("clear", lambda: ioctl(copy, uapi.LOOP_CLR_FD))
    bench.step("status", lambda: status(copy))
    bench.step("open", device.open)


@scenario
def a_mapping_is_an_opener(bench: Bench) -> None:
    import mmap

    device = bench.device()
    with device.opened() as fd:
        bench.bind(fd, bench.image(8192, b"A"))
        memory = mmap.mmap(fd, 8192)
        ioctl(fd, uapi.LOOP_CLR_FD)
    bench.step("open while it is mapped", device.open)
    memory.close()
    bench.step("open when it is not", lambda: device.open() > 0)


@scenario
def autoclear(bench: Bench) -> None:
    image = bench.image(4096, b"A")
    with bench.bound(image) as (device, fd):
        setting = uapi.info64(flags=uapi.AUTOCLEAR)
        bench.step("set", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, setting))
        bench.step("flags", lambda: flags_of(fd))
        bench.step("clear it", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, uapi.info64()))
        bench.step("flags without", lambda: flags_of(fd))
        bench.step("set again", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, setting))
        with device.opened() as second:
            bench.step("second opener reads", lambda: os.pread(second, 512, 0))
        bench.step("one is left", lambda: flags_of(fd))
    with device.opened() as fd:
        bench.step("after the last close", lambda: status(fd))
        bench.step("size", lambda: size_of(fd))


@scenario
def autoclear_by_configure(bench: Bench) -> None:
    device = bench.device()
    backing = os.open(bench.image(), os.O_RDWR)
    with device.opened() as fd:
        data = uapi.config(backing, flags=uapi.AUTOCLEAR)
        bench.step("configure", lambda: ioctl(fd, uapi.LOOP_CONFIGURE, data))
        bench.step("flags", lambda: flags_of(fd))
    with device.opened() as fd:
        bench.step("after the last close", lambda: status(fd))
        bench.step("configure again", lambda: ioctl(fd, uapi.LOOP_CONFIGURE, data))
        bench.step("a read-only opener", lambda: os.close(device.open(os.O_RDONLY)))
        bench.step("still bound", lambda: flags_of(fd))


@scenario
def clear_read_only(bench: Bench) -> None:
    device = bench.device()
    with device.opened(os.O_RDONLY) as fd:
        bench.step("bind", lambda: bench.bind(fd, bench.image(), os.O_RDONLY))
        bench.step("read-only", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("clear", lambda: ioctl(fd, uapi.LOOP_CLR_FD))
    with device.opened() as fd:
        bench.step("read-only afterwards", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("bind to write", lambda: bench.bind(fd, bench.image()))
        bench.step("flags", lambda: flags_of(fd))


@scenario
def block_size_after_clear(bench: Bench) -> None:
    device = bench.device()
    backing = os.open(bench.image(), os.O_RDWR)
    with device.opened() as fd:
        ioctl(fd, uapi.LOOP_CONFIGURE, uapi.config(backing, block_size=4096, offset=4096))
        bench.step("block size", lambda: number_out(fd, uapi.BLKSSZGET, 4))
        ioctl(fd, uapi.LOOP_CLR_FD)
    with device.opened() as fd:
        bench.step("unbound", lambda: number_out(fd, uapi.BLKSSZGET, 4))
        bench.step("bind", lambda: ioctl(fd, uapi.LOOP_SET_FD, backing))
        bench.step("bound again", lambda: number_out(fd, uapi.BLKSSZGET, 4))
        bench.step("offset", lambda: status(fd)["offset"])
