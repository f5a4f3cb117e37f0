"""LOOP_SET_STATUS64, LOOP_GET_STATUS64 and their predecessors."""

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
    scenario,
    size_of,
    status,
)

STATUS = ("LOOP_SET_STATUS64", "LOOP_GET_STATUS64", "LOOP_SET_STATUS", "LOOP_GET_STATUS")


@scenario
def status_pointers(bench: Bench) -> None:
    with bench.bound() as (_, bound), bench.device().opened() as unbound:
        for name in STATUS:
            for what, fd in (("bound", bound), ("unbound", unbound)):
                for address in (0, NOWHERE, -4096, 1 << 62):
                    step = f"{name} at {address}, {what}"
                    cmd = getattr(uapi, name)
                    bench.step(step, lambda fd=fd, c=cmd, a=address: ioctl(fd, c, a))
        half = at_the_edge(uapi.info64(offset=512), 8)
        bench.step("set, half readable", lambda: ioctl(bound, uapi.LOOP_SET_STATUS64, half))
        bench.step("get, half writable", lambda: ioctl(bound, uapi.LOOP_GET_STATUS64, half))
        bench.step("offset is unchanged", lambda: status(bound)["offset"])
        bench.step("descriptor closed", lambda: ioctl(999, uapi.LOOP_GET_STATUS64, half))


CHANGES: dict[str, dict[str, int | bytes]] = {
    "nothing": {},
    "offset 512": {"offset": 512},
    "offset 100": {"offset": 100},
    "offset of the size": {"offset": 1 << 20},
    "offset past the end": {"offset": (1 << 20) + 512},
    "offset 2^63-1": {"offset": (1 << 63) - 1},
    "offset 2^63": {"offset": 1 << 63},
    "offset 2^64-1": {"offset": (1 << 64) - 1},
    "limit 512": {"sizelimit": 512},
    "limit 511": {"sizelimit": 511},
    "limit 1000": {"sizelimit": 1000},
    "limit past the end": {"sizelimit": 1 << 40},
    "limit 2^63-1": {"sizelimit": (1 << 63) - 1},
    "limit 2^63": {"sizelimit": 1 << 63},
    "both": {"offset": 4096, "sizelimit": 4096},
    "both past the end": {"offset": (1 << 20) - 512, "sizelimit": 4096},
    "encryption": {"encrypt_type": 1},
    "encryption of a module": {"encrypt_type": 18},
    "key size 32": {"encrypt_key_size": 32, "encrypt_key": b"k" * 32},
    "key size 33": {"encrypt_key_size": 33},
    "key without size": {"encrypt_key": b"secret"},
    "file name": {"file_name": b"/a/name"},
    "file name of 64": {"file_name": b"n" * 64},
    "file name of 63": {"file_name": b"n" * 63},
    "file name after NUL": {"file_name": b"a\0b"},
    "crypt name": {"crypt_name": b"aes"},
    "numbers": {"number": 77, "device": 5, "inode": 6, "rdevice": 7},
    "init": {"init0": 3, "init1": 4},
    **{f"flags {flags:#x}": {"flags": flags} for flags in (1, 2, 4, 0, 8, 0, 12, 16, 1 << 31)},
}


@scenario
def set_status64_fields(bench: Bench) -> None:
    with bench.bound() as (_, fd):
        for name, fields in CHANGES.items():
            _change(bench, name, fd, fields)


def _change(bench: Bench, name: str, fd: int, fields: dict[str, int | bytes]) -> None:
    def change() -> uapi.Info:
        ioctl(fd, uapi.LOOP_SET_STATUS64, uapi.info64(**fields))
        return _shown(fd)

    bench.step(name, change)
    bench.step(f"{name}: then", lambda: _shown(fd))


def _shown(fd: int) -> uapi.Info:
    return {key: value for key, value in status(fd).items() if key not in MACHINE} | {
        "size": size_of(fd)
    }


MACHINE = ("device", "inode", "rdevice", "number")


@scenario
def set_status_of_flags_in_turn(bench: Bench) -> None:
    with bench.bound(offset=512, sizelimit=4096, file_name=b"first") as (_, fd):
        bench.step("at first", lambda: _shown(fd))
        for flags in (4, 0, 8, 0, 1, 16, 4, 12, 8):
            info = uapi.info64(offset=512, sizelimit=4096, flags=flags)

            def change(info: bytes = info) -> object:
                ioctl(fd, uapi.LOOP_SET_STATUS64, info)
                return status(fd)["flags"]

            bench.step(f"{flags} after {bench.count()} others", change)


@scenario
def set_status_by_a_read_only_opener(bench: Bench) -> None:
    with bench.bound(openings=os.O_RDONLY) as (_, fd):
        info = uapi.info64(offset=4096)
        bench.step("set", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, info))
        bench.step("get", lambda: _shown(fd))


@scenario
def get_status_writes_no_more(bench: Bench) -> None:
    with bench.bound() as (_, fd):
        data = bench.step(
            "64", lambda: len(ioctl_out(fd, uapi.LOOP_GET_STATUS64, uapi.INFO64_SIZE))
        )
        bench.note("64: just the structure", data == uapi.INFO64_SIZE)
        bench.step("old", lambda: len(ioctl_out(fd, uapi.LOOP_GET_STATUS, uapi.OLD_INFO_SIZE)))


@scenario
def what_the_window_shows(bench: Bench) -> None:
    image = bench.image(8192, b"A")
    with open(image, "r+b") as file:
        file.seek(1024)
        file.write(b"B" * 512 + b"C" * 512)
    with bench.bound(image) as (_, fd):
        bench.step("all", lambda: os.pread(fd, 9000, 0))
        info = uapi.info64(offset=1024, sizelimit=1536)
        bench.step("set", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, info))
        bench.step("window", lambda: os.pread(fd, 9000, 0))
        bench.step("its end", lambda: os.lseek(fd, 0, os.SEEK_END))
        bench.step("write", lambda: os.pwrite(fd, b"D" * 1024, 0))
        bench.step("write over the end", lambda: os.pwrite(fd, b"E" * 1024, 1024))
        bench.step("write at the end", lambda: os.pwrite(fd, b"F" * 512, 1536))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", content(image))
        bench.step("set back", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, uapi.info64()))
        bench.step("all again", lambda: os.pread(fd, 9000, 0))


@scenario
def odd_offsets(bench: Bench) -> None:
    image = bench.image(8192, bytes(range(256)))
    with bench.bound(image, offset=100, sizelimit=1300) as (_, fd):
        bench.step("size", lambda: size_of(fd))
        bench.step("read", lambda: os.pread(fd, 40, 500).hex())
        bench.step("write", lambda: os.pwrite(fd, b"\xee" * 512, 512))
        bench.step("fsync", lambda: os.fsync(fd))
        bench.note("image", [content(image)[at : at + 2].hex() for at in (611, 612, 1123, 1124)])


@scenario
def set_status_of_a_busy_file(bench: Bench) -> None:
    """Without another offset or limit the size stays what it was."""
    image = bench.image(8192)
    with bench.bound(image) as (_, fd):
        os.truncate(image, 16384)
        bench.step("file has grown", lambda: size_of(fd))
        bench.step("same status", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, uapi.info64()))
        bench.step("size", lambda: size_of(fd))
        info = uapi.info64(sizelimit=1 << 20)
        bench.step("another limit", lambda: ioctl(fd, uapi.LOOP_SET_STATUS64, info))
        bench.step("then the size", lambda: size_of(fd))


OLD: dict[str, dict[str, int | bytes]] = {
    "nothing": {},
    "offset 512": {"offset": 512},
    "offset past the end": {"offset": (1 << 30) + 512},
    "offset -1": {"offset": -1},
    "offset -2^31": {"offset": -(1 << 31)},
    "encryption": {"encrypt_type": 1},
    "encryption -1": {"encrypt_type": -1},
    "key size": {"encrypt_key_size": 32, "encrypt_key": b"k" * 32},
    "key size -1": {"encrypt_key_size": -1},
    "name": {"name": b"old name"},
    "name of 64": {"name": b"o" * 64},
    "autoclear": {"flags": 4},
    "read-only": {"flags": 1},
    "flags -1": {"flags": -1},
    "numbers": {"number": 7, "device": 8, "inode": 9, "rdevice": 10},
    "init": {"init0": 5, "init1": 6},
    "reserved": {"reserved": b"abcd"},
}


@scenario
def old_status_fields(bench: Bench) -> None:
    with bench.bound(sizelimit=65536) as (device, fd):
        for name, fields in OLD.items():

            def change(fields: dict[str, int | bytes] = fields) -> uapi.Info:
                ioctl(fd, uapi.LOOP_SET_STATUS, uapi.old_info(**fields))
                data = ioctl_out(fd, uapi.LOOP_GET_STATUS, uapi.OLD_INFO_SIZE)
                info = uapi.unpack_old_info(data)
                info["number"] = info["number"] == device.number
                return {**info, "device": 0, "inode": 0, "size": size_of(fd)}

            bench.step(name, change)
            bench.step(f"{name}: in 64", lambda: _shown(fd))


@scenario
def old_status_of_new_values(bench: Bench) -> None:
    image = bench.image(1 << 40)
    for offset in ((1 << 31) - 512, 1 << 31, 1 << 32, 1 << 39):
        with bench.bound(image, offset=offset) as (_, fd):
            bench.step(
                str(offset),
                lambda fd=fd: uapi.unpack_old_info(
                    ioctl_out(fd, uapi.LOOP_GET_STATUS, uapi.OLD_INFO_SIZE)
                )["offset"],
            )
    with bench.bound(image, sizelimit=1 << 33) as (_, fd):
        bench.step("limit", lambda: len(ioctl_out(fd, uapi.LOOP_GET_STATUS, uapi.OLD_INFO_SIZE)))
