"""A volume: its inodes, its directories and the data of its files."""

from __future__ import annotations

import errno

from loopfs.fuse.fixed_tree import MOST_ENTRIES, Listing, Listings, Place
from loopfs.iso9660 import descriptor, joliet, names, record
from loopfs.iso9660.errors import invalid, refused
from loopfs.iso9660.inode import MOST_SECTIONS, Inode, number
from loopfs.iso9660.record import DOT, DOTDOT, Record
from loopfs.iso9660.rock import Rock
from loopfs.lean import TYPE_CHECKING
from loopfs.nls import charset

if TYPE_CHECKING:
    from loopfs.file_device import Device
    from loopfs.iso9660.options import Options

# Limits, whatever an image contains.
MOST_BYTES = 64 << 20  # of a directory
_MOST_BLOCKS = 256  # cached
_MOST_EMPTY = 64  # blocks between the records of a file's sections
_EMPTY_ROOT = 3  # the smallest number of records in the root directory of a valid image


class Volume:
    """The filesystem on a device.

    Raises:
        OSError: EINVAL: it is not ISO 9660; EIO: the root directory cannot be read.
    """

    def __init__(self, device: Device, options: Options) -> None:
        self.device = device
        self.options = options
        found = descriptor.find(device, options)
        self.block_size, self.blocks = found.main.block_size, found.main.blocks
        self.high_sierra = found.high_sierra
        self._cached: dict[int, bytes] = {}
        self._listings = Listings(MOST_ENTRIES)
        self._rock = Rock(options.rock and not found.high_sierra, self.block)
        # Joliet's names are used unless there are Rock Ridge's.
        self._charset = None if found.joliet is None else charset(options.iocharset or "utf8")
        self.root = self._root(found)
        if not self.root.is_dir:
            raise invalid("the root is not a directory")
        self.joliet = self._charset is not None
        self.relaxed = (options.check or ("r" if self.joliet else "s")) == "r"

    def _root(self, found: descriptor.Found) -> Inode:
        root = self.inode((found.main.root, 0))
        if found.joliet is None:
            return root
        if self._rock.announced and not self._is_empty(found.main.root):
            self._charset = None
            return root
        self._rock.wanted = False
        return self.inode((found.joliet, 0))

    def _is_empty(self, block: int) -> bool:
        """Return whether a root directory has no files. Some discs have them only in Joliet's."""
        data, at, count = self.block(block), 0, 0
        while count < _EMPTY_ROOT and at < len(data) and data[at]:
            at, count = at + data[at], count + 1
        return count < _EMPTY_ROOT

    # --- bytes -----------------------------------------------------------------

    def block(self, number: int) -> bytes:
        """Return a block. Raises OSError EIO: it is beyond the device, or cannot be read."""
        if (data := self._cached.get(number)) is None:
            data = self.device.read(number * self.block_size, self.block_size)
            if len(self._cached) >= _MOST_BLOCKS:
                self._cached.pop(next(iter(self._cached)))
            self._cached[number] = data
        return data

    def _record(self, block: int, offset: int) -> bytes:
        """Return a record, which may span two blocks. Raises OSError EIO."""
        data = self.block(block)
        raw = data[offset : offset + data[offset]]
        if len(raw) < data[offset]:
            raw += self.block(block + 1)[: data[offset] - len(raw)]
        return raw

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Return stored bytes of a file, up to its end.

        Raises:
            OSError: EIO.
        """
        end = min(offset + size, inode.stored)
        out: list[bytes] = []
        begin = 0
        last = len(inode.sections) - 1
        for index, (extent, length) in enumerate(inode.sections):
            # Every section but the last consists of whole blocks.
            beyond = end if index == last else begin + length // self.block_size * self.block_size
            if begin <= offset < min(beyond, end):
                count = min(beyond, end) - offset
                out.append(self.device.read(extent * self.block_size + offset - begin, count))
                offset += count
            begin = beyond
        if offset < end:
            raise refused(errno.EIO)
        return out[0] if len(out) == 1 else b"".join(out)

    # --- inodes ------------------------------------------------------------------

    def inode(self, place: Place, *, relocated: bool = False) -> Inode:
        """Read the inode that the record at ``place`` describes.

        Raises:
            OSError: EIO.
        """
        records = self._records(place)
        inode = Inode(place, self.block_size, records, self.options)

        def find(extent: int) -> Inode:
            return self.inode((extent, 0), relocated=True)

        self._rock.apply(inode, records[0].raw, None if relocated else find)
        inode.override(self.options)
        return inode

    def _records(self, place: Place) -> list[Record]:
        """Return a file's record, with the records of its further sections."""
        (block, offset), empty = place, 0
        out: list[Record] = []
        while True:
            if offset >= self.block_size:
                block, offset = block + 1, offset - self.block_size
            raw = self._record(block, offset)
            if not raw and out and empty < _MOST_EMPTY:
                block, offset, empty = block + 1, 0, empty + 1
                continue
            if len(raw) < record.HEADER:
                raise refused(errno.EIO)
            parsed = record.parse(raw, high_sierra=self.high_sierra)
            out.append(parsed)
            if not parsed.flags & record.MULTI_EXTENT or len(out) > MOST_SECTIONS:
                return out
            offset += len(raw)

    # --- directories ---------------------------------------------------------------

    def fold(self, name: bytes) -> bytes:
        """Return the same for names that refer to the same file."""
        return names.folded(name, joliet=self.joliet, relaxed=self.relaxed)

    def listing(self, inode: Inode) -> Listing:
        """Return the entries of a directory, read if they are not in memory.

        Raises:
            OSError: EIO.
        """
        if (content := self._listings.get(inode.place)) is None:
            content = self._scan(inode)
            self._listings.hold(inode.place, content)
        return content

    def let_go(self, inode: Inode) -> None:
        """Drop a directory's entries from memory."""
        self._listings.drop(inode.place)

    def number(self, place: Place) -> int:
        """Return the inode number for a place."""
        return number(place, self.block_size)

    def _scan(self, inode: Inode) -> Listing:
        content = Listing()
        data = self.read(inode, 0, min(inode.stored, MOST_BYTES))
        at, first = 0, None
        while at < len(data):
            length = data[at]
            if not length:
                at = (at // record.SECTOR + 1) * record.SECTOR
                continue
            raw = data[at : at + length]
            if len(raw) < length:
                raw = self._last(inode, at, length)
            if length < record.HEADER or length < record.HEADER + raw[record.HEADER - 1]:
                content.damage = errno.EIO
                return content
            parsed = record.parse(raw, high_sierra=self.high_sierra)
            first = self._place(inode, at, parsed) if first is None else first
            if not parsed.flags & record.MULTI_EXTENT:
                self._enter(content, parsed, first)
                first = None
            at += length
        if inode.stored > MOST_BYTES:
            content.damage = errno.EIO
        return content

    def _last(self, inode: Inode, at: int, length: int) -> bytes:
        """Return a record that extends beyond the end of the directory."""
        (extent, _), *more = inode.sections
        if more:
            return bytes(length)
        block, offset = divmod(at, self.block_size)
        return self._record(extent + block, offset)

    def _place(self, directory: Inode, at: int, parsed: Record) -> Place:
        if parsed.is_dir and not self.high_sierra:
            return parsed.extent, 0
        block, offset = divmod(at, self.block_size)
        for extent, length in directory.sections[:-1]:
            if block < length // self.block_size:
                return extent + block, offset
            block -= length // self.block_size
        return directory.sections[-1][0] + block, offset

    def _enter(self, content: Listing, parsed: Record, place: Place) -> None:
        if parsed.name in (DOT, DOTDOT):
            return
        hidden = record.HIDDEN if self.options.hide else 0
        hidden |= 0 if self.options.showassoc else record.ASSOCIATED
        if parsed.flags & hidden:
            return
        if name := self._name(parsed):
            content.add(name, self.fold(name), place, MOST_ENTRIES)

    def _name(self, parsed: Record) -> bytes | None:
        if self._rock.wanted:
            name = self._rock.name(parsed.raw)
            if name != b"":
                return name
        if self._charset is not None:
            return joliet.decode(parsed.name, self._charset)
        if self.options.map == "n":
            return names.normal(parsed.name)
        if self.options.map == "a":
            return names.acorn(parsed.name, parsed.system_use, is_dir=parsed.is_dir)
        return parsed.name
