"""ISO 9660 images made by hand: invalid ones, and without other programs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

SECTOR = 2048
DATE = bytes((124, 2, 29, 13, 45, 59, 4))  # 29 February 2024, 13:45:59, an hour east
HIDDEN, DIRECTORY, ASSOCIATED, MULTI_EXTENT = 1, 2, 4, 0x80

Area = bytes | Callable[[], bytes]


def both(number: int, size: int = 4) -> bytes:
    """A number in both orders."""
    return number.to_bytes(size, "little") + number.to_bytes(size, "big")


@dataclass
class File:
    """A record, and the data of a file or of a continuation area.

    Attributes:
        name: as it is stored.
        use: the system use area; a function is called when all have their place.
        extent: the first block; given by :func:`image`.
        size: bytes that the record says; those of the data when it is None.
    """

    name: bytes
    data: bytes = b""
    flags: int = 0
    use: Area = b""
    date: bytes = DATE
    gap: int = 0
    size: int | None = None
    extent: int = 0
    fixed: bool = False  # the extent is what it is

    def length(self) -> int:
        return len(self.data)

    def record(self, name: bytes | None = None, *, use: Area | None = None) -> bytes:
        called, area = self.name if name is None else name, self.use if use is None else use
        raw = area() if callable(area) else area
        head = 33 + len(called)
        size = self.length() if self.size is None else self.size
        body = b"\0" + both(self.extent) + both(size) + self.date
        body += bytes((self.flags, 0, self.gap)) + both(1, 2) + bytes((len(called),)) + called
        body += bytes(head & 1) + raw
        body += bytes((len(body) + 1) & 1)
        return bytes((len(body) + 1,)) + body


@dataclass
class Directory(File):
    """One with records: of its own, of the one above, and ``children``.

    Attributes:
        dot: the system use area of its first record.
    """

    children: list[File] = field(default_factory=list)
    dot: Area = b""
    up: Directory | None = None
    blocks: int = 1

    def length(self) -> int:
        return self.blocks * SECTOR

    def record(self, name: bytes | None = None, *, use: Area | None = None) -> bytes:
        self.flags |= DIRECTORY
        return super().record(name, use=use)

    def packed(self) -> bytes:
        records = [self.record(b"\0", use=self.dot), (self.up or self).record(b"\1", use=b"")]
        return _in_sectors([*records, *(child.record() for child in self.children)])


def _in_sectors(records: Sequence[bytes]) -> bytes:
    out = b""
    for raw in records:
        if len(out) % SECTOR + len(raw) > SECTOR:
            out += bytes(-len(out) % SECTOR)
        out += raw
    return out + bytes(-len(out) % SECTOR)


def _walk(directory: Directory) -> Iterator[File]:
    for child in directory.children:
        yield child
        if isinstance(child, Directory):
            child.up = directory
            yield from _walk(child)


def image(
    root: Directory,
    *,
    joliet: Directory | None = None,
    areas: Sequence[File] = (),
    high_sierra: bool = False,
    primary: bool = True,
) -> bytearray:
    """The image of a tree.

    Args:
        joliet: the root of a second tree, whose names are UCS-2.
        areas: blocks that only system use areas refer to.
    """
    trees = [root, *filter(None, (joliet,))]
    every = [*areas, *(one for tree in trees for one in (tree, *_walk(tree)))]
    for one in every:
        if isinstance(one, Directory):
            one.blocks = len(one.packed()) // SECTOR
    block = 20
    for one in every:
        if not one.fixed:
            one.extent = block
            block += max(-(-one.length() // SECTOR), 1)
    out = bytearray(block * SECTOR)
    for one in every:
        if not one.fixed:
            data = one.packed() if isinstance(one, Directory) else one.data
            out[one.extent * SECTOR : one.extent * SECTOR + len(data)] = data
    descriptors = [_descriptor(1, root, block)] if primary else []
    if high_sierra:
        descriptors = [_high_sierra(root, block)]
    elif joliet is not None:
        descriptors.append(_descriptor(2, joliet, block, b"%/E"))
    descriptors.append(b"\xffCD001\1".ljust(SECTOR, b"\0"))
    for number, raw in enumerate(descriptors, 16):
        out[number * SECTOR : (number + 1) * SECTOR] = raw
    return out


def _descriptor(kind: int, root: Directory, blocks: int, escape: bytes = b"") -> bytes:
    raw = bytearray(SECTOR)
    raw[0:7] = bytes((kind,)) + b"CD001\1"
    raw[80:88] = both(blocks)
    raw[88 : 88 + len(escape)] = escape
    raw[128:132] = both(SECTOR, 2)
    raw[156:190] = root.record(b"\0", use=b"")[:34]
    return bytes(raw)


def _high_sierra(root: Directory, blocks: int) -> bytes:
    raw = bytearray(SECTOR)
    raw[8:15] = b"\1CDROM\1"
    raw[88:96] = both(blocks)
    raw[136:140] = both(SECTOR, 2)
    raw[180:214] = root.record(b"\0", use=b"")[:34]
    return bytes(raw)


# --- system use fields ------------------------------------------------------------


def susp(sig: bytes, body: bytes) -> bytes:
    """A field: signature, length, version, and what it says."""
    return sig + bytes((len(body) + 4, 1)) + body


SP = susp(b"SP", b"\xbe\xef\0")
ER = susp(b"ER", bytes((10, 1, 1, 1)) + b"RRIP_1991Adx")


def px(mode: int, links: int = 1, uid: int = 0, gid: int = 0) -> bytes:
    return susp(b"PX", both(mode) + both(links) + both(uid) + both(gid))


def nm(name: bytes, flags: int = 0) -> bytes:
    return susp(b"NM", bytes((flags,)) + name)


def pn(high: int, low: int) -> bytes:
    return susp(b"PN", both(high) + both(low))


def sl(*components: tuple[int, bytes], flags: int = 0) -> bytes:
    parts = b"".join(bytes((kind, len(text))) + text for kind, text in components)
    return susp(b"SL", bytes((flags,)) + parts)


def tf(flags: int, *dates: bytes) -> bytes:
    return susp(b"TF", bytes((flags,)) + b"".join(dates))


def ce(area: File, offset: int, length: int) -> Callable[[], bytes]:
    return lambda: susp(b"CE", both(area.extent) + both(offset) + both(length))


def cl(directory: File) -> bytes:
    return susp(b"CL", both(directory.extent))


def zf(header: int, shift: int, size: int, algorithm: bytes = b"pz") -> bytes:
    return susp(b"ZF", algorithm + bytes((header, shift)) + both(size))


def zisofs(data: bytes, shift: int = 15) -> bytes:
    """``data`` as it is stored."""
    import zlib

    head = b"\x37\xe4\x53\x96\xc9\xdb\xd6\x07" + struct.pack("<IBBxx", len(data), 4, shift)
    pieces = [data[at : at + (1 << shift)] for at in range(0, len(data), 1 << shift)]
    stored = [zlib.compress(piece) if piece.strip(b"\0") else b"" for piece in pieces]
    at = len(head) + 4 * (len(stored) + 1)
    table = struct.pack("<I", at)
    for piece in stored:
        at += len(piece)
        table += struct.pack("<I", at)
    return head + table + b"".join(stored)
