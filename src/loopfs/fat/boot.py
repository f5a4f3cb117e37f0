"""The boot sector and FSInfo (include/uapi/linux/msdos_fs.h; fs/fat/inode.c: fat_read_bpb()).

The layout is that of Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
"""

from __future__ import annotations

import struct

from loopfs.fat.errors import invalid
from loopfs.lean import NamedTuple

BOOT_SIZE = 512  # bytes used of a boot sector, whatever the sector size is
ENTRY_SIZE = 32
FAT_START_ENT = 2  # the number of the first cluster
STATE_DIRTY = 1
MOST_CLUSTERS = {12: 0xFF4, 16: 0xFFF4, 32: 0x0FFFFFF6}  # by bits of an entry

# From byte 11 on: sector size, sectors per cluster, reserved sectors, FATs, root entries, sectors,
# media, sectors per FAT, (track, heads,) hidden, total sectors.
_BPB = struct.Struct("<HBHBHHBHHHII")
_BPB32 = struct.Struct("<IHHIH")  # sectors per FAT, flags, version, root cluster, info sector
_MIRRORING_OFF, _ACTIVE = 0x80, 0x0F
_SIGNATURES = (0x28, 0x29)  # the fields state and volume id are present

_INFO_SIGNATURES = (0, b"RRaA"), (484, b"rrAa")
INFO_COUNTS = 488  # the offset in FSInfo of the two counts
_INFO = struct.Struct("<II")
_UNKNOWN = 0xFFFFFFFF

# DOS 1.x floppies have no parameters (fat_read_static_bpb()). By total sectors: sectors per
# cluster, root entries, media, sectors per FAT.
_FLOPPIES = {
    320: (1, 64, 0xFE, 1),
    360: (1, 64, 0xFC, 2),
    640: (2, 112, 0xFF, 1),
    720: (2, 112, 0xFD, 2),
}


class Geometry(NamedTuple):
    """The layout of a volume. Sizes and offsets are in bytes.

    Attributes:
        bits: the size of a FAT entry: 12, 16 or 32.
        fats: offsets of the FAT copies in use; the first one is read.
        root_size: the size of the root directory at ``root_at``; 0 with FAT32, where it has
            clusters.
        clusters: the number of clusters; the first has the number 2 and is at ``data_at``.
        info_at: offset of FSInfo; 0: there is none.
        state_at: offset of the byte with the dirty bit; 0: there is none.
    """

    bits: int
    sector: int
    cluster: int
    fats: tuple[int, ...]
    root_at: int
    root_size: int
    root_cluster: int
    data_at: int
    clusters: int
    info_at: int
    state_at: int
    state: int
    volume_id: int


class Info(NamedTuple):
    """FSInfo: the number of free clusters, and where to look for the next; None if unknown."""

    free: int | None
    next: int | None


def geometry(boot: bytes, size: int, *, dos1xfloppy: bool = False) -> Geometry:
    """Decode a boot sector.

    Args:
        boot: the first 512 bytes.
        size: the size of the device, in bytes.
        dos1xfloppy: the mount option.
    Raises:
        OSError: EINVAL: it is not a FAT filesystem.
    """
    if len(boot) < BOOT_SIZE:
        raise invalid("not a FAT filesystem: the device is smaller than a sector")
    sector, per, reserved, fats, entries, few, media, length, _, _, _, many = _BPB.unpack_from(
        boot, 11
    )
    if dos1xfloppy and not any(boot[11:36]):
        if boot[0] != 0xEB or boot[2] != 0x90 or size // 512 not in _FLOPPIES:
            raise invalid("not a FAT filesystem: the size is not that of a DOS 1.x floppy")
        sector, reserved, fats, few, many = 512, 1, 2, size // 512, 0
        per, entries, media, length = _FLOPPIES[few]
    _check(sector, per, reserved, fats, media)
    fat32 = not length
    active, root, info = None, 0, 0
    if fat32:
        length, flags, _, root, info = _BPB32.unpack_from(boot, 36)
        active = flags & _ACTIVE if flags & _MIRRORING_OFF else None
    if not length:
        raise invalid("not a FAT filesystem: the FAT has no sectors")
    if entries * ENTRY_SIZE % sector:
        raise invalid("not a FAT filesystem: the root directory ends within a sector")
    if active is not None and active >= fats:
        raise invalid("the active FAT in the boot sector does not exist")
    root_at = (reserved + fats * length) * sector
    data_at = root_at + entries * ENTRY_SIZE
    clusters = ((few or many) * sector - data_at) // (sector * per)
    bits = 32 if fat32 else 12 if clusters <= MOST_CLUSTERS[12] else 16
    clusters = min(clusters, length * sector * 8 // bits - FAT_START_ENT)
    if not 0 < clusters <= MOST_CLUSTERS[bits]:
        raise invalid(f"not a FAT filesystem: the number of clusters, {clusters}, is impossible")
    if fat32 and root < FAT_START_ENT:
        raise invalid("not a FAT filesystem: the root directory has no cluster")
    places = tuple((reserved + n * length) * sector for n in range(fats))
    state_at = 65 if fat32 else 37
    signed = boot[state_at + 1] in _SIGNATURES
    return Geometry(
        bits=bits,
        sector=sector,
        cluster=sector * per,
        fats=places if active is None else (places[active],),
        root_at=root_at,
        root_size=0 if fat32 else entries * ENTRY_SIZE,
        root_cluster=root,
        data_at=data_at,
        clusters=clusters,
        info_at=(info or 1) * sector if fat32 and info != 0xFFFF else 0,
        # Without the signature there is code in place of the dirty bit.
        state_at=state_at if signed else 0,
        state=boot[state_at] if signed else 0,
        volume_id=int.from_bytes(boot[state_at + 2 : state_at + 6], "little"),
    )


def _check(sector: int, per: int, reserved: int, fats: int, media: int) -> None:
    if not reserved:
        raise invalid("not a FAT filesystem: there are no reserved sectors")
    if not fats:
        raise invalid("not a FAT filesystem: there is no FAT")
    if media < 0xF8 and media != 0xF0:
        raise invalid(f"not a FAT filesystem: the media byte cannot be {media:#x}")
    if sector not in (512, 1024, 2048, 4096):
        raise invalid(f"not a FAT filesystem: a sector cannot have {sector} bytes")
    if not per or per & per - 1:
        raise invalid(f"not a FAT filesystem: a cluster cannot have {per} sectors")


def read_info(sector: bytes, clusters: int) -> Info | None:
    """Decode FSInfo; return None if the signatures are wrong. An invalid count becomes None.

    Args:
        clusters: the number of clusters of the volume.
    """
    if any(sector[at : at + 4] != signature for at, signature in _INFO_SIGNATURES):
        return None
    free, following = _INFO.unpack_from(sector, INFO_COUNTS)
    return Info(
        free if free <= clusters else None,
        following if FAT_START_ENT <= following < clusters + FAT_START_ENT else None,
    )


def pack_counts(free: int | None, last: int) -> bytes:
    """Encode what is written at INFO_COUNTS: free clusters, and the last one allocated."""
    return _INFO.pack(_UNKNOWN if free is None else free, last)
