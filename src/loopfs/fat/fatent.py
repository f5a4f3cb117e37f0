"""The file allocation table (fs/fat/fatent.c).

Entries are read in chunks of 16,384, as arrays of numbers. For every entry size a chunk is a
whole number of sectors. Only some chunks are kept in memory, so that the table of a large volume
needs no more memory than that of a small one.
"""

from __future__ import annotations

from array import array

from loopfs.fat.boot import FAT_START_ENT, Geometry
from loopfs.fat.cache import Runs
from loopfs.fat.errors import Damaged
from loopfs.file_device import Device

CHUNK_BITS = 14
CHUNK = 1 << CHUNK_BITS
_WITHIN = CHUNK - 1
_KEPT = 256  # chunks in memory, of at most 64 KiB each
_MOST_AT_ONCE = 64 << 10  # bytes of the table in one write
_HIGH = 0xF0000000  # the reserved bits of a FAT32 entry, which must be preserved
_LOW_NIBBLES = bytes(range(16))

_END = {12: 0xFF8, 16: 0xFFF8, 32: 0x0FFFFFF8}


class Table:
    """The table. Changes are in memory until :meth:`flush`, which can be repeated if it fails.

    Args:
        following: where to look for a free cluster first.
    Raises:
        OSError: an error of the device.
    """

    def __init__(self, device: Device, shape: Geometry, following: int | None) -> None:
        self._device = device
        self._bits = shape.bits
        self._fats = shape.fats
        self._sector = shape.sector
        self.limit = shape.clusters + FAT_START_ENT  # the number of the last cluster + 1
        # The mark of a bad cluster (0xFF7) ends a chain, too.
        self._last = _END[shape.bits] - 1
        self.end = _END[shape.bits] | 7
        self._code = "I" if shape.bits == 32 else "H"
        self._width = 4 if shape.bits == 32 else 2
        self._count = -(-self.limit // CHUNK)
        self._chunks: dict[int, array[int]] = {}
        self._high: dict[int, dict[int, int]] = {}  # reserved bits, by chunk and entry
        self._free_in = array("i", [-1]) * self._count  # free entries by chunk; -1: not counted
        self._dirty: set[int] = set()  # sectors of the table
        self.next = following if following is not None and following < self.limit else 2
        self.free: int | None = None  # the number of free clusters, when it has been counted

    # --- chunks ----------------------------------------------------------------

    def _chunk(self, number: int) -> array[int]:
        chunk = self._chunks.get(number)
        if chunk is None:
            chunk = self._read(number)
            self._make_room()
            self._chunks[number] = chunk
        return chunk

    def _make_room(self) -> None:
        if self._dirty:  # in the middle of a change; flush() calls this again
            return
        for number in list(self._chunks)[: max(len(self._chunks) - _KEPT + 1, 0)]:
            del self._chunks[number]
            self._high.pop(number, None)

    def _read(self, number: int) -> array[int]:
        first, last = number * CHUNK, min((number + 1) * CHUNK, self.limit)
        begin, end = first * self._bits // 8, (last * self._bits + 7) // 8
        raw = self._device.read(self._fats[0] + begin, end - begin)
        chunk = array(self._code)
        if self._bits == 12:
            chunk.extend(unpack12(raw, last - first))
        else:
            if self._bits == 32 and raw[3::4].translate(None, _LOW_NIBBLES):
                raw = self._without_high(number, raw)
            chunk.frombytes(raw)
        free = chunk.count(0) - (chunk[:FAT_START_ENT].count(0) if number == 0 else 0)
        self._free_in[number] = free
        return chunk

    def _without_high(self, number: int, raw: bytes) -> bytes:
        entries = array("I", raw)
        high = self._high[number] = {
            at: entry & _HIGH for at, entry in enumerate(entries) if entry & _HIGH
        }
        for at in high:
            entries[at] &= ~_HIGH
        return entries.tobytes()

    # --- chains ------------------------------------------------------------------

    def runs(self, first: int, most: int) -> Runs:
        """Return the chain that begins with cluster ``first``.

        Args:
            most: the largest valid length, in clusters.
        Raises:
            Damaged: the chain is longer, contains a loop, or refers to an invalid cluster.
        """
        runs, total, limit = Runs(), 0, self.limit
        most = min(most, limit)
        while True:
            if not FAT_START_ENT <= first < limit:
                raise Damaged(f"cluster {first} in a chain does not exist")
            cluster = first
            while True:
                chunk = self._chunks.get(cluster >> CHUNK_BITS)
                if chunk is None:
                    chunk = self._chunk(cluster >> CHUNK_BITS)
                following = chunk[cluster & _WITHIN]
                cluster += 1
                if following != cluster:
                    break
                if cluster >= limit:
                    raise Damaged("a chain continues beyond the last cluster")
            total += cluster - first
            if total > most:
                raise Damaged(f"the chain with cluster {first} is too long, or a loop")
            runs.append(first, cluster - first)
            if following >= self._last:
                return runs
            first = following

    def set(self, cluster: int, value: int) -> None:
        """Link a cluster in use to another one, or make it the last of its chain."""
        self._chunk(cluster >> CHUNK_BITS)[cluster & _WITHIN] = value
        self._touch(cluster, 1)

    def _touch(self, first: int, count: int) -> None:
        begin = first * self._bits // 8 // self._sector
        end = ((first + count) * self._bits - 1) // 8 // self._sector
        self._dirty.update(range(begin, end + 1))

    # --- allocating and freeing -------------------------------------------------

    def count_free(self) -> int:
        """Return the number of free clusters. It is counted once; the table is not kept for it."""
        if self.free is None:
            for number in range(self._count):
                if self._free_in[number] < 0:
                    self._read(number)
                    self._high.pop(number, None)
            self.free = sum(self._free_in)
        return self.free

    def free_runs(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the free runs from cluster ``first`` to ``last`` (included): (cluster, count)."""
        out: list[tuple[int, int]] = []
        for number in range(first >> CHUNK_BITS, min(last >> CHUNK_BITS, self._count - 1) + 1):
            chunk, base = self._chunk(number), number * CHUNK
            at = max(first - base, 0)
            while (at := _index(chunk, at)) < len(chunk) and base + at <= last:
                count = min(self._zeros(chunk, at, len(chunk)), last - base - at + 1)
                if out and sum(out[-1]) == base + at:
                    out[-1] = out[-1][0], out[-1][1] + count
                else:
                    out.append((base + at, count))
                at += count
        return out

    def allocate(self, count: int) -> Runs:
        """Allocate at most ``count`` clusters as a terminated chain, after the last allocation."""
        out, position, parts = Runs(), self.next, self._count + 1
        while count and parts:
            number, at = position >> CHUNK_BITS, position & _WITHIN
            if number == 0:
                at = max(at, FAT_START_ENT)
            if self._free_in[number]:  # some, or unknown
                chunk = self._chunk(number)
                at = _index(chunk, at)
            else:
                at = CHUNK
            if at >= min(CHUNK, self.limit - number * CHUNK):
                following = number + 1
                position = following * CHUNK if following < self._count else FAT_START_ENT
                parts -= 1
                continue
            got = self._take(number, at, count)
            first = number * CHUNK + at
            if out.total:
                self.set(out.last, first)
            out.append(first, got)
            count -= got
            position = first + got if first + got < self.limit else FAT_START_ENT
            self.next = position
        return out

    def _take(self, number: int, at: int, most: int) -> int:
        chunk = self._chunk(number)
        got, first = self._zeros(chunk, at, most), number * CHUNK + at
        chunk[at : at + got] = array(self._code, range(first + 1, first + got + 1))
        chunk[at + got - 1] = self.end
        self._touch(first, got)
        self._free_in[number] -= got
        if self.free is not None:
            self.free -= got
        return got

    def _zeros(self, chunk: array[int], at: int, most: int) -> int:
        """Return how many consecutive entries from ``at`` on are free, up to ``most``."""
        piece = chunk[at : at + most].tobytes()
        return (len(piece) - len(piece.lstrip(b"\0"))) // self._width

    def release(self, runs: Runs) -> None:
        """Free clusters; one that is free already (in a damaged image) stays free."""
        for begin, length in runs:
            first, count = begin, length
            while count:
                number, at = first >> CHUNK_BITS, first & _WITHIN
                chunk = self._chunk(number)
                here = min(count, CHUNK - at)
                gained = here - chunk[at : at + here].count(0)
                chunk[at : at + here] = array(self._code, bytes(here * self._width))
                self._touch(first, here)
                self._free_in[number] += gained
                if self.free is not None:
                    self.free += gained
                first, count = first + here, count - here

    # --- writing -----------------------------------------------------------------

    def flush(self) -> None:
        """Write the changed sectors to all copies of the table."""
        if not self._dirty:
            return
        dirty = sorted(self._dirty)
        begin = dirty[0]
        for sector, following in zip(dirty, [*dirty[1:], -1], strict=True):
            if following == sector + 1 and (following - begin) * self._sector < _MOST_AT_ONCE:
                continue
            raw = self._packed(begin * self._sector, (sector + 1) * self._sector)
            for place in self._fats:
                self._device.write(place + begin * self._sector, raw)
            begin = following
        self._dirty.clear()
        self._make_room()

    def _packed(self, begin: int, end: int) -> bytes:
        """Return bytes ``begin`` to ``end`` of the table, or up to the end of the last entry."""
        if self._bits == 12:
            # An entry can span two sectors. FAT12 has a single chunk.
            return pack12(self._chunk(0))[begin : min(end, (self.limit * 12 + 7) // 8)]
        first, last = begin // self._width, min(end // self._width, self.limit)
        out = b""
        for number in range(first >> CHUNK_BITS, (last - 1 >> CHUNK_BITS) + 1):
            base = number * CHUNK
            part = self._chunk(number)[max(first - base, 0) : last - base]
            if high := self._high.get(number):
                begin_at = max(first - base, 0)
                for at in range(len(part)):
                    part[at] |= high.get(begin_at + at, 0)
            out += part.tobytes()
        return out


def _index(chunk: array[int], at: int) -> int:
    """Return the index of the next free entry; the chunk's length if there is none."""
    try:
        return chunk.index(0, at)
    except ValueError:
        return len(chunk)


def unpack12(raw: bytes, count: int) -> list[int]:
    """Decode ``count`` entries of 12 bits; three bytes hold two."""
    raw += bytes(-len(raw) % 3)
    out: list[int] = []
    for at in range(0, len(raw), 3):
        both = raw[at] | raw[at + 1] << 8 | raw[at + 2] << 16
        out += both & 0xFFF, both >> 12
    return out[:count]


def pack12(entries: array[int]) -> bytes:
    """The inverse of :func:`unpack12`. The four bits after an odd last entry are 0."""
    values = iter([*entries, 0] if len(entries) % 2 else entries)
    return b"".join(
        (a | b << 12).to_bytes(3, "little") for a, b in zip(values, values, strict=True)
    )
