"""include/uapi/linux/aio_abi.h: struct iocb and its commands."""

from __future__ import annotations

import struct

IOCB_CMD_FSYNC = 2
IOCB_CMD_FDSYNC = 3

# struct iocb on a little-endian machine: data, key, rw_flags, lio_opcode, reqprio, fildes, buf,
# nbytes, offset, reserved2, flags, resfd
IOCB = struct.Struct("=QIIHhIQQqQII")
