"""Bytes and numbers of the kernel's headers: as committed, and as compiled.

``python -m tests.uapi.golden`` writes golden.json anew from the headers of an x86-64 machine.
"""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("structures.c")
COMMITTED = Path(__file__).with_name("golden.json")

# How gcc for x86-64 makes an object in the layout of each ABI: see structures.c.
HEADERS = ["-ffreestanding", "-idirafter", "/usr/include/x86_64-linux-gnu"]
VARIANTS = {
    "x86_64": HEADERS,
    "i386": [*HEADERS, "-m32"],
    "aarch64": [*HEADERS, "-DGENERIC"],
    "arm": [*HEADERS, "-m32", "-malign-double", "-DALIGNED"],
    "libc": ["-DLIBC"],
}

# What the headers of Debian 12 do not have: arm's numbers (arch/arm/tools/syscall.tbl), and
# constants of Linux 6.6 and later.
NOT_IN_HEADERS = {
    "arm": {
        "__NR_open": 5,
        "__NR_creat": 8,
        "__NR_mknod": 14,
        "__NR_mknodat": 324,
        "__NR_mount": 21,
        "__NR_sync": 36,
        "__NR_umount2": 52,
        "__NR_ioctl": 54,
        "__NR_fsync": 118,
        "__NR_io_submit": 246,
        "__NR_socket": 281,
        "__NR_io_uring_setup": 425,
        "__NR_fdatasync": 148,
        "__NR_fstat64": 197,
        "__NR_openat": 322,
        "__NR_fstatat64": 327,
        "__NR_syncfs": 373,
        "__NR_statx": 397,
        "__NR_open_tree": 428,
        "__NR_move_mount": 429,
        "__NR_openat2": 437,
        "__NR_pidfd_getfd": 438,
        "__NR_mount_setattr": 442,
        "__NR_landlock_create_ruleset": 444,
        "__NR_landlock_restrict_self": 446,
        "__NR_fsopen": 430,
        "__NR_fsconfig": 431,
        "__NR_fsmount": 432,
        "__NR_fspick": 433,
    },
    "x86_64": {
        "FUSE_COPY_FILE_RANGE_64": 53,
        "BLKCRYPTOIMPORTKEY": 0xC0401289,
        "BLKCRYPTOGENERATEKEY": 0xC030128A,
        "BLKCRYPTOPREPAREKEY": 0xC040128B,
        "SECCOMP_IOCTL_NOTIF_SET_FLAGS": 0x40082104,
        "SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP": 1,
        "FSCONFIG_CMD_CREATE_EXCL": 8,
        "PIDFD_THREAD": 0o200,
        "NS_GET_MNTNS_ID": 0x8008B705,
        "LANDLOCK_SCOPE_SIGNAL": 2,
    },
}

# Cross compilers, by the ABI whose bytes theirs must be; they bring the headers of their machine.
CROSS = {"aarch64": "aarch64-linux-gnu-", "arm": "arm-linux-gnueabihf-"}

_NUMBER = struct.Struct("=56sq")
_STRUCTURE = struct.Struct("=60sI448s")


class Variant(NamedTuple):
    """What the headers say for one ABI; ``structures`` are bytes in hexadecimal."""

    numbers: dict[str, int]
    structures: dict[str, str]

    def structure(self, name: str) -> bytes:
        return bytes.fromhex(self.structures[name])


def committed() -> dict[str, Variant]:
    """golden.json."""
    data = json.loads(COMMITTED.read_text())
    return {name: Variant(**parts) for name, parts in data.items()}


def compiled(directory: Path) -> dict[str, Variant]:
    """What the headers of this machine, an x86-64, make of structures.c.

    Args:
        directory: where to put objects.
    Raises:
        subprocess.CalledProcessError: the compiler's refusal.
    """
    return {name: _compile(name, flags, directory) for name, flags in VARIANTS.items()}


def cross_compiled(name: str, directory: Path) -> Variant:
    """What a cross compiler makes of structures.c: as :func:`compiled`.

    Args:
        name: one of CROSS.
    """
    return _compile(name, ["-ffreestanding"], directory, CROSS[name])


def _compile(name: str, flags: list[str], directory: Path, prefix: str = "") -> Variant:
    made = directory / f"{name}.o"
    # The repeated bytes are cut to a field's width.
    quiet = ["-w", "-Wno-overflow"]
    subprocess.run([f"{prefix}gcc", *flags, *quiet, "-c", "-o", made, SOURCE], check=True)

    def section(name: str) -> bytes:
        return _section(made, name, f"{prefix}objcopy")

    numbers = {_text(name): value for name, value in _NUMBER.iter_unpack(section("numbers"))}
    structures = {
        _text(name): content[:size].hex()
        for name, size, content in _STRUCTURE.iter_unpack(section("structures"))
    }
    return Variant(numbers, structures)


def _section(made: Path, name: str, objcopy: str) -> bytes:
    raw = made.with_suffix(f".{name}")
    subprocess.run([objcopy, "-O", "binary", "-j", name, made, raw], check=True)
    return raw.read_bytes() if raw.exists() else b""


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode()


def write() -> None:
    """Write golden.json."""
    with tempfile.TemporaryDirectory() as directory:
        variants = compiled(Path(directory))
    for name, numbers in NOT_IN_HEADERS.items():
        variants[name].numbers.update(numbers)
    data = {name: variant._asdict() for name, variant in variants.items()}
    COMMITTED.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write()
