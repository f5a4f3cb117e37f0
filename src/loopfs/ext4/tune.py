"""What a tool may change in the superblock of a mounted filesystem by a write(2) to its device.

The kernel's driver uses the superblock in the page cache of the device, so it sees what tune2fs(8)
and e2label(8) write there. This driver has a copy: the fields that these tools change are copied
from the write, and a write that changes anything else is refused.
"""

from __future__ import annotations

# Fields of struct ext4_super_block (Documentation/filesystems/ext4/super.rst).
_RESERVED_BLOCKS = (slice(8, 12), slice(340, 344))
_RESERVED_FOR = slice(80, 84)  # s_def_resuid, s_def_resgid
SETTABLE = (
    *_RESERVED_BLOCKS,
    _RESERVED_FOR,
    slice(52, 56),  # s_mnt_count, s_max_mnt_count
    slice(60, 62),  # s_errors
    slice(64, 72),  # s_lastcheck, s_checkinterval
    slice(120, 136),  # s_volume_name
    slice(136, 200),  # s_last_mounted
    slice(256, 260),  # s_default_mount_opts
    slice(356, 358),  # s_raid_stride
    slice(368, 372),  # s_raid_stripe_width
    slice(512, 576),  # s_mount_opts
)
# What changes while the filesystem is in use, and what tools change in every superblock.
_MOVING = (
    slice(12, 20),  # s_free_blocks_count_lo, s_free_inodes_count
    slice(344, 348),  # s_free_blocks_count_hi
    slice(44, 52),  # s_mtime, s_wtime
    slice(58, 60),  # s_state
    slice(232, 236),  # s_last_orphan
    slice(376, 384),  # s_kbytes_written
    slice(404, 512),  # s_error_count, the first and the last error
    slice(628, 636),  # the high bytes of times, error codes
    slice(1020, 1024),  # s_checksum
)
_GROUP = slice(90, 92)  # s_block_group_nr: the group that has this copy
_INCOMPAT, _RECOVER = 96, 4  # the first byte of s_feature_incompat, and a bit not set in copies


def may_become(superblock: bytes, after: bytes, *, copy: bool = False) -> bool:
    """Return whether ``after`` differs from ``superblock`` only in what may be changed.

    Args:
        superblock: the one in the image.
        after: the one to be written; of the same length.
        copy: it is a copy for another group.
    """
    if len(superblock) != len(after):
        return False
    fixed = [bytearray(superblock), bytearray(after)]
    for each in fixed:
        for part in (*SETTABLE, *_MOVING):
            each[part] = bytes(part.stop - part.start)
        if copy:
            each[_GROUP] = bytes(2)
            each[_INCOMPAT] &= ~_RECOVER
    return fixed[0] == fixed[1]
