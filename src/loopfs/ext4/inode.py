"""Inodes in memory and on disk (fs/ext4/inode.c: ext4_iget, ext4_do_update_inode)."""

from __future__ import annotations

import errno
import stat
import struct

from loopfs.ext4.crc import crc32c
from loopfs.ext4.errors import BadChecksum, Damaged, refused
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.ext4.dir import Directory
    from loopfs.ext4.ea_inode import Large

ROOT_INO, JOURNAL_INO = 2, 8
FL_SYNC, FL_IMMUTABLE, FL_APPEND, FL_NODUMP, FL_NOATIME = 0x8, 0x10, 0x20, 0x40, 0x80
FL_INDEX, FL_DIRSYNC, FL_TOPDIR, FL_HUGE_FILE = 0x1000, 0x10000, 0x20000, 0x40000
FL_EXTENTS, FL_EA_INODE, FL_INLINE_DATA, FL_PROJINHERIT = 0x80000, 0x200000, 0x10000000, 0x20000000
FL_DAX = 0x2000000
FL_ENCRYPT, FL_VERITY, FL_CASEFOLD = 0x800, 0x100000, 0x40000000
FL_INHERITED = 0x8 | 0x2 | 0x4 | 0x1 | FL_NODUMP | FL_NOATIME | FL_DIRSYNC | FL_PROJINHERIT | FL_DAX
FL_REGULAR = ~(FL_DIRSYNC | FL_TOPDIR | FL_PROJINHERIT)
FL_OTHER = FL_NODUMP | FL_NOATIME  # for what is neither a regular file nor a directory

_BASE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHH")
_EXTRA = struct.Struct("<HHIIIII")
_SECOND = 1_000_000_000
GOOD_OLD_SIZE = 128

Extent = tuple[int, int, int, bool]  # first block of file, count, first on disk, unwritten


class Inode:
    """An inode in memory: there is one object for each inode, while it is in use.

    Attributes:
        atime, mtime, ctime: nanoseconds since the epoch.
        sectors: the count of 512-byte sectors, including metadata blocks and attribute blocks.
        block: i_block, 60 bytes.
        extra: the bytes that follow the first 128.
        dtime: the time of deletion (seconds), or the next inode of the orphan list.
        map: the extents, sorted; None until they are needed. Changes are stored by a commit.
        nodes: blocks of the extent tree.
        indirect: blocks of a block map, by their depth and the first block that they map; None if
            there are none.
        xattrs: the extended attributes; None until they are needed.
        known: the number of node ids by which the kernel refers to it.
    """

    __slots__ = (
        *("atime", "block", "ctime", "dir", "dtime", "extra", "file_acl", "flags", "generation"),
        *("gid", "indirect", "ino", "known", "map", "map_changed", "mode", "mtime", "nlink"),
        *("nodeid", "nodes", "rdev", "sectors", "seed", "size", "uid", "version"),
        *("xattrs", "xattrs_changed"),
    )

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.nodeid = 1 if ino == ROOT_INO else ino
        self.mode = self.uid = self.gid = self.size = self.nlink = self.flags = self.sectors = 0
        self.atime = self.mtime = self.ctime = 0
        self.generation = self.file_acl = self.dtime = self.version = self.rdev = 0
        self.seed = 0
        self.block = bytes(60)
        self.extra = bytearray()
        self.map: list[Extent] | None = None
        self.nodes: tuple[int, ...] = ()
        self.indirect: dict[tuple[int, int], int] | None = None
        self.map_changed = self.xattrs_changed = False
        self.xattrs: dict[bytes, bytes | Large] | None = None
        self.dir: Directory | None = None
        self.known = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        return stat.S_ISLNK(self.mode)

    @property
    def extra_size(self) -> int:
        """i_extra_isize, bytes."""
        return self.extra[0] | self.extra[1] << 8 if self.extra else 0

    @property
    def has_extents(self) -> bool:
        return bool(self.flags & FL_EXTENTS)

    @property
    def has_inline_data(self) -> bool:
        return bool(self.flags & FL_INLINE_DATA)

    @property
    def is_fast_link(self) -> bool:
        """Whether this is a symbolic link whose target is in the inode."""
        return self.is_link and not self.has_extents and self.size < 60

    def check_readable(self) -> None:
        """Check that the contents can be read. Raises OSError EOPNOTSUPP.

        They cannot if the inode is encrypted, a casefolded directory, or a verity file.
        """
        if self.flags & (FL_ENCRYPT | FL_VERITY) or (self.is_dir and self.flags & FL_CASEFOLD):
            raise refused(errno.EOPNOTSUPP)

    def check_changes(self) -> None:
        """Check that the data can be changed. Raises OSError EPERM (fs/verity), EOPNOTSUPP."""
        if self.flags & FL_VERITY:
            raise refused(errno.EPERM)
        self.check_readable()

    def count(self, sectors: int) -> None:
        """Add to the count of sectors. It cannot become negative, even if it is wrong on disk."""
        self.sectors = max(self.sectors + sectors, 0)

    def compute_seed(self, seed: int) -> None:
        """Compute the seed of the checksums of the inode and its metadata blocks."""
        self.seed = crc32c(seed, struct.pack("<II", self.ino, self.generation))

    # --- on disk ----------------------------------------------------------------------

    def take(self, raw: bytes, block_size: int) -> None:
        """Decode an inode from its bytes. Raises OSError EUCLEAN."""
        mode, uid, size, at, ct, mt, dtime, gid, nlink, sectors, flags, version, *rest = (
            _BASE.unpack_from(raw)
        )
        block, generation, acl, size_high, _, sectors_high, acl_high, uid_high, gid_high, _, _ = (
            rest
        )
        self.mode, self.nlink, self.flags, self.version = mode, nlink, flags, version
        self.uid, self.gid = uid | uid_high << 16, gid | gid_high << 16
        self.dtime, self.block, self.generation = dtime, block, generation
        self.file_acl = acl | acl_high << 32
        large = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        self.size = size | (size_high << 32 if large else 0)
        self.sectors = sectors | sectors_high << 32
        if flags & FL_HUGE_FILE:
            self.sectors *= block_size // 512
            self.flags &= ~FL_HUGE_FILE
        self.extra = bytearray(raw[GOOD_OLD_SIZE:])
        extra = self.extra_size
        if self.extra and (extra & 3 or extra > len(self.extra)):
            raise Damaged(f"inode {self.ino} has an extra size of {extra}", self.ino)
        cx = mx = ax = 0
        if extra >= 16:
            _, _, cx, mx, ax, _, _ = _EXTRA.unpack_from(self.extra)
        self.mtime = _time(mt, mx)
        # The three times are usually equal; sharing one object saves memory.
        self.ctime = self.mtime if (ct, cx) == (mt, mx) else _time(ct, cx)
        self.atime = self.mtime if (at, ax) == (mt, mx) else _time(at, ax)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            old, new = struct.unpack_from("<II", block)
            self.rdev = (old & 0xFF) | (old >> 8 & 0xFF) << 8 if old else new
        if self.size >> 63:
            raise Damaged(f"inode {self.ino} has a size of {self.size}", self.ino)

    def is_same_file(self, other: Inode) -> bool:
        """Both inodes are of one file, which may have changed."""
        return (self.generation, self.mode >> 12) == (other.generation, other.mode >> 12)

    def replace(self, found: Inode) -> bool:
        """Take all of an inode that was read again. Returns whether stat(2) shows a difference."""
        shown = ("mode", "uid", "gid", "size", "nlink", "sectors", "atime", "mtime", "ctime")
        changed = any(getattr(self, name) != getattr(found, name) for name in shown)
        for name in self.__slots__:
            if name != "known":
                setattr(self, name, getattr(found, name))
        return changed

    def pack_into(
        self, raw: bytearray, offset: int, size: int, csum: bool, block_size: int
    ) -> None:
        """Encode the inode into ``size`` bytes."""
        at, ax = _disk_time(self.atime, bool(self.extra))
        mt, mx = _disk_time(self.mtime, bool(self.extra))
        ct, cx = _disk_time(self.ctime, bool(self.extra))
        flags, sectors = self.flags, self.sectors
        if sectors >> 48:
            flags, sectors = flags | FL_HUGE_FILE, sectors // (block_size // 512)
        _BASE.pack_into(
            *(raw, offset, self.mode, self.uid & 0xFFFF, self.size & 0xFFFFFFFF, at, ct, mt),
            *(self.dtime, self.gid & 0xFFFF, self.nlink, sectors & 0xFFFFFFFF, flags),
            *(self.version, self.block, self.generation, self.file_acl & 0xFFFFFFFF),
            *(self.size >> 32, 0, sectors >> 32, self.file_acl >> 32),
            *(self.uid >> 16, self.gid >> 16, 0, 0),
        )
        extra = self.extra_size
        if self.extra:
            struct.pack_into("<H", self.extra, 2, 0)
            if extra >= 16:
                struct.pack_into("<III", self.extra, 4, cx, mx, ax)
            raw[offset + GOOD_OLD_SIZE : offset + size] = self.extra
        if csum:
            value = crc32c(self.seed, raw[offset : offset + size])
            struct.pack_into("<H", raw, offset + 124, value & 0xFFFF)
            if extra >= 4:
                struct.pack_into("<H", raw, offset + 130, value >> 16)

    def check_sum(self, raw: bytes) -> None:
        """Check the checksum in ``raw``. Raises OSError EBADMSG."""
        bare = bytearray(raw)
        wanted = raw[124] | raw[125] << 8
        bare[124:126] = b"\0\0"
        mask = 0xFFFF
        if self.extra_size >= 4:
            wanted |= raw[130] << 16 | raw[131] << 24
            bare[130:132] = b"\0\0"
            mask = 0xFFFFFFFF
        if crc32c(self.seed, bare) & mask != wanted:
            raise BadChecksum(f"the checksum of inode {self.ino} is wrong", self.ino)

    def set_crtime(self, now: int, want_extra: int) -> None:
        """Set i_extra_isize and the creation time of a new inode."""
        if self.extra:
            struct.pack_into("<H", self.extra, 0, min(want_extra, len(self.extra)))
            if self.extra_size >= 24:
                struct.pack_into("<II", self.extra, 16, *_disk_time(now, True))

    @property
    def crtime(self) -> int | None:
        """The creation time in nanoseconds, or None if the inode has no space for it."""
        if self.extra_size < 24:
            return None
        seconds, extra = struct.unpack_from("<II", self.extra, 16)
        return _time(seconds, extra)

    def set_rdev(self, rdev: int) -> None:
        """Set the device number, given as in FUSE's attributes (new_encode_dev)."""
        self.rdev = rdev
        major, minor = rdev >> 8 & 0xFFF, rdev & 0xFF | rdev >> 12 & 0xFFF00
        old = major < 256 and minor < 256
        pair = (major << 8 | minor, 0) if old else (0, rdev)
        self.block = struct.pack("<II52x", *pair)


def _time(seconds: int, extra: int) -> int:
    seconds -= seconds >> 31 << 32
    return (seconds + ((extra & 3) << 32)) * _SECOND + min(extra >> 2, _SECOND - 1)


def _disk_time(time: int, extra: bool) -> tuple[int, int]:
    seconds, nanoseconds = divmod(time, _SECOND)
    limit = (1 << 34) - (1 << 31) - 1 if extra else (1 << 31) - 1
    seconds = max(-1 << 31, min(seconds, limit))
    low = seconds & 0xFFFFFFFF
    signed = low - (low >> 31 << 32)
    return low, (seconds - signed >> 32 & 3) | nanoseconds << 2


def clamped(time: int, extra: bool) -> int:
    """Return a time in the range that the disk format can hold."""
    return _time(*_disk_time(time, extra)) if extra else _time(_disk_time(time, False)[0], 0)


def check_number(ino: int, first: int, count: int) -> None:
    """Check that a directory entry can refer to inode ``ino``. Raises OSError EUCLEAN."""
    if ino != ROOT_INO and not first <= ino <= count:
        raise Damaged(f"inode {ino} cannot have a name", ino)
