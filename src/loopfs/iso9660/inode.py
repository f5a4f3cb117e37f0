"""A file, as its directory record describes it (fs/isofs/inode.c)."""

from __future__ import annotations

import os
import stat

from loopfs.fuse.fixed_tree import Place
from loopfs.iso9660 import rock
from loopfs.iso9660.dates import nanoseconds
from loopfs.lean import TYPE_CHECKING, Callable, Sequence
from loopfs.uapi.fuse import Attr, encode_dev

if TYPE_CHECKING:
    from loopfs.iso9660.options import Options
    from loopfs.iso9660.record import Record

MOST_SECTIONS = 100  # of a file
_PERMISSIONS = 0o555
_CRUFT = 0xFFFFFF  # bytes: the largest file with the option
_SMALL, _BLOCK = 5, 512  # low bits of an offset not in inode numbers; bytes of a unit of st_blocks


class Inode:
    """A file. It does not change.

    Attributes:
        place: the block of its record and the offset in the block; for a directory, that of its own
            first record.
        nodeid: the number by which the kernel refers to it.
        sections: the first block and the size in bytes of each section.
        stored: the size of the sections in bytes, which differs from the size if it is compressed.
        zisofs: for a compressed file: the words of the header and log2 of the block size; else
            None.
        target: of a symbolic link; None: it cannot be read.
        times: of access, modification and change, in nanoseconds since the epoch.
        known: the number of node ids by which the kernel refers to it.
        up: the inode number of a directory in which it was found.
    """

    __slots__ = (
        *("attr", "blocks", "gid", "ino", "known", "mode", "nlink", "nodeid", "place", "rdev"),
        *("sections", "size", "stored", "target", "times", "uid", "up", "zisofs", "_nocompress"),
    )

    def __init__(
        self, place: Place, block_size: int, records: Sequence[Record], options: Options
    ) -> None:
        record = records[0]
        self.place = place
        self.ino = number(place, block_size)
        self.nodeid = self.known = 0
        self.up = self.ino
        self.sections = [(each.extent, each.size) for each in records[:MOST_SECTIONS]]
        size = sum(each.size for each in records)
        if options.cruft:
            size &= _CRUFT
        if record.gap:  # the kernel does not read interleaved files
            size = 0
        self.size = self.stored = size
        self.blocks = -(-size // _BLOCK)
        kind = stat.S_IFDIR if record.is_dir else stat.S_IFREG
        mode = options.dmode if record.is_dir else options.mode
        self.mode = kind | (_PERMISSIONS if mode is None else mode)
        self.nlink, self.uid, self.gid, self.rdev = 1, 0, 0, 0
        moment = nanoseconds(record.date)
        self.times = moment, moment, moment
        self.zisofs: tuple[int, int] | None = None
        self.target: bytes | None = None
        self.attr: Attr | None = None
        self._nocompress = options.nocompress

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def compressed(self, algorithm: bytes, header: int, shift: int, size: int) -> None:
        """Apply a field ZF: the file is compressed."""
        if self._nocompress or algorithm != rock.ZISOFS or shift > rock.LARGEST_SHIFT:
            return
        self.zisofs = header, shift
        self.size = size

    def relocate(self, extent: int, find: Callable[[int], Inode]) -> None:
        """Apply a field CL: the inode stands for the directory at ``extent``.

        Raises:
            OSError: that directory cannot be read.
        """
        self.sections = [(extent, self.stored)]
        other = find(extent)
        self.sections = [(extent, other.stored)]
        self.mode, self.nlink, self.rdev = other.mode, other.nlink, other.rdev
        self.uid, self.gid, self.times = other.uid, other.gid, other.times
        self.size, self.stored, self.blocks = other.size, other.stored, other.blocks

    def override(self, options: Options) -> None:
        """Apply the options that override Rock Ridge."""
        self.uid = self.uid if options.uid is None else options.uid
        self.gid = self.gid if options.gid is None else options.gid
        if not options.overriderockperm:
            return
        if self.is_dir and options.dmode is not None:
            self.mode = stat.S_IFDIR | options.dmode
        elif stat.S_ISREG(self.mode) and options.mode is not None:
            self.mode = stat.S_IFREG | options.mode

    def attributes(self, block_size: int) -> Attr:
        """Return the attributes for the kernel."""
        if self.attr is None:
            self.attr = Attr(
                *(self.ino, self.size, self.mode, self.nlink, self.uid, self.gid),
                encode_dev(os.major(self.rdev), os.minor(self.rdev)),
                self.times,
                block_size,
                self.blocks,
            )
        return self.attr


def number(place: Place, block_size: int) -> int:
    """Return the inode number for the place of a record."""
    block, offset = place
    return block << block_size.bit_length() - 1 - _SMALL | offset >> _SMALL
