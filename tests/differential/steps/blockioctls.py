"""The ioctls of block devices, and unknown ones."""

from __future__ import annotations

import os

from . import uapi
from .bench import (
    NOWHERE,
    Bench,
    at_the_edge,
    content,
    ioctl,
    ioctl_out,
    number_out,
    scenario,
    size_of,
)

END = 1 << 20
# The commands that store a number, and its bytes.
GETTERS = {
    "BLKROGET": (uapi.BLKROGET, 4),
    "BLKGETSIZE": (uapi.BLKGETSIZE, 8),
    "BLKGETSIZE64": (uapi.BLKGETSIZE64, 8),
    "BLKSSZGET": (uapi.BLKSSZGET, 4),
    "BLKBSZGET": (uapi.BLKBSZGET, 4),
    "BLKPBSZGET": (0x127B, 4),
    "BLKIOMIN": (0x1278, 4),
    "BLKIOOPT": (0x1279, 4),
    "BLKALIGNOFF": (0x127A, 4),
    "BLKDISCARDZEROES": (0x127C, 4),
    "BLKROTATIONAL": (0x127E, 2),
    "BLKSECTGET": (0x1267, 2),
    "BLKRAGET": (0x1263, 8),
    "BLKFRAGET": (0x1265, 8),
    "BLKGETZONESZ": (0x80041284, 4),
    "BLKGETNRZONES": (0x80041285, 4),
}
# What a bound device takes over from the disk below its file, and so differs by machine.
FROM_THE_DISK = {"BLKROTATIONAL", "BLKRAGET", "BLKFRAGET"}
OTHERS = {
    "BLKRRPART": 0x125F,
    "BLKPG": 0x1269,
    "BLKTRACESETUP": 0xC0481273,
    "BLKTRACESTART": 0x1274,
    "BLKTRACETEARDOWN": 0x1276,
    "BLKSECDISCARD": uapi.BLKSECDISCARD,
    "BLKREPORTZONE": 0xC0101282,
    "BLKRESETZONE": 0x40101283,
    "HDIO_GETGEO": 0x0301,
    "HDIO_GET_IDENTITY": 0x030D,
    "CDROM_GET_CAPABILITY": 0x5331,
    "CDROMEJECT": 0x5309,
    "SG_IO": 0x2285,
    "SG_GET_VERSION_NUM": 0x2282,
    "SCSI_IOCTL_GET_IDLUN": 0x5382,
    "TCGETS": uapi.TCGETS,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIBMAP": 1,
    "FIGETBSZ": 2,
    "FIOQSIZE": 0x5460,
    "FS_IOC_GETFLAGS": 0x80086601,
    "FS_IOC_FIEMAP": 0xC020660B,
    "FS_IOC_FSGETXATTR": 0x801C581F,
    "FITRIM": 0xC0185879,
    "BLKGETLASTSECT": 0x126B,
    "loop 0x4c0b": 0x4C0B,
    "loop 0x4cff": 0x4CFF,
    "LOOP_CTL_ADD": uapi.LOOP_CTL_ADD,
    "LOOP_CTL_GET_FREE": uapi.LOOP_CTL_GET_FREE,
    "nothing": 0,
    "all ones": 0xFFFFFFFF,
    "_IOR('x', 1, 4)": 0x80047801,
    "_IOW('x', 1, 64)": 0x40407801,
}


@scenario
def values(bench: Bench) -> None:
    with bench.bound() as (_, bound), bench.device().opened() as unbound:
        for name, (cmd, size) in GETTERS.items():
            if name not in FROM_THE_DISK:
                bench.step(f"{name}", lambda c=cmd, s=size: ioctl_out(bound, c, s).hex())
            bench.step(f"{name}, unbound", lambda c=cmd, s=size: ioctl_out(unbound, c, s).hex())
            bench.step(f"{name}, NULL", lambda c=cmd: ioctl(bound, c, 0))
            bench.step(f"{name}, to nowhere", lambda c=cmd: ioctl(bound, c, NOWHERE))


@scenario
def commands_without_a_meaning(bench: Bench) -> None:
    with bench.bound() as (_, bound), bench.device().opened() as unbound:
        for name, cmd in OTHERS.items():
            bench.step(f"{name}", lambda c=cmd: ioctl(bound, c, bytes(256)))
            bench.step(f"{name}, unbound", lambda c=cmd: ioctl(unbound, c, bytes(256)))
            bench.step(f"{name}, NULL", lambda c=cmd: ioctl(bound, c, 0))
        for name, cmd in (("FIOCLEX", 0x5451), ("FIONCLEX", 0x5450)):
            bench.step(name, lambda c=cmd: ioctl(bound, c, 0))
        for value in (0, 1):
            word = value.to_bytes(4, "little")
            bench.step(f"FIONBIO {value}", lambda w=word: ioctl(bound, 0x5421, w))
            bench.step(f"FIOASYNC {value}", lambda w=word: ioctl(bound, 0x5452, w))


@scenario
def block_sizes(bench: Bench) -> None:
    with bench.bound() as (device, fd), device.opened(os.O_RDONLY) as reader:
        for size in (512, 1024, 2048, 4096, 256, 0, 513, -1, 8192, 65536, 131072):
            word = (size & 0xFFFFFFFF).to_bytes(4, "little")
            bench.step(f"set {size}", lambda w=word: ioctl(fd, uapi.BLKBSZSET, w))
            bench.step(f"after {size}", lambda: number_out(fd, uapi.BLKBSZGET, 4))
        bench.step("by a reader", lambda: ioctl(reader, uapi.BLKBSZSET, b"\0\x02\0\0"))
        bench.step("NULL", lambda: ioctl(fd, uapi.BLKBSZSET, 0))
        bench.step("from nowhere", lambda: ioctl(fd, uapi.BLKBSZSET, NOWHERE))
    with device.opened() as fd:
        bench.step("for a later opener", lambda: number_out(fd, uapi.BLKBSZGET, 4))


@scenario
def block_size_by_size(bench: Bench) -> None:
    """What BLKBSZGET says depends on what the device's size is a multiple of."""
    for size in (512, 1024, 1536, 2048, 4096, 4608, 1 << 20, (1 << 20) + 512, (1 << 20) + 1024):
        with bench.bound(bench.image(size)) as (device, fd):
            bench.step(f"{size}", lambda fd=fd: number_out(fd, uapi.BLKBSZGET, 4))
            bench.step(f"{size}: st_blksize", lambda fd=fd: os.fstat(fd).st_blksize)
            bench.step(f"{size}: node's", lambda d=device: os.stat(d.path).st_blksize)


@scenario
def read_only_flag(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image) as (device, fd):
        one, zero = b"\1\0\0\0", b"\0\0\0\0"
        bench.step("set", lambda: ioctl(fd, uapi.BLKROSET, one))
        bench.step("get", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("write", lambda: os.pwrite(fd, b"x" * 512, 0))
        bench.step("fallocate", lambda: ioctl(fd, uapi.BLKDISCARD, uapi.byte_range(0, 4096)))
        bench.step("open to write", lambda: os.close(device.open()))
        bench.step("status", lambda: size_of(fd))
        bench.step("unset", lambda: ioctl(fd, uapi.BLKROSET, zero))
        bench.step("write again", lambda: os.pwrite(fd, b"x" * 512, 0))
        bench.step("NULL", lambda: ioctl(fd, uapi.BLKROSET, 0))
        with device.opened(os.O_RDONLY) as reader:
            bench.step("by a reader", lambda: ioctl(reader, uapi.BLKROSET, zero))


@scenario
def read_only_device(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image, flags=uapi.READ_ONLY, openings=os.O_RDONLY) as (_device, fd):
        bench.step("BLKROGET", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("clear the flag", lambda: ioctl(fd, uapi.BLKROSET, b"\0\0\0\0"))
        bench.step("BLKROGET after it", lambda: number_out(fd, uapi.BLKROGET, 4))
        bench.step("discard", lambda: ioctl(fd, uapi.BLKDISCARD, uapi.byte_range(0, 4096)))
        bench.step("flush", lambda: ioctl(fd, uapi.BLKFLSBUF, 0))
        bench.step("fsync", lambda: os.fsync(fd))


@scenario
def flush_buffers(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image) as (device, fd), device.opened(os.O_RDONLY) as reader:
        bench.step("write", lambda: os.pwrite(fd, b"B" * 4096, 0))
        bench.step("flush", lambda: ioctl(fd, uapi.BLKFLSBUF, 0))
        bench.step("by a reader", lambda: ioctl(reader, uapi.BLKFLSBUF, 0))
        bench.note("image", content(image))
        with open(image, "r+b") as file:
            file.write(b"C" * 4096)
        bench.step("flush after the image has changed", lambda: ioctl(fd, uapi.BLKFLSBUF, 0))
        bench.step("is seen", lambda: os.pread(reader, 8192, 0))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: ioctl(fd, uapi.BLKFLSBUF, 0))


RANGES = (
    *((0, 4096), (4096, 512), (512, 1536), (100, 512), (512, 100), (0, 0), (4096, 0)),
    *((END - 4096, 4096), (END - 4096, 8192), (END, 512), (0, END), (0, END + 512)),
    *(((1 << 64) - 512, 1024), ((1 << 64) - 512, 512), (1 << 63, 512), (512, (1 << 64) - 512)),
)


@scenario
def discard_and_zero_out(bench: Bench) -> None:
    image = bench.image(END, b"A")
    with bench.bound(image) as (device, fd), device.opened(os.O_RDONLY) as reader:
        for name, cmd in (("BLKDISCARD", uapi.BLKDISCARD), ("BLKZEROOUT", uapi.BLKZEROOUT)):
            for rng in RANGES:
                step = f"{name} {rng[0]} {rng[1]}"
                bench.step(step, lambda c=cmd, r=rng: ioctl(fd, c, uapi.byte_range(*r)))
                os.fsync(fd)
                bench.note(f"{step}: image", content(image))
                bench.note(f"{step}: seen", os.pread(fd, END, 0) == content(image))
                os.pwrite(fd, b"A" * END, 0)
                os.fsync(fd)
            good = uapi.byte_range(0, 4096)
            bench.step(f"{name} by a reader", lambda c=cmd, g=good: ioctl(reader, c, g))
            bench.step(f"{name} NULL", lambda c=cmd: ioctl(fd, c, 0))
            bench.step(f"{name} from nowhere", lambda c=cmd: ioctl(fd, c, NOWHERE))
            half = at_the_edge(good, 8)
            bench.step(f"{name} half readable", lambda c=cmd, h=half: ioctl(fd, c, h))
    with bench.device().opened() as fd:
        bench.step("unbound", lambda: ioctl(fd, uapi.BLKDISCARD, uapi.byte_range(0, 4096)))


@scenario
def read_ahead(bench: Bench) -> None:
    with bench.bound() as (_, fd):
        for name, setter, getter in (("RA", 0x1262, 0x1263), ("FRA", 0x1264, 0x1265)):
            for value in (0, 8, 1024):
                bench.step(f"BLK{name}SET {value}", lambda s=setter, v=value: ioctl(fd, s, v))
                step = f"BLK{name}GET after {value}"
                bench.step(step, lambda g=getter: number_out(fd, g, 8))


@scenario
def disk_sequence_numbers(bench: Bench) -> None:
    device = bench.device()
    with device.opened() as fd, bench.device().opened() as later:
        numbers = [_diskseq(fd), _diskseq(later)]
        bench.note("later is higher", numbers[1] > numbers[0])
        bench.bind(fd, bench.image())
        bench.note("higher when bound", _diskseq(fd) > numbers[1])
        bound = _diskseq(fd)
        info = uapi.info64(offset=512)
        ioctl(fd, uapi.LOOP_SET_STATUS64, info)
        bench.note("same with another offset", _diskseq(fd) == bound)
        ioctl(fd, uapi.LOOP_CLR_FD)
    with device.opened() as fd:
        bench.note("higher when unbound", _diskseq(fd) > bound)


def _diskseq(fd: int) -> int:
    return number_out(fd, uapi.BLKGETDISKSEQ, 8)
