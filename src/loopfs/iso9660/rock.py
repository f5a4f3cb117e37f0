"""The system use area of directory records: SUSP (IEEE P1281) and Rock Ridge (P1282)."""

from __future__ import annotations

import os
import stat
import struct

from loopfs.iso9660 import dates
from loopfs.iso9660.record import system_use_offset
from loopfs.lean import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopfs.iso9660.inode import Inode

_XA = 14  # bytes of CD-ROM XA attributes that may be before the fields
_MOST_CONTINUATIONS = 32  # followed of one record
_HEADER = 4  # signature, length, version
# The smallest length of a field, even if its length byte is smaller.
_LEAST = {
    b"SP": 7,
    b"CE": 28,
    b"ER": 8,
    b"RR": 5,
    b"PX": 36,
    b"PN": 20,
    b"SL": 7,
    b"NM": 5,
    b"CL": 12,
    b"PL": 12,
    b"TF": 5,
    b"ZF": 16,
}
_CE = struct.Struct("<4xI4xI4xI")  # block, offset, length
_PX = struct.Struct("<4xI4xI4xI4xI")  # mode, links, uid, gid
_PN = struct.Struct("<4xI4xI")
_CL = struct.Struct("<4xI")
_ZF = struct.Struct("<4x2sBBI")  # algorithm, words of the header, log2 of the block, real size

_RR_NM = 8  # flag of RR: there is a name
_SPECIAL_NAME, _UNKNOWN_NAME = 6, ~1  # flags of NM: "." or ".."; all others but "continued"
_LONGEST_NAME = 253
_CREATION, _MODIFY, _ACCESS, _ATTRIBUTES, _LONG_FORM = 1, 2, 4, 8, 128  # flags of TF
_CONTINUED = 1  # flag of SL and of its components
_COMPONENTS = {0: None, 2: b".", 4: b"..", 8: b"/"}
ZISOFS = b"pz"  # a compression algorithm
LARGEST_SHIFT = 17  # log2 of the block size of zisofs
_MODE = 0xFFFF
_MINOR_BITS = 20

Blocks = Callable[[int], bytes]
Found = Callable[[int], "Inode"]


class Damaged(Exception):
    """The fields are invalid.

    Args:
        hides: if this is found when the name is read, the file is not shown; otherwise it is shown
            by a name that is not Rock Ridge's.
    """

    def __init__(self, hides: bool) -> None:
        self.hides = hides


class Rock:
    """The state of a volume's extensions.

    Args:
        wanted: use them if present.
        read: returns the bytes of a block; raises OSError.

    Attributes:
        wanted: whether they are used.
        announced: whether there is a field ER.
        skip: the number of bytes before the first field, from the field SP; None without it.
    """

    def __init__(self, wanted: bool, read: Blocks) -> None:
        self.wanted = wanted
        self.announced = False
        self.skip: int | None = None
        self._read = read

    def _fields(self, raw: bytes, xa: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Yield the fields of a record and its continuations: signature, all bytes.

        Raises:
            Damaged: a field is invalid.
        """
        area, at = raw, system_use_offset(raw) + (self.skip or 0) + xa
        for _ in range(_MOST_CONTINUATIONS):
            following = 0, 0, 0
            end = len(area)
            while end - at > 2:
                sig, length = area[at : at + 2], area[at + 2]
                if length < _HEADER - 1:
                    raise Damaged(hides=False)
                least = _LEAST.get(sig, _HEADER)
                if least > end - at:
                    raise Damaged(hides=True)
                if length > end - at:
                    raise Damaged(hides=False)
                field = area[at : at + max(length, least)]
                at += length
                if sig == b"CE":
                    following = _CE.unpack_from(field)
                elif sig == b"SP":
                    self._sharing(field)
                else:
                    yield sig, field
            block, at, length = following
            if not block:
                return
            area = self._continuation(block, at, length)
            at = 0
        raise Damaged(hides=True)

    def _continuation(self, block: int, at: int, length: int) -> bytes:
        try:
            data = self._read(block)
        except OSError:
            raise Damaged(hides=True) from None
        if at > len(data) - _HEADER or at + length > len(data):
            raise Damaged(hides=True)
        return data[at : at + length]

    def _sharing(self, field: bytes) -> None:
        if field[4:6] != b"\xbe\xef":
            raise Damaged(hides=False)
        self.skip = field[6]

    # --- names ---------------------------------------------------------------

    def name(self, raw: bytes) -> bytes | None:
        """Return the name in a record; empty: it has none; None: the file must not be shown."""
        parts: list[bytes] = []
        length, full = 0, False
        try:
            for sig, field in self._fields(raw):
                if sig == b"NM" and not full and not field[4] & (_SPECIAL_NAME | _UNKNOWN_NAME):
                    part = field[5 : field[2]]
                    full = length + len(part) > _LONGEST_NAME
                    if not full:
                        part = part.partition(b"\0")[0]
                        parts.append(part)
                        length += len(part)
                elif sig == b"RE":  # a relocated directory, shown in place of the field CL
                    return None
                elif sig == b"RR" and not field[4] & _RR_NM:
                    return b""
        except Damaged as damaged:
            return None if damaged.hides else b""
        return b"".join(parts)

    # --- attributes ----------------------------------------------------------

    def apply(self, inode: Inode, raw: bytes, find: Found | None) -> None:
        """Set the attributes of an inode from its record.

        Args:
            find: returns the inode of a directory's first record; None for a relocated directory,
                which cannot be relocated again.
        """
        if not self.wanted:
            return
        self._apply(inode, raw, find, 0)
        if self.skip is None and not self.announced:
            self._apply(inode, raw, find, _XA)

    def _apply(self, inode: Inode, raw: bytes, find: Found | None, xa: int) -> None:
        link = _Link()
        try:
            for sig, field in self._fields(raw, xa):
                if sig == b"PX":
                    mode, inode.nlink, inode.uid, inode.gid = _PX.unpack_from(field)
                    inode.mode = mode & _MODE
                elif sig == b"TF":
                    _take_times(inode, field)
                elif sig == b"SL":
                    link.add(field)
                    inode.size = inode.stored = len(link.text)
                elif sig == b"PN":
                    inode.rdev = _device(*_PN.unpack_from(field))
                elif sig == b"ER":
                    if field[4] + 8 > field[2]:
                        return
                    self.announced = True
                elif sig == b"ZF":
                    inode.compressed(*_ZF.unpack_from(field))
                elif sig == b"RE":
                    return
                elif sig == b"CL":
                    if find is None:
                        return
                    inode.relocate(_CL.unpack_from(field)[0], find)
        except (Damaged, OSError):  # earlier fields stay in effect, as in the kernel's driver
            return
        if stat.S_ISLNK(inode.mode) and link.text and not xa:
            inode.target = bytes(link.text).partition(b"\0")[0]


class _Link:
    """The target of a symbolic link, built from successive fields SL."""

    def __init__(self) -> None:
        self.text = bytearray()

    def add(self, field: bytes) -> None:
        at, end = 5, field[2]
        while end - at > 1:
            flags, length = field[at], field[at + 1]
            part = _COMPONENTS.get(flags & ~_CONTINUED, b"")
            self.text += field[at + 2 : min(at + 2 + length, end)] if part is None else part
            at += 2 + length
            last = end - at < 2
            if part == b"/" or flags & _CONTINUED:
                continue
            if not last or field[4] & _CONTINUED:
                self.text += b"/"


def _take_times(inode: Inode, field: bytes) -> None:
    """Set the times, which are in the order of the flag bits.

    The creation time is used as the time of the last change, because some writers confuse them.
    """
    flags = field[4]
    size = dates.LONG if flags & _LONG_FORM else dates.SHORT
    at = 5
    accessed, modified, changed = inode.times
    for bit in (_CREATION, _MODIFY, _ACCESS, _ATTRIBUTES):
        raw = field[at : at + size]
        if not flags & bit or len(raw) < size:
            continue
        at += size
        moment = dates.nanoseconds(raw)
        if bit == _MODIFY:
            modified = moment
        elif bit == _ACCESS:
            accessed = moment
        else:
            changed = moment
    inode.times = accessed, modified, changed


def _device(high: int, low: int) -> int:
    """Return a device number as makedev(3); some writers put all of it into the lower half."""
    if low & ~0xFF and not high:
        return os.makedev(low >> 8, low & 0xFF)
    number = (high << _MINOR_BITS | low) & 0xFFFFFFFF
    return os.makedev(number >> _MINOR_BITS, number & (1 << _MINOR_BITS) - 1)
