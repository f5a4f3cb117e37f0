"""Finding a UDF volume and its descriptors: recognition sequence, anchor, descriptors."""

from __future__ import annotations

import struct

from loopfs.lean import TYPE_CHECKING, NamedTuple
from loopfs.udf import tag
from loopfs.udf.errors import damaged, invalid
from loopfs.udf.options import BLOCK_SIZES

if TYPE_CHECKING:
    from loopfs.file_device import Device
    from loopfs.udf.options import Options

_FIRST, _BEYOND, _STEP = 32768, 0x800000, 2048  # bytes: the volume recognition sequence
_NSR = (b"NSR02", b"NSR03")
_OTHERS = (b"CD001", b"BEA01", b"BOOT2", b"CDW02")
_ANCHOR, _OPEN_ANCHOR = 256, 512  # blocks
_BEFORE_LAST = (0, 1, -1, 2, 150, 152)  # offsets at which the last block may be
_MOST_POINTERS, _MOST_DESCRIPTORS = 64, 4096
_MOST_INTEGRITY = 1000

_EXTENT = struct.Struct("<II")  # bytes, block
_SEQUENCES = struct.Struct("<16xIIII")
_NUMBER = struct.Struct("<16xI")
# Number; length and place of the bitmap of unallocated space; first block, blocks.
_PARTITION = struct.Struct("<22xH40xII116xII")
# Block size; file set; bytes and number of the partition maps; integrity sequence.
_LOGICAL = struct.Struct("<212xI32x4xIH6xII160xII")
_MAPS_AT = 440
_INTEGRITY = struct.Struct("<32xII32xII")  # next; partitions, bytes of implementation use
_FREE_AT = 80
_IMPLEMENTATION = struct.Struct("<32xIIH")  # files, directories, least revision to read
_NEWEST = 0x0260


class PartitionInfo(NamedTuple):
    """A partition descriptor; in blocks. ``bitmap`` is the first block of the bitmap of free blocks
    within the partition, or None."""

    number: int
    root: int
    length: int
    bitmap: int | None


class Integrity(NamedTuple):
    """The logical volume integrity descriptor: free blocks of each partition, number of files and
    directories."""

    free: tuple[int, ...]
    files: int


class Described(NamedTuple):
    """The descriptors of a volume.

    Attributes:
        file_set: its partition and block.
        maps: the partition maps, not decoded.
        last: the last block of the device, as far as is known.
    """

    block_size: int
    partitions: tuple[PartitionInfo, ...]
    maps: tuple[bytes, ...]
    file_set: tuple[int, int]
    integrity: Integrity | None
    last: int


class Blocks:
    """A device, read in blocks of a size."""

    def __init__(self, device: Device, size: int) -> None:
        self._device = device
        self.size = size
        self.count = device.size // size

    def read(self, block: int) -> bytes:
        """Return a block. Raises OSError EIO."""
        return self._device.read(block * self.size, self.size)

    def tagged(self, block: int, location: int | None = None) -> tuple[int, bytes] | None:
        """Return a block and its tag identifier; None: it has no valid tag, or is unreadable."""
        try:
            raw = self.read(block)
        except OSError:
            return None
        ident = tag.identify(raw, block if location is None else location)
        return None if ident is None else (ident, raw)


def find(device: Device, options: Options) -> Described:
    """Find the descriptors, with each possible block size.

    Raises:
        OSError: EINVAL: there is no UDF volume; EIO.
    """
    problem: OSError | None = None
    for size in (options.bs,) if options.bs else BLOCK_SIZES:
        blocks = Blocks(device, size)
        if not options.novrs and not _is_recognized(blocks, options):
            problem = problem or invalid("there is no volume recognition sequence")
            continue
        for block, last in _anchors(blocks, options):
            try:
                if (found := _described(blocks, block, last)) is not None:
                    return found
            except OSError as failed:
                problem = failed
    raise problem or invalid("there is no anchor")


def _is_recognized(blocks: Blocks, options: Options) -> bool:
    start = options.session * blocks.size
    for at in range(_FIRST + start, _BEYOND, _STEP):
        try:
            raw = blocks.read(at // blocks.size)[at % blocks.size :]
        except OSError:
            return at == _FIRST + start  # it may be a disc that is not closed
        name = raw[1:6]
        if name in _NSR:
            return True
        # A sector of 4096 bytes may have one descriptor, at its start, or two.
        if name not in _OTHERS and at % blocks.size == 0:
            return False
    return False


def _anchors(blocks: Blocks, options: Options) -> list[tuple[int, int]]:
    """Return where anchors may be, each with the last block of the device in that case."""
    last = options.lastblock or blocks.count - 1
    out = [(options.anchor, last)] if options.anchor else []
    out.append((options.session + _ANCHOR, last))
    for less in _BEFORE_LAST:
        block = last - less
        if 0 <= block < blocks.count:
            out += [(block, block), (block - _ANCHOR, block)]
    out.append((options.session + _OPEN_ANCHOR, last))
    return [each for each in out if each[0] >= 0]


def _described(blocks: Blocks, anchor: int, last: int) -> Described | None:
    found = blocks.tagged(anchor)
    if found is None or found[0] != tag.ANCHOR:
        return None
    length, block, spare_length, spare = _SEQUENCES.unpack_from(found[1])
    for extent in ((length, block), (spare_length, spare)):
        if (described := _sequence(blocks, *extent, last)) is not None:
            return described
    return None


def _sequence(blocks: Blocks, length: int, block: int, last: int) -> Described | None:
    """Read the descriptor with the highest number of each kind; None: one is missing."""
    primary = False
    logical: tuple[int, bytes] = -1, b""
    partitions: dict[int, tuple[int, PartitionInfo]] = {}
    end, pointers = block + length // blocks.size, 0
    for _ in range(_MOST_DESCRIPTORS):
        found = blocks.tagged(block) if block <= end else None
        if found is None or found[0] == tag.TERMINATING:
            break
        ident, raw = found
        (order,) = _NUMBER.unpack_from(raw)
        block += 1
        if ident == tag.PRIMARY:
            primary = True
        elif ident == tag.POINTER:
            pointers += 1
            if pointers > _MOST_POINTERS:
                raise damaged()
            length, block = _EXTENT.unpack_from(raw, 20)
            end = block + length // blocks.size - 1
        elif ident == tag.LOGICAL and order >= logical[0]:
            logical = order, raw
        elif ident == tag.PARTITION:
            number, has_bitmap, bitmap, root, count = _PARTITION.unpack_from(raw)
            info = PartitionInfo(number, root, count, bitmap if has_bitmap else None)
            if order >= partitions.get(info.number, (0, info))[0]:
                partitions[info.number] = order, info
    if not primary or not logical[1]:
        return None
    infos = tuple(info for _, info in partitions.values())
    return _logical(blocks, logical[1], infos, last)


def _logical(
    blocks: Blocks, raw: bytes, partitions: tuple[PartitionInfo, ...], last: int
) -> Described:
    _, block, partition, length, count, integrity_length, integrity = _LOGICAL.unpack_from(raw)
    if _MAPS_AT + length > len(raw):
        raise damaged()
    maps: list[bytes] = []
    at = _MAPS_AT
    while len(maps) < count and at + 2 <= _MAPS_AT + length:
        size = raw[at + 1]
        if size < 6:
            raise damaged()
        maps.append(raw[at : at + size])
        at += size
    told = _integrity(blocks, integrity_length, integrity) if integrity_length else None
    return Described(blocks.size, partitions, tuple(maps), (partition, block), told, last)


def _integrity(blocks: Blocks, length: int, block: int) -> Integrity | None:
    """Return the last integrity descriptor of a sequence.

    Raises:
        OSError: EINVAL: it requires a UDF revision that is not supported.
    """
    final = b""
    for _ in range(_MOST_INTEGRITY):
        found = blocks.tagged(block) if length > 0 else None
        if found is None or found[0] != tag.INTEGRITY:
            break
        final = found[1]
        length, block = length - blocks.size, block + 1
        following, place = _EXTENT.unpack_from(final, 32)
        if following and length <= 0:
            length, block = following, place
    if not final:
        return None
    _, _, count, use = _INTEGRITY.unpack_from(final)
    at = _FREE_AT + 8 * count
    if use < _IMPLEMENTATION.size or at + _IMPLEMENTATION.size > len(final):
        raise invalid("the integrity descriptor is damaged")
    free = struct.unpack_from(f"<{count}I", final, _FREE_AT)
    files, directories, revision = _IMPLEMENTATION.unpack_from(final, at)
    if revision > _NEWEST:
        raise invalid(f"UDF {revision >> 8:x}.{revision & 0xFF:02x} is not supported")
    return Integrity(free, files + directories)
