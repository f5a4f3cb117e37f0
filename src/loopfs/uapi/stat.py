"""struct stat in the layouts of the architectures, and struct statx (stat(2), statx(2))."""

from __future__ import annotations

import os
import struct

from loopfs.lean import NamedTuple
from loopfs.uapi.seccomp import (
    AUDIT_ARCH_AARCH64,
    AUDIT_ARCH_ARM,
    AUDIT_ARCH_I386,
    AUDIT_ARCH_X86_64,
)

STATX_BASIC_STATS = 0x7FF
STATX_BTIME = 0x800
STATX_MNT_ID = 0x1000
STATX_MNT_ID_OFFSET = 144

# asm/stat.h: struct stat of 64-bit callers, struct stat64 of 32-bit ones
_STAT = {
    AUDIT_ARCH_X86_64: struct.Struct("=QQQIII4xQqqq6q24x"),
    AUDIT_ARCH_AARCH64: struct.Struct("=QQIIIIQ8xqi4xq6q8x"),
    AUDIT_ARCH_I386: struct.Struct("=Q4xIIIIIQ4xqIQ6IQ"),
    AUDIT_ARCH_ARM: struct.Struct("=Q4xIIIIIQ8xqI4xQ6IQ"),
}
STATX = struct.Struct("=IIQIIIHxxQQQQ" + 4 * "qI4x" + "IIIIQII96x")
STATX_DEV = struct.Struct("=II")  # stx_dev_major, stx_dev_minor
STATX_DEV_OFFSET = 136
UINT = struct.Struct("=I")
ULONG = struct.Struct("=Q")
STATX__RESERVED = 0x80000000
STATX_DIOALIGN = 0x2000
STATX_DIO_OFFSET_ALIGN_OFFSET = 156

# asm/statfs.h, for 64-bit callers: f_type, f_bsize, five counts, f_fsid, f_namelen, f_frsize,
# f_flags
STATFS = struct.Struct("=qq5Qiiqqq32x")
ST_VALID = 0x0020  # in f_flags (include/linux/statfs.h); the os module has the others


class Stat(NamedTuple):
    """The fields of stat(2) of a node; times are in nanoseconds since the epoch."""

    dev: int
    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    times: tuple[int, int, int]
    size: int = 0
    blocks: int = 0
    blksize: int = 4096


def pack_stat(st: Stat, arch: int) -> bytes:
    """Return ``st`` as fstat(2) writes it for a caller of the audit architecture ``arch``."""
    times = [part for t in st.times for part in divmod(t, 1_000_000_000)]
    layout = _STAT[arch]
    owner = (st.uid, st.gid, st.rdev)
    if arch == AUDIT_ARCH_X86_64:
        head: tuple[int, ...] = (st.dev, st.ino, st.nlink, st.mode, *owner)
    elif arch == AUDIT_ARCH_AARCH64:
        head = (st.dev, st.ino, st.mode, st.nlink, *owner)
    else:
        times = [part & 0xFFFFFFFF for part in times]
        head = (st.dev, st.ino & 0xFFFFFFFF, st.mode, st.nlink, *owner)
        return layout.pack(*head, st.size, st.blksize, st.blocks, *times, st.ino)
    return layout.pack(*head, st.size, st.blksize, st.blocks, *times)


def pack_statx(st: Stat, mnt_id: int) -> bytes:
    """Return ``st`` as statx(2) writes it."""
    atime, mtime, ctime = (divmod(t, 1_000_000_000) for t in st.times)
    return STATX.pack(
        STATX_BASIC_STATS | STATX_MNT_ID,
        st.blksize,
        0,
        st.nlink,
        st.uid,
        st.gid,
        st.mode,
        st.ino,
        st.size,
        st.blocks,
        0,
        *atime,
        *(0, 0),  # there is no birth time
        *ctime,
        *mtime,
        os.major(st.rdev),
        os.minor(st.rdev),
        os.major(st.dev),
        os.minor(st.dev),
        mnt_id,
        0,
        0,
    )
