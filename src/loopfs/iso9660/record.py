"""Directory records (ECMA-119 9.1)."""

from __future__ import annotations

import struct

from loopfs.lean import NamedTuple

HEADER = 33  # bytes before the name
MOST = 255  # bytes of a record
SECTOR = 2048  # bytes; where a record would cross its end, the next sector begins with it

HIDDEN, DIRECTORY, ASSOCIATED, MULTI_EXTENT = 0x01, 0x02, 0x04, 0x80
DOT, DOTDOT = b"\0", b"\1"  # names

# Length, length of the extended attributes, extent, size; date, flags; gap of interleaving; length
# of the name. Of numbers that are there in both orders the little-endian ones.
_HEADER = struct.Struct("<BBI4xI4x7sBxB4xB")
_HIGH_SIERRA_FLAGS = 24  # the last byte of the date


class Record(NamedTuple):
    """One of them.

    Attributes:
        extent: the first block of its data, after the extended attributes.
        size: bytes.
        date: 7 bytes, 6 of a High Sierra image.
        gap: blocks between those of the file, if it is interleaved.
        raw: the whole of it.
    """

    extent: int
    size: int
    date: bytes
    flags: int
    gap: int
    name: bytes
    raw: bytes

    @property
    def is_dir(self) -> bool:
        return bool(self.flags & DIRECTORY)

    @property
    def system_use(self) -> bytes:
        """What is after the name, at an even place."""
        return self.raw[system_use_offset(self.raw) :]


def parse(raw: bytes, *, high_sierra: bool = False) -> Record:
    """A record of at least HEADER bytes.

    Args:
        raw: its bytes, as many as the first of them says.
    """
    _, extended, extent, size, date, flags, gap, name_len = _HEADER.unpack_from(raw)
    if high_sierra:
        date, flags = date[:-1], raw[_HIGH_SIERRA_FLAGS]
    name = raw[HEADER : HEADER + name_len]
    return Record(extent + extended, size, date, flags, gap, name, raw)


def system_use_offset(raw: bytes) -> int:
    """Where in a record the system use area begins."""
    end = HEADER + raw[HEADER - 1]
    return end + (end & 1)
