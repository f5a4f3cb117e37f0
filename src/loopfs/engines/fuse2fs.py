"""fuse2fs (e2fsprogs) as the engine of ext2, ext3 and ext4."""

from __future__ import annotations

import errno
import os
import struct

from loopfs.engines.engine import Launch

PROGRAM = "fuse2fs"
PACKAGE = "fuse2fs"
TYPES = frozenset({"ext2", "ext3", "ext4"})

# Mount options of ext4(5): those that fuse2fs supports, and those that have no effect here.
# After an error in the filesystem fuse2fs continues, except with errors=panic.
OPTIONS = {
    "minixdf": "minixdf",
    "bsddf": "",
    "norecovery": "norecovery",
    "noload": "norecovery",
    "errors=continue": "",
    "errors=remount-ro": "",
    "errors=panic": "errors=panic",
    "acl": "",
    "user_xattr": "",
    "barrier": "",
    "barrier=": "",
    "nobarrier": "",
    "data=ordered": "",
    "commit=": "",
    "lazytime": "",
    "nodiscard": "",
}

# struct ext4_super_block: s_blocks_count_lo, s_log_block_size, s_magic, s_feature_incompat,
# s_blocks_count_hi.
_SUPERBLOCK = struct.Struct("<4xI16xI28xH38xI236xI")
SUPERBLOCK_OFFSET = 1024
MAGIC = 0xEF53
MAX_LOG_BLOCK_SIZE = 6
_LOG_BLOCK_SIZE_OFFSET = SUPERBLOCK_OFFSET + 24
INCOMPAT_64BIT = 0x80
# The incompatible features that the driver of the type supports; for ext4 fuse2fs decides.
_INCOMPAT = {"ext2": 0x12, "ext3": 0x16}


def check(device: int, fstype: str) -> None:
    """Refuse what the kernel would refuse, but fuse2fs would not, or only at the first access.

    Args:
        device: the open device.
    Raises:
        OSError: EIO (too small for a superblock), EINVAL (not an ext filesystem, one with
            features that ``fstype`` does not have, or larger than the device).
    """
    data = os.pread(device, _SUPERBLOCK.size, SUPERBLOCK_OFFSET)
    if len(data) < _SUPERBLOCK.size:
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    _, log_block_size, magic, incompat, _ = _SUPERBLOCK.unpack(data)
    if (
        magic != MAGIC
        or log_block_size > MAX_LOG_BLOCK_SIZE
        or _end(data) > os.lseek(device, 0, os.SEEK_END)
        or incompat & ~_INCOMPAT.get(fstype, incompat)
    ):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def extent(device: int) -> tuple[int, int]:
    """Return the bytes of a device that its filesystem uses: not the boot block before the
    superblock, and nothing after the last block.

    Args:
        device: the open device, on which :func:`check` has succeeded.
    """
    return SUPERBLOCK_OFFSET, _end(os.pread(device, _SUPERBLOCK.size, SUPERBLOCK_OFFSET))


def _end(superblock: bytes) -> int:
    blocks, log_block_size, _, incompat, blocks_high = _SUPERBLOCK.unpack(superblock)
    if incompat & INCOMPAT_64BIT:
        blocks |= blocks_high << 32
    return int(blocks << (10 + log_block_size))


def environment(device: int) -> dict[str, str]:
    """Return environment variables for fuse2fs.

    libext2fs writes the changed parts of a superblock separately, the checksum last: if it is
    killed in between, e2fsck refuses the superblock, and a small image has no backup. With bouncing
    it writes the whole superblock. But if the block size is not 1024 bytes, the size of a
    superblock, bouncing causes a deadlock in unix_set_blksize() of libext2fs.

    Args:
        device: the open device.
    """
    log_block_size = os.pread(device, 4, _LOG_BLOCK_SIZE_OFFSET)
    return {"UNIX_IO_FORCE_BOUNCE": "1"} if log_block_size == bytes(4) else {}


def command(launch: Launch) -> list[str]:
    """Return the command line that serves a filesystem in the foreground.

    The default options of fuse2fs would show every filesystem as ext4; the others of them are given
    here. Attributes are not cached, since to libfuse each name of a file is another file.
    """
    more = (
        "no_default_opts",
        f"fsname={launch.device}",
        "kernel_cache,use_ino,attr_timeout=0,big_writes",
    )
    words = [PROGRAM, "-f", launch.device, launch.mountpoint]
    return [*words, "-o", launch.fuse_options(*more)]
