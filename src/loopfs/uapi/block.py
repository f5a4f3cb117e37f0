"""include/uapi/linux/fs.h, blkzoned.h, hdreg.h, pr.h: ioctls of all block devices."""

from __future__ import annotations

import struct

SECTOR_SIZE = 512
SECTOR_SHIFT = 9

BLKROSET = 0x125D
BLKROGET = 0x125E
BLKRRPART = 0x125F
BLKGETSIZE = 0x1260
BLKFLSBUF = 0x1261
BLKRASET = 0x1262
BLKRAGET = 0x1263
BLKFRASET = 0x1264
BLKFRAGET = 0x1265
BLKSECTGET = 0x1267
BLKSSZGET = 0x1268
BLKPG = 0x1269
BLKDISCARD = 0x1277
BLKIOMIN = 0x1278
BLKIOOPT = 0x1279
BLKALIGNOFF = 0x127A
BLKPBSZGET = 0x127B
BLKDISCARDZEROES = 0x127C
BLKSECDISCARD = 0x127D
BLKROTATIONAL = 0x127E
BLKZEROOUT = 0x127F

# ioctls of a trace that BLKTRACESETUP has set up.
BLKTRACESTART = 0x1274
BLKTRACESTOP = 0x1275
BLKTRACETEARDOWN = 0x1276
BLKTRACE = (BLKTRACESTART, BLKTRACESTOP, BLKTRACETEARDOWN)

# These numbers contain the size of the argument, which depends on the caller's word size:
# WORDS_APART is the difference between the numbers of a 64-bit and of a 32-bit caller.
WORDS_APART = (8 - 4) << 16
BLKBSZGET = 0x80081270
BLKBSZSET = 0x40081271
BLKGETSIZE64 = 0x80081272
BLKREPORTZONE = 0xC0101282
BLKRESETZONE = 0x40101283
BLKGETZONESZ = 0x80041284
BLKGETNRZONES = 0x80041285
BLKOPENZONE = 0x40101286
BLKCLOSEZONE = 0x40101287
BLKFINISHZONE = 0x40101288
BLKGETDISKSEQ = 0x80081280

# include/uapi/linux/pr.h
IOC_PR_REGISTER = 0x401870C8
IOC_PR_RESERVE = 0x401070C9
IOC_PR_RELEASE = 0x401070CA
IOC_PR_PREEMPT = 0x401870CB
IOC_PR_PREEMPT_ABORT = 0x401870CC
IOC_PR_CLEAR = 0x401070CD
IOC_PR = (
    IOC_PR_REGISTER,
    IOC_PR_RESERVE,
    IOC_PR_RELEASE,
    IOC_PR_PREEMPT,
    IOC_PR_PREEMPT_ABORT,
    IOC_PR_CLEAR,
)

# include/uapi/linux/blk-crypto.h, since Linux 6.15
BLKCRYPTOIMPORTKEY = 0xC0401289
BLKCRYPTOGENERATEKEY = 0xC030128A
BLKCRYPTOPREPAREKEY = 0xC040128B
BLKCRYPTO = (BLKCRYPTOIMPORTKEY, BLKCRYPTOGENERATEKEY, BLKCRYPTOPREPAREKEY)

BLKPG_ADD_PARTITION = 1
BLKPG_DEL_PARTITION = 2
BLKPG_RESIZE_PARTITION = 3

# struct blkpg_ioctl_arg by the caller's word size, and the used part of struct blkpg_partition.
BLKPG_ARG = {8: struct.Struct("=iii4xQ"), 4: struct.Struct("=iiiI")}
BLKPG_PARTITION = struct.Struct("=qqi128x4x")

RANGE = struct.Struct("=QQ")  # start and length in bytes: BLKDISCARD, BLKZEROOUT
INT = struct.Struct("=i")
USHORT = struct.Struct("=H")
U64 = struct.Struct("=Q")
LONG = {8: struct.Struct("=Q"), 4: struct.Struct("=I")}


def ioc_size(cmd: int) -> int:
    """Return the size in bytes that an ioctl number contains; 0 for old numbers without a size.

    Source: include/uapi/asm-generic/ioctl.h.
    """
    return (cmd >> 16) & 0x3FFF if cmd >> 30 else 0
