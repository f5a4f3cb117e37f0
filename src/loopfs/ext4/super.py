"""The superblock (fs/ext4/super.c; Documentation/filesystems/ext4/super.rst)."""

from __future__ import annotations

import errno
import struct
import threading

from loopfs.errors import Unsupported
from loopfs.ext4 import tune
from loopfs.ext4.crc import crc32c
from loopfs.ext4.device import Device
from loopfs.ext4.errors import BadChecksum, Damaged, invalid, refused

OFFSET, SIZE = 1024, 1024  # bytes
MAGIC = 0xEF53
MAX_LOG_BLOCK_SIZE = 6
MAX_BLOCK_SIZE = 1024 << MAX_LOG_BLOCK_SIZE

COMPAT_HAS_JOURNAL, COMPAT_DIR_INDEX = 0x4, 0x20
COMPAT_SPARSE_SUPER2, COMPAT_ORPHAN_FILE = 0x200, 0x1000

INCOMPAT_FILETYPE, INCOMPAT_RECOVER, INCOMPAT_META_BG = 0x2, 0x4, 0x10
INCOMPAT_EXTENTS, INCOMPAT_64BIT, INCOMPAT_FLEX_BG = 0x40, 0x80, 0x200
INCOMPAT_EA_INODE, INCOMPAT_CSUM_SEED, INCOMPAT_LARGEDIR = 0x400, 0x2000, 0x4000
INCOMPAT_MMP = 0x100
INCOMPAT_INLINE_DATA, INCOMPAT_ENCRYPT, INCOMPAT_CASEFOLD = 0x8000, 0x10000, 0x20000
INCOMPAT_KNOWN = (
    *(INCOMPAT_FILETYPE, INCOMPAT_RECOVER, INCOMPAT_META_BG, INCOMPAT_EXTENTS, INCOMPAT_64BIT),
    *(INCOMPAT_FLEX_BG, INCOMPAT_EA_INODE, INCOMPAT_CSUM_SEED, INCOMPAT_LARGEDIR),
    *(INCOMPAT_MMP, INCOMPAT_INLINE_DATA, INCOMPAT_ENCRYPT, INCOMPAT_CASEFOLD),
)
_INCOMPAT_NAMES = {
    0x1: "compression",
    0x8: "journal_dev",
    0x1000: "dirdata",
}
# The features that the drivers of the older types support (ext2_feature_set_ok, ext3_...).
_INCOMPAT_OF = {
    "ext2": INCOMPAT_FILETYPE | INCOMPAT_META_BG,
    "ext3": INCOMPAT_FILETYPE | INCOMPAT_META_BG | INCOMPAT_RECOVER,
}

RO_COMPAT_SPARSE_SUPER, RO_COMPAT_LARGE_FILE, RO_COMPAT_HUGE_FILE = 0x1, 0x2, 0x8
RO_COMPAT_GDT_CSUM, RO_COMPAT_DIR_NLINK, RO_COMPAT_EXTRA_ISIZE = 0x10, 0x20, 0x40
RO_COMPAT_METADATA_CSUM, RO_COMPAT_VERITY, RO_COMPAT_ORPHAN_PRESENT = 0x400, 0x8000, 0x10000
_RO_COMPAT_KNOWN = (
    *(RO_COMPAT_SPARSE_SUPER, RO_COMPAT_LARGE_FILE, RO_COMPAT_HUGE_FILE, RO_COMPAT_GDT_CSUM),
    *(RO_COMPAT_DIR_NLINK, RO_COMPAT_EXTRA_ISIZE, RO_COMPAT_METADATA_CSUM),
    *(RO_COMPAT_VERITY, RO_COMPAT_ORPHAN_PRESENT),
)
_RO_COMPAT_QUOTA, _RO_COMPAT_BIGALLOC, _RO_COMPAT_PROJECT = 0x100, 0x200, 0x2000
_RO_COMPAT_OF = dict.fromkeys(("ext2", "ext3"), RO_COMPAT_SPARSE_SUPER | RO_COMPAT_LARGE_FILE | 4)
_RO_COMPAT_NAMES = {
    0x80: "snapshot",
    _RO_COMPAT_QUOTA: "quota",
    0x800: "replica",
    0x1000: "read-only",
    _RO_COMPAT_PROJECT: "project",
    0x4000: "shared_blocks",
}

STATE_VALID, STATE_ERROR, STATE_ORPHAN = 1, 2, 4
_FLAG_UNSIGNED_HASH = 2
_INODE_MIN, _INODE_MAX = 128, 1024
_CRC32C = 1  # s_checksum_type

_U16, _U32 = struct.Struct("<H"), struct.Struct("<I")


class Super:
    """The superblock, decoded and checked.

    Attributes:
        lock: held while the fields that tools may change are written or changed.
        raw: its 1024 bytes; setters change these, and :meth:`sealed` updates the checksum.
        blocks: the size of the filesystem, in blocks of ``block_size`` bytes.

    Args:
        device: the device that it is on.
        fstype: "ext2", "ext3" or "ext4".
        place: where it is, in bytes: itself, or a copy.
    Raises:
        OSError: EINVAL with a sentence: it is no such filesystem, or has a feature that is not
            supported; EUCLEAN, EBADMSG.
    """

    def __init__(self, device: Device, fstype: str = "ext4", place: int = OFFSET) -> None:
        if device.size < place + SIZE:
            raise refused(errno.EIO) if place == OFFSET else invalid("there is no superblock")
        self.raw = bytearray(device.read(place, SIZE))
        self.lock = threading.Lock()
        if self.u16(56) != MAGIC:
            raise invalid("there is no ext2, ext3 or ext4 filesystem on it")
        revision = self.u32(76)
        if revision > 1:
            raise invalid(f"revision {revision} of the filesystem is not supported")
        self.compat, self.incompat, self.ro_compat = (
            (self.u32(92), self.u32(96), self.u32(100)) if revision else (0, 0, 0)
        )
        self._check_features(fstype)
        if self.u32(24) > MAX_LOG_BLOCK_SIZE:
            raise invalid("the block size is larger than 64 KiB")
        self.block_size = 1024 << self.u32(24)
        self.csum = bool(self.ro_compat & RO_COMPAT_METADATA_CSUM)
        self._check_checksum()
        self.is_64bit = bool(self.incompat & INCOMPAT_64BIT)
        self.blocks = self.u32(4) | (self.u32(336) << 32 if self.is_64bit else 0)
        self._take_reserve()
        self.first_data_block = self.u32(20)
        self.blocks_per_group, self.inodes_per_group = self.u32(32), self.u32(40)
        self.inode_size = self.u16(88) if revision else _INODE_MIN
        self.first_inode = self.u32(84) if revision else 11
        self.desc_size = self.u16(254) if self.is_64bit else 32
        self.reserved_gdt = self.u16(206) if self.compat & 0x10 else 0
        self.first_meta_bg = self.u32(260) if self.incompat & INCOMPAT_META_BG else None
        self.uuid = bytes(self.raw[104:120])
        if self.incompat & INCOMPAT_CSUM_SEED:
            self.seed = self.u32(624)
        else:
            used = self.csum or self.incompat & INCOMPAT_EA_INODE
            self.seed = crc32c(0xFFFFFFFF, self.uuid) if used else 0
        self._check_geometry(device.size)
        self._at = place // self.block_size
        self.groups = -(-(self.blocks - self.first_data_block) // self.blocks_per_group)
        self.inodes = self.u32(0)
        if self.inodes != self.groups * self.inodes_per_group:
            raise Damaged(f"{self.inodes} inodes do not fit {self.groups} groups")
        self.itable_blocks = -(-self.inodes_per_group * self.inode_size // self.block_size)
        self._take_hash()

    @property
    def geometry(self) -> tuple[int, ...]:
        """Where what is; no tool changes it while the filesystem is mounted."""
        per_group = self.blocks_per_group, self.inodes_per_group
        return (
            self.block_size,
            self.blocks,
            self.inodes,
            self.inode_size,
            self.desc_size,
            *per_group,
        )

    def _check_features(self, fstype: str) -> None:
        unknown = self.incompat & ~sum(INCOMPAT_KNOWN)
        if unknown:
            raise invalid(f"the feature {_names(unknown, _INCOMPAT_NAMES)} is not supported")
        if self.ro_compat & _RO_COMPAT_BIGALLOC:
            raise Unsupported(errno.EINVAL, "the feature bigalloc is not supported")
        beyond = self.incompat & ~_INCOMPAT_OF.get(fstype, self.incompat)
        beyond |= self.ro_compat & ~_RO_COMPAT_OF.get(fstype, self.ro_compat)
        if beyond or (fstype == "ext3" and not self.compat & COMPAT_HAS_JOURNAL):
            raise invalid(f"it has features that {fstype} does not have; mount it as ext4")
        if self.incompat & INCOMPAT_CSUM_SEED and not self.ro_compat & RO_COMPAT_METADATA_CSUM:
            raise invalid("it has metadata_csum_seed without metadata_csum")

    def refuse_writing(self) -> None:
        """Check that the features allow writing. Raises OSError EROFS with a sentence."""
        unknown = self.ro_compat & ~sum(_RO_COMPAT_KNOWN)
        if unknown:
            names = _names(unknown, _RO_COMPAT_NAMES)
            sentence = f"the feature {names} is supported for reading only; mount it with -o ro"
            raise OSError(errno.EROFS, sentence)

    def _check_checksum(self) -> None:
        if not self.csum:
            return
        if self.raw[373] != _CRC32C:
            raise invalid("its type of checksum is not supported")
        if crc32c(0xFFFFFFFF, self.raw[:1020]) != self.u32(1020):
            raise BadChecksum("the superblock's checksum is wrong")

    def _check_geometry(self, size: int) -> None:
        block, per_group = self.block_size, self.blocks_per_group
        inode = self.inode_size
        if not _INODE_MIN <= inode <= min(block, _INODE_MAX) or inode & (inode - 1):
            raise Damaged(f"an inode cannot have {inode} bytes")
        if self.is_64bit and (self.desc_size < 64 or self.desc_size & (self.desc_size - 1)):
            raise Damaged(f"a group descriptor cannot have {self.desc_size} bytes")
        if self.desc_size > block:
            raise Damaged(f"a group descriptor cannot have {self.desc_size} bytes")
        if self.first_data_block != (1 if block == 1024 else 0):
            raise Damaged(f"the first data block cannot be {self.first_data_block}")
        if not 8 <= per_group <= block * 8 or per_group & 7:
            raise Damaged(f"{per_group} blocks in a group are impossible")
        if self.u32(36) != per_group:
            raise Damaged("a cluster is not a block, without the feature bigalloc")
        if not block // inode <= self.inodes_per_group <= block * 8 or self.inodes_per_group & 7:
            raise Damaged(f"{self.inodes_per_group} inodes in a group are impossible")
        if not self.first_data_block < self.blocks <= size // block:
            raise invalid(f"it has {self.blocks} blocks and does not fit on its device")
        if self.first_inode < 11:
            raise Damaged(f"the first inode cannot be {self.first_inode}")

    def _take_hash(self) -> None:
        seed = struct.unpack_from("<4I", self.raw, 236)
        self.hash_seed: tuple[int, int, int, int] | None = seed if any(seed) else None
        self.hash_version = self.raw[252] if self.raw[252] <= 2 else 1
        self.hash_unsigned = bool(self.u32(352) & _FLAG_UNSIGNED_HASH)

    # --- fields --------------------------------------------------------------------

    def u16(self, offset: int) -> int:
        """Return the 16-bit number at ``offset`` bytes."""
        value: int = _U16.unpack_from(self.raw, offset)[0]
        return value

    def u32(self, offset: int) -> int:
        """Return the 32-bit number at ``offset`` bytes."""
        value: int = _U32.unpack_from(self.raw, offset)[0]
        return value

    def set_u16(self, offset: int, value: int) -> None:
        _U16.pack_into(self.raw, offset, value)

    def set_u32(self, offset: int, value: int) -> None:
        _U32.pack_into(self.raw, offset, value & 0xFFFFFFFF)

    def set_free(self, blocks: int, inodes: int) -> None:
        self.set_u32(12, blocks)
        self.set_u32(16, inodes)
        if self.is_64bit:
            self.set_u32(344, blocks >> 32)

    def sealed(self) -> bytes:
        """Return all of it with a correct checksum, for writing."""
        with self.lock:
            if self.csum:
                self.set_u32(1020, crc32c(0xFFFFFFFF, self.raw[:1020]))
            return bytes(self.raw)

    def with_settable(self, raw: bytes | bytearray) -> bytes:
        """Return another superblock, with the fields that a tool may change taken from this one."""
        out = bytearray(raw)
        for part in tune.SETTABLE:
            out[part] = self.raw[part]
        if self.csum:
            _U32.pack_into(out, 1020, crc32c(0xFFFFFFFF, out[:1020]))
        return bytes(out)

    def take(self, after: bytes) -> None:
        """Take over the fields that a tool may change. The caller holds the lock."""
        for part in tune.SETTABLE:
            self.raw[part] = after[part]
        self._take_reserve()

    def _take_reserve(self) -> None:
        high = self.u32(340) << 32 if self.is_64bit else 0
        self.reserved_blocks = self.u32(8) | high

    # --- where groups have copies ------------------------------------------------------

    @property
    def gdt_blocks(self) -> int:
        """The number of blocks of group descriptors, without those of meta_bg."""
        blocks = -(-self.groups * self.desc_size // self.block_size)
        return blocks if self.first_meta_bg is None else min(blocks, self.first_meta_bg)

    @property
    def has_quota(self) -> bool:
        return bool(self.ro_compat & _RO_COMPAT_QUOTA)

    @property
    def has_projects(self) -> bool:
        return bool(self.ro_compat & _RO_COMPAT_PROJECT)

    def has_super(self, group: int) -> bool:
        """Return whether a group has a copy of the superblock (ext4_bg_has_super)."""
        if group == 0:
            return True
        if self.compat & COMPAT_SPARSE_SUPER2:
            return group in (self.u32(588), self.u32(592))
        if group <= 1 or not self.ro_compat & RO_COMPAT_SPARSE_SUPER:
            return True
        return any(_is_power(group, base) for base in (3, 5, 7))

    def copies(self, group: int) -> int:
        """Return how many blocks at a group's start hold the superblock's copy and descriptors."""
        per_block = self.block_size // self.desc_size
        count = int(self.has_super(group))
        if self.first_meta_bg is None or group // per_block < self.first_meta_bg:
            if count:
                count += self.gdt_blocks + self.reserved_gdt
        elif group % per_block in (0, 1, per_block - 1):
            count += 1
        return count

    def descriptor_block(self, number: int) -> int:
        """Return where block ``number`` of the group descriptors is (descriptor_loc)."""
        if self.first_meta_bg is None or number < self.first_meta_bg:
            return self._at + 1 + number
        group = number * (self.block_size // self.desc_size)
        first = self.first_data_block + group * self.blocks_per_group
        # With blocks of 1 KiB the superblock of group 0 is in block 1: see descriptor_loc().
        return first + int(self.has_super(group))


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1


def _names(bits: int, names: dict[int, str]) -> str:
    each = (1 << n for n in range(32) if bits >> n & 1)
    return ", ".join(names.get(bit, f"{bit:#x}") for bit in each)
