"""Volume descriptors: where the root directory is (ECMA-119 8)."""

from __future__ import annotations

import struct

from loopfs.iso9660.errors import invalid
from loopfs.iso9660.joliet import ESCAPE, LEVELS
from loopfs.iso9660.record import SECTOR
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loopfs.file_device import Device
    from loopfs.iso9660.options import Options

_FIRST, _BEYOND = 16, 100  # the sectors of a session that can hold descriptors
_LENGTH = 512  # bytes read of each descriptor
_PRIMARY, _SUPPLEMENTARY, _END = 1, 2, 255
_ID, _HIGH_SIERRA_ID = b"CD001", b"CDROM"
_ESCAPE_OFFSET = 88
# Blocks of the volume; block size; the root's length of extended attributes, and its extent.
_ISO = struct.Struct("<80xI44xH27xBI")
_HIGH_SIERRA = struct.Struct("<88xI44xH43xBI")


class Descriptor(NamedTuple):
    """A volume descriptor; ``root`` is the first block of the root directory."""

    blocks: int
    block_size: int
    root: int


class Found(NamedTuple):
    """The descriptors of a session.

    Attributes:
        main: the descriptor of the volume.
        joliet: the first block of Joliet's root directory; None: there is none.
    """

    main: Descriptor
    joliet: int | None
    high_sierra: bool


def find(device: Device, options: Options) -> Found:
    """Find the descriptors.

    Raises:
        OSError: EINVAL: there is no such filesystem, or its block size is invalid.
    """
    found = _search(device, options)
    size = found.main.block_size
    if size not in (512, 1024, 2048) or size < options.block:
        raise invalid(f"a block cannot have {size} bytes")
    return found


def _search(device: Device, options: Options) -> Found:
    primary: Descriptor | None = None
    for sector in range(options.sbsector + _FIRST, options.sbsector + _BEYOND):
        if sector * SECTOR + _LENGTH > device.size:
            raise invalid("the sequence of volume descriptors has no end")
        raw = device.read(sector * SECTOR, _LENGTH)
        kind = raw[0]
        if raw[1:6] != _ID:
            if raw[9:14] == _HIGH_SIERRA_ID:
                if raw[8] != _PRIMARY:
                    break
                return Found(_parsed(_HIGH_SIERRA, raw), None, True)
            continue
        if kind == _END:
            break
        if kind == _PRIMARY and primary is None:
            primary = _parsed(_ISO, raw)
        elif kind == _SUPPLEMENTARY and raw[_ESCAPE_OFFSET:].startswith(ESCAPE):
            known = raw[_ESCAPE_OFFSET + len(ESCAPE)] in LEVELS
            return _chosen(
                primary, _parsed(_ISO, raw) if known and options.joliet else None, options
            )
    return _chosen(primary, None, options)


def _chosen(primary: Descriptor | None, joliet: Descriptor | None, options: Options) -> Found:
    main = primary
    if joliet is not None and (primary is None or not options.rock):
        main = joliet
    if main is None:
        raise invalid("there is no primary volume descriptor")
    return Found(main, joliet.root if joliet is not None else None, False)


def _parsed(layout: struct.Struct, raw: bytes) -> Descriptor:
    blocks, size, extended, extent = layout.unpack_from(raw)
    return Descriptor(blocks, size, extent + extended)
