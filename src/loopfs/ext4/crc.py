"""The checksums of ext4: CRC-32C without the final inversion, and CRC-16 of groups (uninit_bg).

crc32c is the function of libext2fs if that is installed (e2fsprogs depends on it); otherwise it is
computed with tables, which is slower and returns the same (docs/decisions.md).
"""

from __future__ import annotations

import struct

from loopfs.lean import Callable

Buffer = bytes | bytearray | memoryview
Crc = Callable[[int, Buffer], int]

_CASTAGNOLI, _CRC16 = 0x82F63B78, 0xA001  # the polynomials, bit-reversed


def _table(polynomial: int) -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        remainder = entry
        for _ in range(8):
            remainder = remainder >> 1 ^ (polynomial if remainder & 1 else 0)
        entries.append(remainder)
    return tuple(entries)


_TABLE16 = _table(_CRC16)


def crc16(seed: int, data: Buffer) -> int:
    """Continue a CRC-16 (reflected 0x8005) from ``seed`` over ``data``."""
    for byte in data:
        seed = seed >> 8 ^ _TABLE16[(seed ^ byte) & 0xFF]
    return seed


def by_table() -> Crc:
    """Return crc32c in Python, which processes two bytes at a time."""
    single = _table(_CASTAGNOLI)
    double = tuple(
        single[n & 0xFF] >> 8 ^ single[single[n & 0xFF] & 0xFF ^ n >> 8] for n in range(1 << 16)
    )

    def crc32c(seed: int, data: Buffer) -> int:
        length = len(data)
        for pair in struct.unpack_from(f"<{length // 2}H", data):
            seed = seed >> 16 ^ double[(seed ^ pair) & 0xFFFF]
        if length & 1:
            seed = seed >> 8 ^ single[(seed ^ data[-1]) & 0xFF]
        return seed

    return crc32c


def _by_library() -> Crc | None:
    import ctypes

    try:
        function = ctypes.CDLL("libext2fs.so.2").ext2fs_crc32c_le
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_uint32
    function.argtypes = (ctypes.c_uint32, ctypes.c_char_p, ctypes.c_size_t)

    def crc32c(seed: int, data: Buffer) -> int:
        value: int = function(seed, data if data.__class__ is bytes else bytes(data), len(data))
        return value

    return crc32c


crc32c: Crc = _by_library() or by_table()
