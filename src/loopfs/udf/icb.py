"""Information control blocks: file entries (4/14.9, UDF 2.3.6) and extents (4/14.14)."""

from __future__ import annotations

import errno
import os
import stat
import struct

from loopfs.fuse.fixed_tree import Place
from loopfs.lean import TYPE_CHECKING, NamedTuple
from loopfs.uapi.fuse import Attr, encode_dev
from loopfs.udf import tag
from loopfs.udf.errors import damaged, refused
from loopfs.udf.times import LENGTH as STAMP
from loopfs.udf.times import nanoseconds

if TYPE_CHECKING:
    from loopfs.udf.options import Options

SHORT, LONG, EMBEDDED = 0, 1, 3  # types of allocation descriptors
RECORDED, ALLOCATED, UNALLOCATED, CONTINUED = range(4)  # types of extents
_KIND = 7  # bits of the flags: the type of allocation descriptors
_SETUID, _SETGID, _STICKY = 1 << 6, 1 << 7, 1 << 8

_BLOCK, _CHAR, _FIFO, _SOCKET, _SYMLINK = 6, 7, 9, 10, 12
DIRECTORY = 4
_MODES = {
    **dict.fromkeys((0, 5, 248, 249), stat.S_IFREG),
    DIRECTORY: stat.S_IFDIR,
    _BLOCK: stat.S_IFBLK,
    _CHAR: stat.S_IFCHR,
    _FIFO: stat.S_IFIFO,
    _SOCKET: stat.S_IFSOCK,
    _SYMLINK: stat.S_IFLNK,
}
SPECIAL = frozenset({250, 251, 252})  # the files of a metadata partition

# Strategy, file type, flags; uid, gid, permissions, links, size.
_HEAD = struct.Struct("<20xH5xB6xHIIIH6xQ")
# Offsets of: blocks recorded, times, lengths of extended attributes and descriptors; the end.
_FILE = 64, (72, 84, 96), 168, 176
_EXTENDED = 72, (80, 92, 116), 208, 216
_LENGTHS = struct.Struct("<II")
_EA_HEADER, _DEVICE = 24, 12  # bytes before the extended attributes; the type of a device's
_ATTRIBUTE = struct.Struct("<IB3xI")  # type, subtype, length
_DEVICE_NUMBERS = struct.Struct("<16xII")
_NO_ID = 0xFFFFFFFF
_OVERFLOW_ID = 65534
_SECTOR = 512
_MINOR_BITS = 20

_LENGTH = 0x3FFFFFFF  # the length of an extent in bytes; the bits above are its type


class Extent(NamedTuple):
    """Consecutive bytes of a file; ``block`` is a logical block."""

    length: int
    kind: int
    block: int
    partition: int


class Inode:
    """A file. It does not change.

    Args:
        raw: the block of its entry.
        place: the partition and the logical block of the entry.
        ino: the block of the entry on the device.
        hidden: it is a file of the filesystem itself, without a name.
    Attributes:
        kind: the type of its allocation descriptors.
        descriptors: the allocation descriptors, or the content (EMBEDDED).
        extents: None until they are needed.
        target: of a symbolic link, when it has been read.
    Raises:
        OSError: EIO; ESTALE: the link count is 0.
    """

    __slots__ = (
        *("attr", "blocks", "descriptors", "extents", "gid", "ino", "kind", "known", "mode"),
        *("nlink", "nodeid", "place", "rdev", "size", "starts", "target", "times", "uid", "up"),
    )

    def __init__(
        self, raw: bytes, place: Place, ino: int, options: Options, *, hidden: bool = False
    ) -> None:
        extended = int.from_bytes(raw[:2], "little") == tag.EXTENDED_FILE_ENTRY
        blocks_at, times_at, lengths_at, begin = _EXTENDED if extended else _FILE
        _, filetype, flags, uid, gid, permissions, links, size = _HEAD.unpack_from(raw)
        attributes, length = _LENGTHS.unpack_from(raw, lengths_at)
        self.kind = flags & _KIND
        end = begin + attributes + length
        if self.kind not in (SHORT, LONG, EMBEDDED) or end > len(raw):
            raise damaged()
        self.descriptors = raw[begin + attributes : end]
        if self.kind == EMBEDDED and size != length:
            raise damaged()
        self.place, self.ino, self.size = place, ino, size
        self.nodeid = self.known = 0
        self.up = ino
        self.uid, self.gid = _owner(uid, options.uid), _owner(gid, options.gid)
        self.mode = _mode(filetype, flags, permissions, options)
        if not links and not hidden:
            raise refused(errno.ESTALE)
        self.nlink = links + (filetype == DIRECTORY)
        blocks = int.from_bytes(raw[blocks_at : blocks_at + 8], "little")
        self.blocks = blocks * (len(raw) // _SECTOR) & (1 << 48) - 1
        atime, mtime, ctime = (nanoseconds(raw[at : at + STAMP]) for at in times_at)
        self.times = atime, mtime, ctime
        self.rdev = 0
        if filetype in (_BLOCK, _CHAR):
            self.rdev = _device(raw[begin : begin + attributes])
        self.extents: list[Extent] | None = None
        self.starts: list[int] = []
        self.target: bytes | None = None
        self.attr: Attr | None = None

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def attributes(self, block_size: int) -> Attr:
        """Return the attributes for the kernel; the size of a symbolic link is its target's."""
        if self.attr is None:
            size = self.size if self.target is None else len(self.target)
            self.attr = Attr(
                *(self.ino, size, self.mode, self.nlink, self.uid, self.gid),
                encode_dev(os.major(self.rdev), os.minor(self.rdev)),
                self.times,
                block_size,
                self.blocks,
            )
        return self.attr


def _owner(own: int, wanted: int | None) -> int:
    if wanted is not None:
        return wanted
    return _OVERFLOW_ID if own == _NO_ID else own


def _mode(filetype: int, flags: int, permissions: int, options: Options) -> int:
    """Convert permissions: other, group and owner have five bits each, three of them Unix's."""
    if filetype in SPECIAL:
        return stat.S_IFREG
    if filetype not in _MODES:
        raise damaged()
    if filetype == _SYMLINK:
        return stat.S_IFLNK | 0o777
    wanted = options.dmode if filetype == DIRECTORY else options.mode
    if wanted is None:
        wanted = permissions & 0o007 | permissions >> 2 & 0o070 | permissions >> 4 & 0o700
        wanted |= stat.S_ISUID if flags & _SETUID else 0
        wanted |= stat.S_ISGID if flags & _SETGID else 0
        wanted |= stat.S_ISVTX if flags & _STICKY else 0
    return _MODES[filetype] | wanted & ~options.umask


def _device(attributes: bytes) -> int:
    """Return the device number in an extended attribute (4/14.10.7)."""
    at = _EA_HEADER
    if int.from_bytes(attributes[:2], "little") != tag.EXTENDED_ATTRIBUTES:
        raise damaged()
    while at + _DEVICE_NUMBERS.size <= len(attributes):
        kind, subtype, length = _ATTRIBUTE.unpack_from(attributes, at)
        if (kind, subtype) == (_DEVICE, 1):
            major, minor = _DEVICE_NUMBERS.unpack_from(attributes, at)
            number = (major << _MINOR_BITS | minor) & 0xFFFFFFFF
            return os.makedev(number >> _MINOR_BITS, number & (1 << _MINOR_BITS) - 1)
        if length < _ATTRIBUTE.size:
            break
        at += length
    raise damaged()


_SHORT_AD = struct.Struct("<II")
_LONG_AD = struct.Struct("<IIH6x")


def descriptors(raw: bytes, kind: int, partition: int) -> list[Extent]:
    """Decode allocation descriptors; short ones refer to ``partition``."""
    if kind == SHORT:
        usable = len(raw) - len(raw) % _SHORT_AD.size
        return [
            Extent(length & _LENGTH, length >> 30, block, partition)
            for length, block in _SHORT_AD.iter_unpack(raw[:usable])
        ]
    usable = len(raw) - len(raw) % _LONG_AD.size
    return [
        Extent(length & _LENGTH, length >> 30, block, where)
        for length, block, where in _LONG_AD.iter_unpack(raw[:usable])
    ]
