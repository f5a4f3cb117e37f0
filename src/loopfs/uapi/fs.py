"""ioctls of filesystems (linux/fs.h)."""

from __future__ import annotations

FS_IOC_GETFSLABEL = 0x81009431
FS_IOC_SETFSLABEL = 0x41009432
