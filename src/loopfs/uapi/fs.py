"""ioctls of filesystems (linux/fs.h, linux/fiemap.h)."""

from __future__ import annotations

import struct

FS_IOC_GETFSLABEL = 0x81009431
FS_IOC_SETFSLABEL = 0x41009432
FS_IOC_SETFLAGS = 0x40086602
FS_IOC32_SETFLAGS = 0x40046602
FS_IOC_FIEMAP = 0xC020660B
FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
LABELS = FS_IOC_GETFSLABEL, FS_IOC_SETFSLABEL
FILES = FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FIEMAP, FIFREEZE, FITHAW

# struct fiemap without extents: start, length, flags, mapped, number of extents, reserved.
FIEMAP = struct.Struct("=QQIIII")
# struct fiemap_extent: logical and physical offset, length, flags.
FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")
FIEMAP_FLAG_SYNC = 1
