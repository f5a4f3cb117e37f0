"""Constants and system call numbers compared with those of the headers (golden.json)."""

from __future__ import annotations

import importlib
import pkgutil
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import loopfs.uapi
from loopfs.driver.block import HDIO_GETGEO
from loopfs.uapi import block, fuse, loop, mount, seccomp
from loopfs.uapi.syscalls import MACHINES, Abi, abis
from tests.uapi import golden

GOLDEN = golden.committed()
HEADERS = GOLDEN["x86_64"].numbers | GOLDEN["libc"].numbers

# Constants that no header of user space has. SECTOR_SIZE and SECTOR_SHIFT are in
# linux/blk_types.h and LOOP_CTRL_MINOR in linux/miscdevice.h, which are the kernel's own.
OURS = {
    "SECTOR_SIZE": 512,
    "SECTOR_SHIFT": 9,
    "LOOP_CTRL_MINOR": 237,
    "WORDS_APART": 4 << 16,  # sizeof(size_t) in an ioctl's number
    "LOOPFS_SUPER_MAGIC": 0x6C6F6F71,  # patch 2/8
    "LOOP_INFO64_SIZE": loop.LOOP_INFO64_SIZE,  # test_layouts.py
    "LOOP_CONFIG_SIZE": loop.LOOP_CONFIG_SIZE,
    "FUSE_KERNEL_MINOR_VERSION": fuse.FUSE_KERNEL_MINOR_VERSION,  # how much of it we use
    "FUSE_STATX": 52,  # Linux 6.6; the headers that this is compared with may be older
    "MS_NOT_NEW": mount.MS_NOT_NEW,  # below
    # sets of flags, which tests/faults/test_arguments.py tries on a kernel
    "MS_NOUSER_AND_ABOVE": mount.MS_NOUSER_AND_ABOVE,
    "UMOUNT_FLAGS": mount.UMOUNT_FLAGS,
    "FSPICK_FLAGS": mount.FSPICK_FLAGS,
    "ST_VALID": 0x20,  # linux/statfs.h
    "CAP_LAST_CAP_BIT": 63,  # bits that /proc/PID/status shows
}


def constants() -> Iterator[tuple[str, int]]:
    """What the modules of loopfs.uapi define by a line NAME = …"""
    for module in pkgutil.iter_modules(loopfs.uapi.__path__):
        loaded = importlib.import_module(f"loopfs.uapi.{module.name}")
        assert loaded.__file__ is not None
        for name in re.findall(r"^([A-Z]\w*) = ", Path(loaded.__file__).read_text(), re.M):
            value = getattr(loaded, name)
            if isinstance(value, int):
                yield name, value


def test_constants() -> None:
    found = dict(constants())
    known = HEADERS | OURS
    assert len(found) > 200
    assert found.keys() - known.keys() == set(), "add it to structures.c, run tests.uapi.golden"
    assert found == {name: known[name] for name in found}
    assert found.keys() >= OURS.keys()


def test_geometry_ioctl() -> None:
    assert HEADERS["HDIO_GETGEO"] == HDIO_GETGEO


def test_arguments_of_a_filtered_call() -> None:
    assert seccomp.data_arg(0) == HEADERS["DATA_ARG_0"]
    assert seccomp.data_arg(5) == HEADERS["DATA_ARG_5"]


def test_not_new_is_what_mount_does_to_existing_mounts() -> None:
    names = ("REMOUNT", "BIND", "MOVE", "UNBINDABLE", "PRIVATE", "SLAVE", "SHARED")
    assert sum(HEADERS[f"MS_{name}"] for name in names) == mount.MS_NOT_NEW


@pytest.mark.parametrize(
    ("cmd", "size"),
    [
        (block.BLKGETSIZE64, 8),
        (block.BLKBSZSET, 8),
        (seccomp.SECCOMP_IOCTL_NOTIF_RECV, 80),
        (loop.LOOP_SET_STATUS64, 0),
        (block.BLKDISCARD, 0),
    ],
)
def test_size_that_an_ioctl_carries(cmd: int, size: int) -> None:
    assert block.ioc_size(cmd) == size


# --- syscalls --------------------------------------------------------------------

NAMES = {"x86_64": ("x86_64", "i386"), "aarch64": ("aarch64", "arm")}


def named_abis() -> Iterator[tuple[str, Abi]]:
    for machine, tables in MACHINES.items():
        yield from zip(NAMES[machine], tables, strict=True)


@pytest.mark.parametrize(("name", "abi"), list(named_abis()))
def test_syscall_numbers(name: str, abi: Abi) -> None:
    theirs = GOLDEN[name].numbers
    assert abi.numbers == {call: theirs[f"__NR_{call}"] for call in abi.numbers}
    # Where one is not in our table, the architecture has none.
    lacking = {n.removeprefix("__NR_") for n in theirs if n.startswith("__NR_")} - set(abi.numbers)
    assert lacking == set()
    assert abi.word == (8 if name in ("x86_64", "aarch64") else 4)
    assert abi.arch == HEADERS[f"AUDIT_ARCH_{name.upper()}"]


def test_the_native_table_comes_first() -> None:
    assert [abi.word for abi in abis("x86_64")] == [8, 4]
    assert abis() == abis(platform.machine())
    with pytest.raises(KeyError):
        abis("pdp11")
