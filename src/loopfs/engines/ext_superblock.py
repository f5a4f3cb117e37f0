"""The superblock of ext2, ext3 and ext4: its label, and its checksum.

The functions convert bytes to bytes (Documentation/filesystems/ext4/super.rst). These 1024 bytes
are the only part of an image that the supervisor examines, and in them only the magic number, the
label and whether there is a checksum. An engine has its own copy of the superblock, and writes it
whatever others have written.
"""

from __future__ import annotations

import struct

START, SIZE = 1024, 1024  # bytes, on the device
LABEL_MAX = 16  # EXT4_LABEL_MAX
TYPES = frozenset({"ext2", "ext3", "ext4"})

_U16, _U32 = struct.Struct("<H"), struct.Struct("<I")
_MAGIC_OFFSET, _MAGIC = 0x38, 0xEF53
_RO_COMPAT_OFFSET, _METADATA_CSUM = 0x64, 0x400
_LABEL = slice(0x78, 0x78 + LABEL_MAX)
_CHECKSUM_OFFSET = 0x3FC
_MAGIC_FIELD, _UUID, _GROUP = slice(0x38, 0x3A), slice(0x68, 0x78), slice(0x5A, 0x5C)
_OWN = (slice(0x30, 0x34), slice(0x3A, 0x3C), _GROUP)  # s_wtime, s_state, s_block_group_nr
_CASTAGNOLI = 0x82F63B78  # the polynomial, bit-reversed


def label(superblock: bytes) -> bytes:
    """Return the label: up to 16 bytes, without a NUL.

    Raises:
        ValueError: it is not a superblock of these filesystems.
    """
    _check(superblock)
    return superblock[_LABEL].partition(b"\0")[0]


def with_label(superblock: bytes, name: bytes) -> bytes:
    """Return the superblock with another label, and with an updated checksum if it has one.

    Args:
        name: up to 16 bytes.
    Raises:
        ValueError: it is not a superblock of these filesystems.
    """
    _check(superblock)
    out = bytearray(superblock)
    out[_LABEL] = name.ljust(LABEL_MAX, b"\0")
    (features,) = _U32.unpack_from(out, _RO_COMPAT_OFFSET)
    if features & _METADATA_CSUM:
        _U32.pack_into(out, _CHECKSUM_OFFSET, crc32c(bytes(out[:_CHECKSUM_OFFSET])))
    return bytes(out)


def label_by_write(superblock: bytes, offset: int, data: bytes) -> bytes | None:
    """Return the label that a write gives to a superblock: e2label(8) writes changed bytes only.

    Args:
        offset: bytes from the start of the superblock; the data ends within it.
    Returns:
        None if the write changes anything else.
    """
    after = superblock[:offset] + data + superblock[offset + len(data) :]
    name = after[_LABEL].partition(b"\0")[0]
    changed = with_label(superblock, name)
    return name if after in (changed, changed[:_CHECKSUM_OFFSET] + _checksum(superblock)) else None


def is_copy(superblock: bytes, data: bytes) -> bool:
    """Return whether data is what e2label(8) first writes to another group: a copy with a label."""
    return len(data) == SIZE and _common(superblock) == _common(data)


def is_older(there: bytes, data: bytes) -> bool:
    """Return whether the existing data is a superblock of the same filesystem and group."""
    return all(there[part] == data[part] for part in (_MAGIC_FIELD, _UUID, _GROUP))


def _common(superblock: bytes) -> bytes:
    out = bytearray(superblock[:_CHECKSUM_OFFSET])
    for part in (_LABEL, *_OWN):
        out[part] = bytes(part.stop - part.start)
    return bytes(out)


def _checksum(superblock: bytes) -> bytes:
    return superblock[_CHECKSUM_OFFSET:]


def _check(superblock: bytes) -> None:
    if len(superblock) != SIZE or _U16.unpack_from(superblock, _MAGIC_OFFSET) != (_MAGIC,):
        raise ValueError("not a superblock of ext2, ext3 or ext4")


def crc32c(data: bytes) -> int:
    """Return CRC-32C as used in ext4: it begins with all ones, and is not inverted at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc


def _table() -> tuple[int, ...]:
    entries = []
    for entry in range(256):
        remainder = entry
        for _ in range(8):
            remainder = remainder >> 1 ^ (_CASTAGNOLI if remainder & 1 else 0)
        entries.append(remainder)
    return tuple(entries)


_TABLE = _table()
