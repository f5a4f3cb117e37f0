"""LOOP_SET_FD and LOOP_CONFIGURE: files that can be bound, and arguments."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from . import uapi
from .bench import (
    NOWHERE,
    Bench,
    Device,
    at_the_edge,
    content,
    flags_of,
    ioctl,
    number_out,
    plain,
    scenario,
    size_of,
    status,
)


def _files(bench: Bench) -> Iterator[tuple[str, int]]:
    """Descriptors of every kind, by what they are."""
    image = bench.image(4096)
    fifo = bench.path()
    os.mkfifo(fifo)
    yield "image read-write", os.open(image, os.O_RDWR)
    yield "image read-only", os.open(image, os.O_RDONLY)
    yield "image write-only", os.open(image, os.O_WRONLY)
    yield "image O_APPEND", os.open(image, os.O_RDWR | os.O_APPEND)
    yield "image O_DIRECT", os.open(image, os.O_RDWR | os.O_DIRECT)
    yield "image O_SYNC", os.open(image, os.O_RDWR | os.O_SYNC)
    yield "image O_PATH", os.open(image, os.O_PATH)
    yield "directory", os.open(bench.directory, os.O_RDONLY)
    yield "directory O_PATH", os.open(bench.directory, os.O_PATH)
    yield "fifo", os.open(fifo, os.O_RDWR)
    reading, writing = os.pipe()
    yield "pipe, its reading end", reading
    yield "pipe, its writing end", writing
    yield "socket", socket.socket(socket.AF_UNIX).detach()
    yield "/dev/null", os.open("/dev/null", os.O_RDWR)
    yield "/dev/zero", os.open("/dev/zero", os.O_RDWR)
    yield "/dev/urandom", os.open("/dev/urandom", os.O_RDONLY)
    yield "/proc file", os.open("/proc/self/status", os.O_RDONLY)
    yield "eventfd", os.eventfd(0)
    memory = os.memfd_create("image")
    os.truncate(memory, 4096)
    yield "memfd", memory
    yield "unbound loop device", bench.device().open()


def _try_binding(bench: Bench, what: str, fd: int, *, configure: bool) -> None:
    with Device.opened(bench.device()) as device:

        def bind() -> dict[str, object]:
            if configure:
                ioctl(device, uapi.LOOP_CONFIGURE, uapi.config(fd))
            else:
                ioctl(device, uapi.LOOP_SET_FD, fd)
            info = status(device)
            return {"flags": info["flags"], "size": size_of(device)}

        bench.step(what, bind)


@scenario
def set_fd_of_every_kind_of_file(bench: Bench) -> None:
    for what, fd in _files(bench):
        _try_binding(bench, what, fd, configure=False)


@scenario
def configure_of_every_kind_of_file(bench: Bench) -> None:
    for what, fd in _files(bench):
        _try_binding(bench, what, fd, configure=True)


@scenario
def control_node_as_image(bench: Bench) -> None:
    _try_binding(bench, "loop-control", bench.control, configure=False)


@scenario
def set_fd_arguments(bench: Bench) -> None:
    with bench.device().opened() as device:
        for number in (999, -1, -100, 1 << 31, NOWHERE << 40, device):
            what = "the device itself" if number == device else str(number)
            bench.step(what, lambda number=number: ioctl(device, uapi.LOOP_SET_FD, number))
        image = os.open(bench.image(), os.O_RDWR)
        # The descriptor is an unsigned int in an unsigned long.
        bench.step("high half set", lambda: ioctl(device, uapi.LOOP_SET_FD, image | 1 << 40))
        bench.step("then the size is", lambda: size_of(device))


@scenario
def bind_twice(bench: Bench) -> None:
    image, other = bench.image(4096), bench.image(8192)
    device = bench.device()
    with device.opened() as first, device.opened() as second:
        bench.step("set_fd", lambda: bench.bind(first, image))
        bench.step("same opener again", lambda: bench.bind(first, other))
        bench.step("another opener", lambda: bench.bind(second, other))
        fd = os.open(other, os.O_RDWR)
        bench.step("configure", lambda: ioctl(second, uapi.LOOP_CONFIGURE, uapi.config(fd)))
        bench.step("a bad descriptor", lambda: ioctl(second, uapi.LOOP_SET_FD, 999))
        bench.step("a directory", lambda: bench.bind(second, bench.directory, os.O_RDONLY))
        bench.step("itself", lambda: bench.bind(second, device.path))
        bench.step("size", lambda: size_of(first))


@scenario
def one_image_on_two_devices(bench: Bench) -> None:
    image = bench.image(4096)
    with bench.device().opened() as first, bench.device().opened() as second:
        bench.step("first", lambda: bench.bind(first, image))
        bench.step("second", lambda: bench.bind(second, image))
        bench.note("same inode", status(first)["inode"] == status(second)["inode"])


@scenario
def opener_decides_read_only(bench: Bench) -> None:
    image = bench.image(4096)
    for opener in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY):
        for backing in (os.O_RDONLY, os.O_RDWR):
            name = f"device {opener}, image {backing}"
            device = bench.device()
            with device.opened(opener) as fd:
                bench.step(f"{name}: bind", lambda fd=fd, b=backing: bench.bind(fd, image, b))
                bench.step(f"{name}: flags", lambda fd=fd: flags_of(fd))
                bench.step(f"{name}: open to write", lambda d=device: d.open() > 0)


@scenario
def image_sizes(bench: Bench) -> None:
    for size in (0, 1, 511, 512, 513, 1000, 1024, 4095, 4097, 1 << 40):
        with bench.device().opened() as fd:
            image = bench.image(size)
            bench.step(f"{size}: bind", lambda fd=fd, image=image: bench.bind(fd, image))
            bench.step(f"{size}: BLKGETSIZE64", lambda fd=fd: size_of(fd))
            bench.step(f"{size}: end", lambda fd=fd: os.lseek(fd, 0, os.SEEK_END))
            bench.step(f"{size}: read", lambda fd=fd: os.pread(fd, 8192, 0))
            bench.step(f"{size}: write", lambda fd=fd: os.pwrite(fd, b"x" * 600, 0))


@scenario
def configure_arguments(bench: Bench) -> None:
    image = os.open(bench.image(), os.O_RDWR)
    with bench.device().opened() as device:
        for address in (0, NOWHERE, -4096):
            bench.step(f"at {address}", lambda a=address: ioctl(device, uapi.LOOP_CONFIGURE, a))
        half = at_the_edge(uapi.config(image), 8)
        bench.step("half of it readable", lambda: ioctl(device, uapi.LOOP_CONFIGURE, half))
        bench.step("then the size is", lambda: size_of(device))
        bench.step("bad descriptor", lambda: ioctl(device, uapi.LOOP_CONFIGURE, uapi.config(999)))
        bench.step("no descriptor", lambda: ioctl(device, uapi.LOOP_CONFIGURE, uapi.config(-1)))
    cases: dict[str, dict[str, int | bytes]] = {
        **{f"block size {size}": {"block_size": size} for size in BLOCK_SIZES},
        **{f"flags {flags:#x}": {"flags": flags} for flags in FLAGS},
        "reserved": {"reserved": 7},
        "offset 512": {"offset": 512},
        "offset 100": {"offset": 100},
        "offset of the size": {"offset": 1 << 20},
        "offset past the end": {"offset": 1 << 30},
        "offset 2^63-1": {"offset": (1 << 63) - 1},
        "offset negative": {"offset": 1 << 63},
        "limit 1000": {"sizelimit": 1000},
        "limit 100": {"sizelimit": 100},
        "limit past the end": {"sizelimit": 1 << 30},
        "limit negative": {"sizelimit": 1 << 63},
        "offset and limit": {"offset": 4096, "sizelimit": 8192},
        "offset and limit past the end": {"offset": (1 << 20) - 512, "sizelimit": 8192},
        "encryption": {"encrypt_type": 1},
        "encryption 18": {"encrypt_type": 18},
        "key size 32": {"encrypt_key_size": 32, "encrypt_key": b"k" * 32},
        "key size 33": {"encrypt_key_size": 33},
        "names": {"file_name": b"n" * 64, "crypt_name": b"c" * 64},
        "name with more after NUL": {"file_name": b"abc\0def"},
        "numbers": {"number": 77, "device": 5, "inode": 6, "rdevice": 7},
        "init": {"init0": 3, "init1": 4},
    }
    for name, fields in cases.items():
        _try_configuration(bench, name, image, fields)


BLOCK_SIZES = (1, 256, 512, 513, 1024, 2048, 3072, 4096, 8192, 65536, 1 << 31)
FLAGS = (1, 2, 4, 8, 16, 5, 32, 64, 1 << 31)


def _try_configuration(bench: Bench, name: str, image: int, fields: dict[str, int | bytes]) -> None:
    device = bench.device()
    with device.opened() as fd:

        def configure() -> dict[str, object]:
            data = uapi.config(image, **fields)
            ioctl(fd, uapi.LOOP_CONFIGURE, data)
            return shown(fd, device)

        bench.step(name, configure)


def shown(fd: int, device: Device) -> dict[str, object]:
    """What a bound device says of itself, with nothing that depends on the machine."""
    info = status(fd)
    for field in ("device", "inode", "rdevice"):
        info[field] = min(int(info[field]), 1)
    info["number"] = info["number"] == device.number
    block = number_out(fd, uapi.BLKSSZGET, 4)
    return {**info, "size": size_of(fd), "block": block}


@scenario
def identity_of_the_image(bench: Bench) -> None:
    image = bench.image()
    with bench.bound(image) as (device, fd):
        info, st = status(fd), os.stat(image)
        bench.note("inode", info["inode"] == st.st_ino)
        bench.note("device", info["device"] == st.st_dev)
        bench.note("rdevice", info["rdevice"])
        bench.note("number", info["number"] == device.number)


@scenario
def loop_on_loop(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    upper_device = bench.device()
    with bench.bound(image) as (lower_device, lower), upper_device.opened() as upper:
        bench.step("bind", lambda: bench.bind(upper, lower_device.path))
        bench.step("size", lambda: size_of(upper))
        bench.note("rdevice", status(upper)["rdevice"] == os.stat(lower_device.path).st_rdev)
        bench.step("read", lambda: os.pread(upper, 8192, 0))
        bench.step("write", lambda: os.pwrite(upper, b"B" * 4096, 4096))
        bench.step("fsync", lambda: os.fsync(upper))
        bench.step("lower reads", lambda: os.pread(lower, 8192, 0))
        bench.step("fsync of the lower", lambda: os.fsync(lower))
        bench.note("image", plain(content(image)))
        bench.step("lower on the upper", lambda: bench.bind(lower, upper_device.path))
        bench.step("clear the lower", lambda: ioctl(lower, uapi.LOOP_CLR_FD))
        bench.step("lower's flags", lambda: flags_of(lower))
        bench.step("upper still reads", lambda: os.pread(upper, 512, 0))
        bench.step("clear the upper", lambda: ioctl(upper, uapi.LOOP_CLR_FD))


@scenario
def three_loops(bench: Bench) -> None:
    devices = [bench.device() for _ in range(3)]
    fds = [device.open() for device in devices]
    bench.step("first", lambda: bench.bind(fds[0], bench.image()))
    bench.step("second", lambda: bench.bind(fds[1], devices[0].path))
    bench.step("third", lambda: bench.bind(fds[2], devices[1].path))
    bench.step("size", lambda: size_of(fds[2]))
    bench.step("first on the third", lambda: bench.bind(fds[0], devices[2].path))
