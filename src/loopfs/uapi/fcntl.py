"""struct flock of 64-bit programs (fcntl(2), asm-generic/fcntl.h)."""

from __future__ import annotations

import os
import struct

from loopfs.lean import NamedTuple

FLOCK = struct.Struct("=hh4xqqi4x")


class Flock(NamedTuple):
    """``start`` and ``len`` are in bytes; a ``len`` of 0 means up to the largest possible
    offset."""

    type: int
    start: int
    len: int
    pid: int = 0

    @classmethod
    def unpack(cls, data: bytes) -> Flock:
        kind, _, start, length, pid = FLOCK.unpack(data)
        return cls(kind, start, length, pid)

    def pack(self) -> bytes:
        return FLOCK.pack(self.type, os.SEEK_SET, self.start, self.len, self.pid)
