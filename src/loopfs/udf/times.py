"""Timestamps (1/7.3)."""

from __future__ import annotations

import struct
from functools import lru_cache

from loopfs.mktime import mktime64

LENGTH = 12  # bytes
_STAMP = struct.Struct("<Hh8B")
_LOCAL = 1  # the type of local time
_MOST = 1440  # minutes; a larger offset is invalid, -2047: unknown
_SECOND = 1_000_000_000


@lru_cache(maxsize=1024)
def nanoseconds(raw: bytes) -> int:
    """Decode a timestamp into nanoseconds since the epoch."""
    kind, year, month, day, hour, minute, second, *fraction = _STAMP.unpack(raw)
    minutes = (kind & 0xFFF) - ((kind & 0x800) << 1)
    if kind >> 12 != _LOCAL or abs(minutes) > _MOST:
        minutes = 0
    moment = (mktime64(year, month, day, hour, minute, second) - minutes * 60) * _SECOND
    hundredths, hundreds, micros = fraction
    if max(fraction) < 100:
        moment += (hundredths * 10000 + hundreds * 100 + micros) * 1000
    return int(moment)
