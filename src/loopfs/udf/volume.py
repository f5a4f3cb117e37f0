"""A volume: its inodes, its directories and the data of its files."""

from __future__ import annotations

import errno
import stat
import struct
from bisect import bisect_right
from functools import cached_property

from loopfs.fuse.fixed_tree import LONGEST_LINK, MOST_ENTRIES, Listing, Listings, Place
from loopfs.lean import TYPE_CHECKING
from loopfs.udf import cs0, icb, recognition, tag
from loopfs.udf.errors import damaged, invalid, refused
from loopfs.udf.icb import CONTINUED, EMBEDDED, RECORDED, Extent, Inode
from loopfs.udf.maps import Maps, identify_entry
from loopfs.udf.partition import MOST_BLOCKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopfs.file_device import Device
    from loopfs.udf.options import Options

# Limits, whatever an image contains.
MOST_BYTES = 64 << 20  # of a directory
MOST_EXTENTS = 1 << 17  # of a file
_MOST_INDIRECT = 1024  # entries that refer to another entry
_STRATEGY, _LEADING = struct.Struct("<20xH"), 4096
_LONG_AD = struct.Struct("<IIH")  # bytes, block, partition
_ROOT_AT = 400  # offset in a file set descriptor
_INDIRECT_AT = 36
_BITMAP_BYTES, _BITMAP_AT = struct.Struct("<20xI"), 24
_AED = struct.Struct("<20xI")  # bytes of allocation descriptors
_AED_LENGTH = 24
# Characteristics, length of the name, extent, block and partition; length of implementation use.
_FID = struct.Struct("<18xBBIIH6xH")
_HIDDEN, _DELETED, _PARENT = 1, 4, 8
_EUCLEAN = errno.EUCLEAN
_COMPONENT = struct.Struct("<BB2x")


class Volume:
    """The filesystem on a device.

    Raises:
        OSError: EINVAL: it is not UDF; EIO: the root directory cannot be read.
    """

    def __init__(self, device: Device, options: Options) -> None:
        self.device = device
        self.options = options
        self.described = recognition.find(device, options)
        self.block_size = self.described.block_size
        self._listings = Listings(MOST_ENTRIES)
        self._blocks = recognition.Blocks(device, self.block_size)
        maps = Maps(self.described, self._blocks, self._inode, self.read, self.extents)
        self._partitions = maps.partitions  # filled by read()
        try:
            maps.read()
        except OSError as problem:
            raise invalid("the partitions cannot be read") from problem
        ident, raw = self._entry(self.described.file_set)
        if ident != tag.FILE_SET:
            raise invalid("there is no file set")
        _, block, partition = _LONG_AD.unpack_from(raw, _ROOT_AT)
        self.root = self.inode((partition, block))
        if not self.root.is_dir:
            raise invalid("the root is not a directory")
        main = self._partitions[self.described.file_set[0]]
        assert main is not None
        self.blocks = main.length

    # --- blocks ------------------------------------------------------------------

    def place(self, partition: int, block: int) -> tuple[int, int]:
        """Return where a block is on the device, and how many follow it. Raises OSError EIO."""
        if partition < len(self._partitions):
            found = self._partitions[partition]
            if found is not None:
                return found.run(block)
        raise damaged()

    def _entry(self, place: Place, offset: int = 0) -> tuple[int, bytes]:
        """Return the tag identifier of a block, and the block."""
        partition, block = place
        raw = self._blocks.read(self.place(partition, block + offset)[0])
        return identify_entry(raw, block + offset & 0xFFFFFFFF), raw

    @cached_property
    def free_by_bitmap(self) -> int:
        """Blocks that are free by the bitmap of the partition (udf_count_free_bitmap); 0 without
        one."""
        partition, count = self.described.file_set[0], 0
        main = self._partitions[partition]
        if main is None or main.bitmap is None:
            return 0
        try:
            ident, raw = self._entry((partition, main.bitmap))
            if ident != tag.SPACE_BITMAP:
                return 0
            (left,) = _BITMAP_BYTES.unpack_from(raw)
            left, part = min(left, -(-main.length // 8)), raw[_BITMAP_AT:]
            for block in range(main.bitmap + 1, MOST_BLOCKS):
                count += int.from_bytes(part[:left], "little").bit_count()
                left -= len(part)
                if left <= 0:
                    break
                part = self._blocks.read(self.place(partition, block)[0])
        except OSError:  # as far as it can be read
            return count
        return count

    # --- inodes ------------------------------------------------------------------

    def number(self, place: Place) -> int:
        """Return the inode number: the block on the device; 0 if the place is not mapped."""
        try:
            return self.place(*place)[0]
        except OSError:
            return 0

    def inode(self, place: Place) -> Inode:
        """Read the inode that the entry at ``place`` describes.

        Raises:
            OSError: EIO, ESTALE.
        """
        inode = self._inode(*place, hidden=False)
        if stat.S_ISLNK(inode.mode):
            inode.target = self._target(inode)
        return inode

    def _inode(self, partition: int, block: int, *, hidden: bool = True) -> Inode:
        place = partition, block
        for _ in range(_MOST_INDIRECT):
            ident, raw = self._entry(place)
            if ident not in (tag.FILE_ENTRY, tag.EXTENDED_FILE_ENTRY):
                raise damaged()
            if (following := self._follows(place, raw)) is None:
                ino = self.place(*place)[0]
                return Inode(raw, (partition, block), ino, self.options, hidden=hidden)
            place = following
        raise damaged()

    def _follows(self, place: Place, raw: bytes) -> Place | None:
        """Return the place of an entry's replacement (strategy 4096), from the next block."""
        (strategy,) = _STRATEGY.unpack_from(raw)
        if strategy == 4:
            return None
        if strategy != _LEADING:
            raise damaged()
        try:
            ident, indirect = self._entry(place, 1)
        except OSError:
            return None
        length, block, partition = _LONG_AD.unpack_from(indirect, _INDIRECT_AT)
        if ident != tag.INDIRECT_ENTRY or not length:
            return None
        return partition, block

    # --- extents -----------------------------------------------------------------

    def extents(self, inode: Inode) -> list[Extent]:
        """Return a file's extents; adjacent ones are merged.

        Raises:
            OSError: EIO: their descriptors are damaged; EFBIG: there are too many.
        """
        if inode.extents is None:
            found: list[Extent] = []
            for each in self._described(inode):
                if found and _continues(found[-1], each, self.block_size):
                    before = found.pop()
                    found.append(before._replace(length=before.length + each.length))
                else:
                    found.append(each)
                if len(found) > MOST_EXTENTS:
                    raise refused(errno.EFBIG)
            inode.extents = found
            at = 0
            for each in found:
                inode.starts.append(at)
                at += each.length
        return inode.extents

    def _described(self, inode: Inode) -> Iterator[Extent]:
        if inode.kind == EMBEDDED:
            return
        raw, partition = inode.descriptors, inode.place[0]
        seen: set[Place] = set()
        while True:
            following: Place | None = None
            for each in icb.descriptors(raw, inode.kind, partition):
                if each.kind == CONTINUED:
                    following = (each.partition, each.block) if each.length else None
                    break
                if each.length:
                    yield each
            if following is None:
                return
            if following in seen or len(seen) > MOST_EXTENTS:
                raise damaged()
            seen.add(following)
            ident, block = self._entry(following)
            (length,) = _AED.unpack_from(block)
            if ident != tag.ALLOCATION_EXTENT or _AED_LENGTH + length > len(block):
                raise damaged()
            raw, partition = block[_AED_LENGTH : _AED_LENGTH + length], following[0]

    def read(self, inode: Inode, offset: int, size: int) -> bytes:
        """Return bytes of a file, up to its end; zeros where nothing is recorded.

        Raises:
            OSError: EIO.
        """
        end = min(offset + size, inode.size)
        if inode.kind == EMBEDDED:
            return inode.descriptors[offset:end]
        if offset >= end:
            return b""
        extents = self.extents(inode)
        index = max(bisect_right(inode.starts, offset) - 1, 0)
        out: list[bytes] = []
        while offset < end:
            if index >= len(extents):
                out.append(bytes(end - offset))
                break
            begin, each = inode.starts[index], extents[index]
            count = min(begin + each.length, end) - offset
            if count <= 0:
                index += 1
                continue
            out.append(self._piece(each, offset - begin, count))
            offset += len(out[-1])
        return out[0] if len(out) == 1 else b"".join(out)

    def _piece(self, extent: Extent, offset: int, count: int) -> bytes:
        """Return the bytes of an extent from ``offset`` on that are consecutive on the device."""
        if extent.kind != RECORDED:
            return bytes(count)
        skip, within = divmod(offset, self.block_size)
        block, follow = self.place(extent.partition, extent.block + skip)
        count = min(count, follow * self.block_size - within)
        return self.device.read(block * self.block_size + within, count)

    # --- links ---------------------------------------------------------------------

    def _target(self, inode: Inode) -> bytes | None:
        """Return the target of a symbolic link (4/14.16); None: it cannot be read."""
        if inode.size > self.block_size:
            return None
        try:
            raw = self.read(inode, 0, inode.size)
        except OSError:
            return None
        out, at = b"", 0
        while at + _COMPONENT.size <= len(raw):
            kind, length = _COMPONENT.unpack_from(raw, at)
            name = raw[at + 4 : at + 4 + length]
            at += _COMPONENT.size
            if kind == 1 and length:
                at += length
            elif kind in (1, 2):
                out = b"/"
            elif kind == 3:
                out += b"../"
            elif kind == 4:
                out += b"./"
            elif kind == 5:
                at += length
                part = cs0.decode(name, self.options.charset)
                if part is None or at > len(raw):
                    return None
                out += part + b"/"
        out = out[:-1] if len(out) > 1 else out
        return out if len(out) <= LONGEST_LINK else None

    # --- directories ---------------------------------------------------------------

    def fold(self, name: bytes) -> bytes:
        """Return the name itself: there are no other spellings."""
        return name

    def let_go(self, inode: Inode) -> None:
        """Drop a directory's entries from memory."""
        self._listings.drop(inode.place)

    def listing(self, inode: Inode) -> Listing:
        """Return the entries of a directory, read if they are not in memory.

        Raises:
            OSError: EIO.
        """
        if (content := self._listings.get(inode.place)) is None:
            content = self._scan(inode)
            self._listings.hold(inode.place, content)
        return content

    def _scan(self, inode: Inode) -> Listing:
        content = Listing()
        data = self.read(inode, 0, min(inode.size, MOST_BYTES))
        at = 0
        while at < len(data):
            if at + _FID.size > len(data) or data[at : at + 2] != _FID_TAG:
                content.damage = _EUCLEAN
                return content
            flags, length, _, block, partition, use = _FID.unpack_from(data, at)
            begin = at + _FID.size + use
            end = begin + length
            if end > len(data):
                content.damage = _EUCLEAN
                return content
            at += (end - at + 3) & ~3
            self._enter(content, flags, data[begin:end], (partition, block))
        if inode.size > MOST_BYTES:
            content.damage = errno.EIO
        return content

    def _enter(self, content: Listing, flags: int, raw: bytes, place: Place) -> None:
        left_out = 0 if self.options.unhide else _HIDDEN
        left_out |= 0 if self.options.undelete else _DELETED
        if flags & (left_out | _PARENT):
            return
        name = cs0.decode(raw, self.options.charset)
        if name is not None:
            content.add(name, name, place, MOST_ENTRIES)


_FID_TAG = struct.pack("<H", tag.FILE_IDENTIFIER)


def _continues(before: Extent, each: Extent, block_size: int) -> bool:
    if before.kind != each.kind or before.length % block_size:
        return False
    if each.kind != RECORDED:
        return True
    follows = before.block + before.length // block_size
    return (before.partition, follows) == (each.partition, each.block)
