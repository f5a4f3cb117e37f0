"""Dates of directory records and of Rock Ridge (ECMA-119 9.1.5 and 8.4.26.1)."""

from __future__ import annotations

from functools import lru_cache

from loopfs.mktime import mktime64

SHORT, LONG = 7, 17  # bytes
_HIGH_SIERRA = 6  # without a time zone
_MOST_ZONE = 52  # quarters of an hour; what is beyond is no time zone, to the kernel
_SECOND = 1_000_000_000


@lru_cache(maxsize=1024)
def nanoseconds(raw: bytes) -> int:
    """The moment that 7 bytes, 6 (High Sierra) or 17 (Rock Ridge's long form) say, in nanoseconds
    since the epoch. Whatever they are, it is what the kernel makes of them."""
    if len(raw) == LONG:
        return _long(raw)
    year, month, day, hour, minute, second = raw[:_HIGH_SIERRA]
    zone = _zone(raw[_HIGH_SIERRA]) if len(raw) > _HIGH_SIERRA else 0
    return (mktime64(1900 + year, month, day, hour, minute, second) - zone) * _SECOND


def _long(raw: bytes) -> int:
    digits = raw[:-1]
    if not digits.isdigit():
        return 0
    fields = digits[:4], digits[4:6], digits[6:8], digits[8:10], digits[10:12], digits[12:14]
    seconds = mktime64(*map(int, fields)) - _zone(raw[-1])
    return seconds * _SECOND + int(digits[14:16]) * 10_000_000


def _zone(byte: int) -> int:
    """Seconds east of Greenwich."""
    quarters = byte - 256 if byte & 0x80 else byte
    return quarters * 900 if abs(quarters) <= _MOST_ZONE else 0
