"""include/uapi/linux/fuse.h: opcodes, flags and structures of the FUSE protocol."""

from __future__ import annotations

import struct

from loopfs.lean import NamedTuple

FUSE_KERNEL_VERSION = 7
FUSE_KERNEL_MINOR_VERSION = 36  # the newest version with a feature that is used (INIT_EXT)
FUSE_ROOT_ID = 1
FUSE_MIN_READ_BUFFER = 8192

FUSE_LOOKUP = 1
FUSE_FORGET = 2
FUSE_GETATTR = 3
FUSE_SETATTR = 4
FUSE_READLINK = 5
FUSE_SYMLINK = 6
FUSE_MKNOD = 8
FUSE_MKDIR = 9
FUSE_UNLINK = 10
FUSE_RMDIR = 11
FUSE_RENAME = 12
FUSE_LINK = 13
FUSE_OPEN = 14
FUSE_READ = 15
FUSE_WRITE = 16
FUSE_STATFS = 17
FUSE_RELEASE = 18
FUSE_FSYNC = 20
FUSE_SETXATTR = 21
FUSE_GETXATTR = 22
FUSE_LISTXATTR = 23
FUSE_REMOVEXATTR = 24
FUSE_FLUSH = 25
FUSE_INIT = 26
FUSE_OPENDIR = 27
FUSE_READDIR = 28
FUSE_RELEASEDIR = 29
FUSE_FSYNCDIR = 30
FUSE_ACCESS = 34
FUSE_CREATE = 35
FUSE_INTERRUPT = 36
FUSE_DESTROY = 38
FUSE_IOCTL = 39
FUSE_POLL = 40
FUSE_BATCH_FORGET = 42
FUSE_FALLOCATE = 43
FUSE_READDIRPLUS = 44
FUSE_RENAME2 = 45
FUSE_LSEEK = 46
FUSE_COPY_FILE_RANGE = 47
FUSE_TMPFILE = 51
FUSE_STATX = 52
FUSE_COPY_FILE_RANGE_64 = 53

FUSE_NOTIFY_INVAL_INODE = 2
FUSE_NOTIFY_INVAL_ENTRY = 3
FUSE_NOTIFY_STORE = 4

# INIT flags
FUSE_ASYNC_READ = 1 << 0
FUSE_ATOMIC_O_TRUNC = 1 << 3
FUSE_BIG_WRITES = 1 << 5
FUSE_DONT_MASK = 1 << 6
FUSE_HAS_IOCTL_DIR = 1 << 11
FUSE_DO_READDIRPLUS = 1 << 13
FUSE_READDIRPLUS_AUTO = 1 << 14
FUSE_ASYNC_DIO = 1 << 15
FUSE_WRITEBACK_CACHE = 1 << 16
FUSE_PARALLEL_DIROPS = 1 << 18
FUSE_POSIX_ACL = 1 << 20
FUSE_MAX_PAGES = 1 << 22
FUSE_CACHE_SYMLINKS = 1 << 23
FUSE_HANDLE_KILLPRIV_V2 = 1 << 28
FUSE_OPEN_KILL_SUIDGID = 1 << 0  # in open_flags

# OPEN reply flags
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5

FUSE_GETATTR_FH = 1 << 0  # the request names an open file
FUSE_FSYNC_FDATASYNC = 1 << 0

# SETATTR valid bits
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

FUSE_IOCTL_COMPAT = 1 << 0
FUSE_IOCTL_DIR = 1 << 4

IN_HEADER = struct.Struct("=IIQQIIIHH")
OUT_HEADER = struct.Struct("=IiQ")
INIT_IN = struct.Struct("=IIII")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
ENTRY_OUT = struct.Struct("=QQQQII")
ATTR_OUT = struct.Struct("=QII")
ATTR = struct.Struct("=QQQqqqIIIIIIIIII")
FORGET_IN = struct.Struct("=Q")
INTERRUPT_IN = struct.Struct("=Q")  # the request that is interrupted
BATCH_FORGET_IN = struct.Struct("=I4x")
FORGET_ONE = struct.Struct("=QQ")
GETATTR_IN = struct.Struct("=IIQ")
SETATTR_IN = struct.Struct("=IIQQQqqqIIIIIIII")
OPEN_IN = struct.Struct("=II")
OPEN_OUT = struct.Struct("=QIi")
READ_IN = struct.Struct("=QQIIQII")
WRITE_IN = struct.Struct("=QQIIQII")
FUSE_WRITE_CACHE = 1  # in write_flags: the kernel writes cached pages, not a process
FUSE_WRITE_KILL_SUIDGID = 1 << 2  # clear set-user-id and set-group-id of the file
WRITE_OUT = struct.Struct("=II")
STATX_IN = struct.Struct("=IIQII")
# struct fuse_statx_out: validity; struct fuse_statx: mask, block size, attributes; nlink, uid,
# gid, mode; ino, size, blocks, mask of known attributes; atime, btime, ctime, mtime; devices.
STATX_OUT = struct.Struct("=QII16x IIQ IIIH2x QQQQ qI4x qI4x qI4x qI4x IIII112x")
RELEASE_IN = struct.Struct("=QIIQ")
FSYNC_IN = struct.Struct("=QII")
IOCTL_IN = struct.Struct("=QIIQII")
IOCTL_OUT = struct.Struct("=iIII")
FALLOCATE_IN = struct.Struct("=QQQII")
LSEEK_IN = struct.Struct("=QQII")
LSEEK_OUT = struct.Struct("=Q")
STATFS_OUT = struct.Struct("=QQQQQIIII24x")
DIRENT = struct.Struct("=QQII")
CREATE_IN = struct.Struct("=4I")
MKDIR_IN = struct.Struct("=II")
LINK_IN = struct.Struct("=Q")
SETXATTR_IN = struct.Struct("=II")  # without FUSE_SETXATTR_EXT
MKNOD_IN = struct.Struct("=3I4x")  # mode, rdev, umask
RENAME_IN = struct.Struct("=Q")
RENAME2_IN = struct.Struct("=QI4x")
GETXATTR_IN = struct.Struct("=I4x")
GETXATTR_OUT = struct.Struct("=I4x")
NOTIFY_INVAL_INODE_OUT = struct.Struct("=Qqq")
NOTIFY_INVAL_ENTRY_OUT = struct.Struct("=QII")
NOTIFY_STORE_OUT = struct.Struct("=QQI4x")


class InHeader(NamedTuple):
    """struct fuse_in_header. ``pid`` is a thread id in the mounter's pid namespace."""

    length: int
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    total_extlen: int
    padding: int


class Attr(NamedTuple):
    """struct fuse_attr. Ids are those of the mounting user namespace; ``size`` is in bytes.

    ``blocks`` is in units of 512 bytes; a block device has no blocks.
    """

    ino: int
    size: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    times: tuple[int, int, int]  # atime, mtime, ctime in nanoseconds since the epoch
    blksize: int = 4096
    blocks: int = 0

    def pack(self) -> bytes:
        (a, an), (m, mn), (c, cn) = (divmod(t, 1_000_000_000) for t in self.times)
        return ATTR.pack(
            self.ino,
            self.size,
            self.blocks,
            a,
            m,
            c,
            an,
            mn,
            cn,
            self.mode,
            self.nlink,
            self.uid,
            self.gid,
            self.rdev,
            self.blksize,
            0,
        )


def encode_dev(major: int, minor: int) -> int:
    """Encode a device number as in fuse_attr.rdev (new_encode_dev, include/linux/kdev_t.h)."""
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def pack_dirent(ino: int, offset: int, dtype: int, name: bytes) -> bytes:
    """Return a struct fuse_dirent with its name, padded to a multiple of eight bytes."""
    entry = DIRENT.pack(ino, offset, len(name), dtype) + name
    return entry + bytes(-len(entry) % 8)
