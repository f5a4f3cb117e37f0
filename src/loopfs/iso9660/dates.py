"""Dates of directory records and of Rock Ridge (ECMA-119 9.1.5 and 8.4.26.1)."""

from __future__ import annotations

from functools import lru_cache

from loopfs.mktime import mktime64

SHORT, LONG = 7, 17  # bytes
_HIGH_SIERRA = 6  # without a time zone
_MOST_ZONE = 52  # quarters of an hour; the kernel ignores larger values
_SECOND = 1_000_000_000


@lru_cache(maxsize=1024)
def nanoseconds(raw: bytes) -> int:
    """Return a date of 7 bytes, 6 (High Sierra) or 17 (the long form of Rock Ridge).

    The result is in nanoseconds since the epoch. Invalid dates are converted as by the kernel.
    """
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
    """Return the offset of a time zone, in seconds east of Greenwich."""
    quarters = byte - 256 if byte & 0x80 else byte
    return quarters * 900 if abs(quarters) <= _MOST_ZONE else 0
