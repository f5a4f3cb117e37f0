"""Descriptor tags (3/7.2), which identify the contents of a block."""

from __future__ import annotations

import binascii
import struct

PRIMARY, ANCHOR, POINTER, PARTITION, LOGICAL, TERMINATING, INTEGRITY = 1, 2, 3, 5, 6, 8, 9
FILE_SET, FILE_IDENTIFIER, ALLOCATION_EXTENT, INDIRECT_ENTRY = 256, 257, 258, 259
FILE_ENTRY, EXTENDED_ATTRIBUTES, SPACE_BITMAP, EXTENDED_FILE_ENTRY = 261, 262, 264, 266

LENGTH = 16  # bytes
# Identifier, version, checksum of the other bytes, serial number; CRC, its number of bytes; block.
_TAG = struct.Struct("<HHBxHHHI")
_VERSIONS = (2, 3)
_CHECKSUM_AT = 4


def crc(data: bytes) -> int:
    """Return the CRC of ITU-T V.41, x^16 + x^12 + x^5 + 1."""
    return binascii.crc_hqx(data, 0)


def identify(block: bytes, location: int) -> int | None:
    """Return the tag identifier of a block; None: it has no valid tag for ``location``."""
    ident, version, checksum, _, expected, length, place = _TAG.unpack_from(block)
    total = sum(block[:LENGTH]) - block[_CHECKSUM_AT] & 0xFF
    if place != location or total != checksum or version not in _VERSIONS:
        return None
    if LENGTH + length > len(block) or crc(block[LENGTH : LENGTH + length]) != expected:
        return None
    return int(ident)
