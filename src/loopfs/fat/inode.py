"""Files and directories in memory, and their entries on disk (fs/fat/inode.c)."""

from __future__ import annotations

import struct

from loopfs.fat.cache import Runs
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.fat.dir import Directory

ATTR_RO, ATTR_HIDDEN, ATTR_SYS, ATTR_VOLUME, ATTR_DIR, ATTR_ARCH = 1, 2, 4, 8, 16, 32
ENTRY = struct.Struct("<11sBBB7HI")  # struct msdos_dir_entry
ROOT_INO = 1
MAX_SIZE = 0xFFFFFFFF  # the largest file, in bytes
MAX_DIR_SLOTS = 65536  # FAT_MAX_DIR_ENTRIES


class Inode:
    """A file or a directory. There is one object while the contents of its parent are in memory.

    Attributes:
        ino: st_ino; never reused.
        nodeid: the number by which the kernel refers to it, which can change.
        known: the number of node ids by which the kernel refers to it.
        first, slot: the index in the directory of its first slot, and of its short entry.
        name, keys: the name as it is shown, and the folded names by which it is found.
        opens: the number of open files.
        seen: the date of the last access, for type msdos, which does not store it.
        gone: whether its name was removed.
        kept: whether it has clusters beyond its size (fallocate(2)).
        runs: its clusters; None until they are needed.
        dir: the contents of a directory, while they are in memory.
    """

    __slots__ = (
        *("adate", "attr", "cdate", "ctime", "ctime_cs", "date", "time"),
        *(
            "dir",
            "first",
            "gone",
            "ino",
            "kept",
            "keys",
            "known",
            "lcase",
            "name",
            "nodeid",
            "opens",
            "seen",
        ),
        *("parent", "runs", "short", "size", "slot", "start"),
    )

    def __init__(self, ino: int, parent: Inode | None) -> None:
        self.ino = self.nodeid = ino
        self.parent = parent
        self.name = self.short = b""
        self.keys: tuple[bytes, ...] = ()
        self.first = self.slot = self.start = self.size = self.attr = self.lcase = 0
        self.ctime_cs = self.ctime = self.cdate = self.adate = self.time = self.date = 0
        self.known = self.opens = self.seen = 0
        self.gone = self.kept = False
        self.runs: Runs | None = None
        self.dir: Directory | None = None

    @property
    def is_dir(self) -> bool:
        return bool(self.attr & ATTR_DIR)

    @property
    def called(self) -> tuple[bytes, bytes, bool]:
        """What is the same for as long as it is the same file."""
        return self.short, self.name, self.is_dir

    def take(self, raw: bytes, fat32: bool) -> None:
        """Decode a short entry."""
        self.short, self.attr, self.lcase, self.ctime_cs, *rest = ENTRY.unpack(raw)
        self.ctime, self.cdate, self.adate, high, self.time, self.date, low, self.size = rest
        self.start = high << 16 | low if fat32 else low

    def packed(self) -> bytes:
        """Encode the short entry."""
        created = self.ctime_cs, self.ctime, self.cdate
        high, low = self.start >> 16, self.start & 0xFFFF
        size = 0 if self.attr & ATTR_DIR else self.size
        head = self.short, self.attr, self.lcase
        return ENTRY.pack(*head, *created, self.adate, high, self.time, self.date, low, size)
