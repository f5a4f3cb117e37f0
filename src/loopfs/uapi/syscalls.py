"""System call numbers, a table for each architecture (asm/unistd.h)."""

from __future__ import annotations

import os

from loopfs.lean import NamedTuple
from loopfs.uapi.seccomp import (
    AUDIT_ARCH_AARCH64,
    AUDIT_ARCH_ARM,
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
)


class Abi(NamedTuple):
    """A system call table: its audit architecture, its word size in bytes, its numbers."""

    arch: int
    word: int
    numbers: dict[str, int]


# These are the same on all architectures since Linux 5.0.
_COMMON = {
    "open_tree": 428,
    "io_uring_setup": 425,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_restrict_self": 446,
}

X86_64 = Abi(
    AUDIT_ARCH_X86_64,
    8,
    _COMMON
    | {
        "mknod": 133,
        "mknodat": 259,
        "read": 0,
        "open": 2,
        "fstat": 5,
        "ioctl": 16,
        "readv": 19,
        "fsync": 74,
        "fdatasync": 75,
        "creat": 85,
        "setresuid": 117,
        "setresgid": 119,
        "statfs": 137,
        "fstatfs": 138,
        "sync": 162,
        "mount": 165,
        "umount2": 166,
        "socket": 41,
        "futex": 202,
        "io_submit": 209,
        "openat": 257,
        "newfstatat": 262,
        "unshare": 272,
        "syncfs": 306,
        "setns": 308,
        "seccomp": 317,
        "statx": 332,
    },
)
I386 = Abi(
    AUDIT_ARCH_I386,
    4,
    _COMMON
    | {
        "mknod": 14,
        "mknodat": 297,
        "open": 5,
        "creat": 8,
        "mount": 21,
        "umount": 22,
        "sync": 36,
        "umount2": 52,
        "ioctl": 54,
        "fsync": 118,
        "fdatasync": 148,
        "io_submit": 248,
        "socket": 359,
        "openat": 295,
        "fstat64": 197,
        "fstatat64": 300,
        "syncfs": 344,
        "statx": 383,
    },
)
AARCH64 = Abi(
    AUDIT_ARCH_AARCH64,
    8,
    _COMMON
    | {
        "mknodat": 33,
        "io_submit": 2,
        "ioctl": 29,
        "umount2": 39,
        "mount": 40,
        "statfs": 43,
        "fstatfs": 44,
        "openat": 56,
        "read": 63,
        "readv": 65,
        "newfstatat": 79,
        "fstat": 80,
        "sync": 81,
        "fsync": 82,
        "fdatasync": 83,
        "unshare": 97,
        "futex": 98,
        "setresuid": 147,
        "setresgid": 149,
        "syncfs": 267,
        "socket": 198,
        "setns": 268,
        "seccomp": 277,
        "statx": 291,
    },
)
ARM = Abi(
    AUDIT_ARCH_ARM,
    4,
    _COMMON
    | {
        "mknod": 14,
        "mknodat": 324,
        "open": 5,
        "creat": 8,
        "mount": 21,
        "sync": 36,
        "umount2": 52,
        "ioctl": 54,
        "fsync": 118,
        "fdatasync": 148,
        "fstat64": 197,
        "io_submit": 246,
        "socket": 281,
        "openat": 322,
        "fstatat64": 327,
        "syncfs": 373,
        "statx": 397,
    },
)

# The native ABI of each machine first, then other ABIs that it can run.
MACHINES: dict[str, tuple[Abi, ...]] = {
    "x86_64": (X86_64, I386),
    "aarch64": (AARCH64, ARM),
}


def abis(machine: str | None = None) -> tuple[Abi, ...]:
    """Return the system call tables of a machine, the native one first.

    Args:
        machine: the output of uname -m; default: this machine.
    Raises:
        KeyError: there is no table for the machine.
    """
    return MACHINES[machine or os.uname().machine]
