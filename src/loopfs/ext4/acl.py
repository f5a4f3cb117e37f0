"""Access control lists (fs/ext4/acl.c): disk format, getxattr(2) format, relation to the mode."""

from __future__ import annotations

import struct

from loopfs.ext4.errors import Damaged

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_NAMED = (_USER, _GROUP)
_ROW, _SHORT, _VERSION = struct.Struct("<HHI"), struct.Struct("<HH"), struct.Struct("<I")
_DISK_VERSION, _USER_VERSION = 1, 2  # EXT4_ACL_VERSION, POSIX_ACL_XATTR_VERSION
_NOBODY = 0xFFFFFFFF


def from_disk(value: bytes) -> bytes:
    """Convert a list from the disk format to that of getxattr(2). Raises OSError EUCLEAN."""
    if value[:4] != _VERSION.pack(_DISK_VERSION):
        raise Damaged("an access control list has an unknown version")
    out, at = [_VERSION.pack(_USER_VERSION)], 4
    while at < len(value):
        size = 8 if value[at : at + 1] in (b"\2", b"\10") else 4
        if at + size > len(value):
            raise Damaged("an access control list is truncated")
        tag, bits = _SHORT.unpack_from(value, at)
        who = _VERSION.unpack_from(value, at + 4)[0] if size == 8 else _NOBODY
        out.append(_ROW.pack(tag, bits, who))
        at += size
    return b"".join(out)


def to_disk(value: bytes) -> bytes:
    """Convert a list from the format of setxattr(2) to the disk format."""
    rows = _ROW.iter_unpack(value[4:])
    packed = (_ROW.pack(*row) if row[0] in _NAMED else _SHORT.pack(*row[:2]) for row in rows)
    return _VERSION.pack(_DISK_VERSION) + b"".join(packed)


def with_mode(value: bytes, mode: int, *, masked: bool) -> tuple[bytes | None, int]:
    """Return a list with the permissions of ``mode``, and the mode's nine bits that result.

    Args:
        masked: remove the permissions that ``mode`` lacks, instead of setting them to ``mode``.
    Returns:
        The list is None if the nine bits express all of it.
    """
    rows = [list(row) for row in _ROW.iter_unpack(value[4:])]
    group = _MASK if any(row[0] == _MASK for row in rows) else _GROUP_OBJ
    shifts = {_USER_OBJ: 6, group: 3, _OTHER: 0}
    bits = 0
    for row in rows:
        shift = shifts.get(row[0])
        if shift is not None:
            row[1] = row[1] & mode >> shift & 7 if masked else mode >> shift & 7
            bits |= row[1] << shift
    if len(rows) <= 3:
        return None, bits
    return _VERSION.pack(_USER_VERSION) + b"".join(_ROW.pack(*row) for row in rows), bits
