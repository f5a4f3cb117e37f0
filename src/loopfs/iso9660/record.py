"""Directory records (ECMA-119 9.1)."""

from __future__ import annotations

import struct

from loopfs.lean import NamedTuple

HEADER = 33  # bytes before the name
MOST = 255  # bytes of a record
SECTOR = 2048  # bytes; a record that would cross the end of a sector is at the start of the next

HIDDEN, DIRECTORY, ASSOCIATED, MULTI_EXTENT = 0x01, 0x02, 0x04, 0x80
DOT, DOTDOT = b"\0", b"\1"  # names

# Length, length of the extended attributes, extent, size; date, flags; interleave gap; length of
# the name. Of a number stored in both byte orders the little-endian one is used.
_HEADER = struct.Struct("<BBI4xI4x7sBxB4xB")
_HIGH_SIERRA_FLAGS = 24  # the last byte of the date


class Record(NamedTuple):
    """A directory record.

    Attributes:
        extent: the first block of the data, after the extended attributes.
        size: bytes.
        date: 7 bytes; 6 in a High Sierra image.
        gap: the number of blocks between those of the file, if it is interleaved.
        raw: all its bytes.
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
        """The bytes after the name, from an even offset on."""
        return self.raw[system_use_offset(self.raw) :]


def parse(raw: bytes, *, high_sierra: bool = False) -> Record:
    """Decode a record of at least HEADER bytes.

    Args:
        raw: its bytes; the first one is their number.
    """
    _, extended, extent, size, date, flags, gap, name_len = _HEADER.unpack_from(raw)
    if high_sierra:
        date, flags = date[:-1], raw[_HIGH_SIERRA_FLAGS]
    name = raw[HEADER : HEADER + name_len]
    return Record(extent + extended, size, date, flags, gap, name, raw)


def system_use_offset(raw: bytes) -> int:
    """Return the offset in a record of the system use area."""
    end = HEADER + raw[HEADER - 1]
    return end + (end & 1)
