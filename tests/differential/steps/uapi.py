"""The kernel's numbers and structures, written down a second time: see the package."""

from __future__ import annotations

import platform
import struct

LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS = 0x4C02
LOOP_GET_STATUS = 0x4C03
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_CHANGE_FD = 0x4C06
LOOP_SET_CAPACITY = 0x4C07
LOOP_SET_DIRECT_IO = 0x4C08
LOOP_SET_BLOCK_SIZE = 0x4C09
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81
LOOP_CTL_GET_FREE = 0x4C82

READ_ONLY = 1
AUTOCLEAR = 4
PARTSCAN = 8
DIRECT_IO = 16

BLKROSET = 0x125D
BLKROGET = 0x125E
BLKRRPART = 0x125F
BLKGETSIZE = 0x1260
BLKFLSBUF = 0x1261
BLKPG = 0x1269
BLKPBSZGET = 0x127B
BLKDISCARD = 0x1277
BLKSECDISCARD = 0x127D
BLKZEROOUT = 0x127F
BLKSSZGET = 0x1268
BLKBSZGET = 0x80081270
BLKBSZSET = 0x40081271
BLKGETSIZE64 = 0x80081272
BLKGETDISKSEQ = 0x80081280
TCGETS = 0x5401

# fallocate(2)
KEEP_SIZE = 1
PUNCH_HOLE = 2
NO_HIDE_STALE = 4
COLLAPSE_RANGE = 8
ZERO_RANGE = 16
INSERT_RANGE = 32
UNSHARE_RANGE = 64

AT_EMPTY_PATH = 0x1000
O_LARGEFILE = 0o100000  # on x86-64 open(2) adds it, and F_GETFL shows it

_INFO64 = struct.Struct("=5Q4I64s64s32s2Q")
_OLD_INFO = struct.Struct(
    "=iIQIiiii64s32s4x2Q4s4x" if platform.machine() == "aarch64" else "=i4xQQQiiii64s32s2Q4s4x"
)
_BLANK64: dict[str, int | bytes] = {
    "device": 0,
    "inode": 0,
    "rdevice": 0,
    "offset": 0,
    "sizelimit": 0,
    "number": 0,
    "encrypt_type": 0,
    "encrypt_key_size": 0,
    "flags": 0,
    "file_name": b"",
    "crypt_name": b"",
    "encrypt_key": b"",
    "init0": 0,
    "init1": 0,
}
_BLANK_OLD: dict[str, int | bytes] = {
    "number": 0,
    "device": 0,
    "inode": 0,
    "rdevice": 0,
    "offset": 0,
    "encrypt_type": 0,
    "encrypt_key_size": 0,
    "flags": 0,
    "name": b"",
    "encrypt_key": b"",
    "init0": 0,
    "init1": 0,
    "reserved": b"",
}
INFO64_SIZE = _INFO64.size
OLD_INFO_SIZE = _OLD_INFO.size

Info = dict[str, int | bytes]


def info64(**fields: int | bytes) -> bytes:
    """struct loop_info64."""
    return _INFO64.pack(*(_BLANK64 | fields).values())


def unpack_info64(data: bytes) -> Info:
    return dict(zip(_BLANK64, _INFO64.unpack_from(data), strict=True))


def old_info(**fields: int | bytes) -> bytes:
    """struct loop_info of a 64-bit program."""
    return _OLD_INFO.pack(*(_BLANK_OLD | fields).values())


def unpack_old_info(data: bytes) -> Info:
    return dict(zip(_BLANK_OLD, _OLD_INFO.unpack_from(data), strict=True))


def config(fd: int, **fields: int | bytes) -> bytes:
    """struct loop_config; ``fields`` are ``block_size``, ``reserved``, and those of its info."""
    block_size, reserved = fields.pop("block_size", 0), fields.pop("reserved", 0)
    head = struct.pack("=II", fd & 0xFFFFFFFF, block_size)
    return head + info64(**fields) + struct.pack("=8Q", *[reserved] * 8)


def byte_range(start: int, length: int) -> bytes:
    """The argument of BLKDISCARD and BLKZEROOUT."""
    return struct.pack("=QQ", start, length)
