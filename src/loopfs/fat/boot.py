"""The boot sector and FSInfo (include/uapi/linux/msdos_fs.h; fs/fat/inode.c: fat_read_bpb()).

The layout is that of Microsoft's "FAT: General Overview of On-Disk Format" 1.03.
"""

from __future__ import annotations

import struct

from loopfs.fat.errors import invalid
from loopfs.lean import NamedTuple

BOOT_SIZE = 512  # of any sector size, what is used of it
ENTRY_SIZE = 32
FAT_START_ENT = 2  # the number of the first cluster
STATE_DIRTY = 1
MOST_CLUSTERS = {12: 0xFF4, 16: 0xFFF4, 32: 0x0FFFFFF6}

# sector size, sectors a cluster, reserved sectors, FATs, root entries, sectors, media,
# FAT's sectors, (track, heads,) hidden, total sectors: from byte 11 on
_BPB = struct.Struct("<HBHBHHBHHHII")
_BPB32 = struct.Struct("<IHHIH")  # FAT's sectors, flags, version, root cluster, info sector
_MIRRORING_OFF, _ACTIVE = 0x80, 0x0F
_SIGNATURES = (0x28, 0x29)  # there are a state and a volume id

_INFO_SIGNATURES = (0, b"RRaA"), (484, b"rrAa")
INFO_COUNTS = 488  # the byte of FSInfo where free and next are
_INFO = struct.Struct("<II")
_UNKNOWN = 0xFFFFFFFF

# DOS 1.x floppies have no parameters: by total sectors (fat_read_static_bpb()), sectors a
# cluster, root entries, media, FAT's sectors.
_FLOPPIES = {
    320: (1, 64, 0xFE, 1),
    360: (1, 64, 0xFC, 2),
    640: (2, 112, 0xFF, 1),
    720: (2, 112, 0xFD, 2),
}


class Geometry(NamedTuple):
    """Where what is. Sizes and places are bytes.

    Attributes:
        bits: of an entry of the FAT, 12, 16 or 32.
        fats: places of the copies of the FAT that are in use; the first is read.
        root_size: of the root directory at ``root_at``; 0 with FAT32, where it has a cluster.
        clusters: how many there are; the first has the number 2, and is at ``data_at``.
        info_at: place of FSInfo; 0 without.
        state_at: place of the byte with the dirty bit; 0 without.
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
    """FSInfo: free clusters, and where to look for the next one; None where it does not say."""

    free: int | None
    next: int | None


def geometry(boot: bytes, size: int, *, dos1xfloppy: bool = False) -> Geometry:
    """Read a boot sector.

    Args:
        boot: the first 512 bytes.
        size: of the device, in bytes.
        dos1xfloppy: the mount option.
    Raises:
        OSError: EINVAL, it is none.
    """
    if len(boot) < BOOT_SIZE:
        raise invalid("no FAT filesystem: there is no whole sector")
    sector, per, reserved, fats, entries, few, media, length, _, _, _, many = _BPB.unpack_from(
        boot, 11
    )
    if dos1xfloppy and not any(boot[11:36]):
        if boot[0] != 0xEB or boot[2] != 0x90 or size // 512 not in _FLOPPIES:
            raise invalid("no FAT filesystem: not the size of a DOS 1.x floppy")
        sector, reserved, fats, few, many = 512, 1, 2, size // 512, 0
        per, entries, media, length = _FLOPPIES[few]
    _check(sector, per, reserved, fats, media)
    fat32 = not length
    active, root, info = None, 0, 0
    if fat32:
        length, flags, _, root, info = _BPB32.unpack_from(boot, 36)
        active = flags & _ACTIVE if flags & _MIRRORING_OFF else None
    if not length:
        raise invalid("no FAT filesystem: the FAT has no sectors")
    if entries * ENTRY_SIZE % sector:
        raise invalid("no FAT filesystem: the root directory ends within a sector")
    if active is not None and active >= fats:
        raise invalid("the boot sector names a FAT that is not there")
    root_at = (reserved + fats * length) * sector
    data_at = root_at + entries * ENTRY_SIZE
    clusters = ((few or many) * sector - data_at) // (sector * per)
    bits = 32 if fat32 else 12 if clusters <= MOST_CLUSTERS[12] else 16
    clusters = min(clusters, length * sector * 8 // bits - FAT_START_ENT)
    if not 0 < clusters <= MOST_CLUSTERS[bits]:
        raise invalid(f"no FAT filesystem: {clusters} clusters")
    if fat32 and root < FAT_START_ENT:
        raise invalid("no FAT filesystem: the root directory has no cluster")
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
        # without the signature there is code where the dirty bit would be
        state_at=state_at if signed else 0,
        state=boot[state_at] if signed else 0,
        volume_id=int.from_bytes(boot[state_at + 2 : state_at + 6], "little"),
    )


def _check(sector: int, per: int, reserved: int, fats: int, media: int) -> None:
    if not reserved:
        raise invalid("no FAT filesystem: no reserved sectors")
    if not fats:
        raise invalid("no FAT filesystem: no FATs")
    if media < 0xF8 and media != 0xF0:
        raise invalid(f"no FAT filesystem: media byte {media:#x}")
    if sector not in (512, 1024, 2048, 4096):
        raise invalid(f"no FAT filesystem: sectors of {sector} bytes")
    if not per or per & per - 1:
        raise invalid(f"no FAT filesystem: {per} sectors a cluster")


def read_info(sector: bytes, clusters: int) -> Info | None:
    """FSInfo; None if it is none. What cannot be is as if it did not say.

    Args:
        clusters: of the volume.
    """
    if any(sector[at : at + 4] != signature for at, signature in _INFO_SIGNATURES):
        return None
    free, following = _INFO.unpack_from(sector, INFO_COUNTS)
    return Info(
        free if free <= clusters else None,
        following if FAT_START_ENT <= following < clusters + FAT_START_ENT else None,
    )


def pack_counts(free: int | None, last: int) -> bytes:
    """What to write at INFO_COUNTS: free clusters, and the last one that was taken."""
    return _INFO.pack(_UNKNOWN if free is None else free, last)
