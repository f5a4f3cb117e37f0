"""The requests of a random sequence, each one or a few system calls, chosen by a seed."""

from __future__ import annotations

import os
import stat
import struct
from random import Random
from typing import NamedTuple

RENAMES = (0, 0, 0, 1, 2, 2, 4, 3, 6, 8)
FALLOCATES = (0, 0, 1, 3, 3, 16, 17, 2, 64)
SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME = 0x8, 0x10, 0x20, 0x40, 0x80
DIRSYNC, TOPDIR = 0x10000, 0x20000
_FLAGS = (SYNC, IMMUTABLE, APPEND, NODUMP, NOATIME, DIRSYNC, TOPDIR)
_ATTRIBUTES = ("user.a", "user.long_name_of_it", "trusted.t", "security.s", "strange.x")
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_OFTEN = """
create=7 write=16 append=4 truncate=6 rename=14 link=5 symlink=4 mkdir=7 unlink=7 rmdir=4
mknod=3 chmod=4 chown=4 utimens=4 fallocate=8 read=5 setxattr=8 getxattr=2 removexattr=3
set_acl=4 tmpfile=3 flags=3 unlinked=3 use_open=4 seek=3 list=2 readlink=2 huge=1 map=2
copy=2 stat=3 statfs=1 bad_flags=1 fsync=2
"""
_WEIGHTS = {word.split("=")[0]: int(word.split("=")[1]) for word in _OFTEN.split()}


class Request(NamedTuple):
    """One request; what a kind does not need has no meaning.

    Attributes:
        user: who asks.
        to: a second path.
        number: a mode, a device, flags, or an owner.
    """

    kind: str
    user: int
    path: str
    to: str
    offset: int
    length: int
    data: bytes
    number: int
    flag: int
    name: str
    value: bytes
    times: tuple[int, int]


class Chooser:
    """A source of requests.

    Args:
        block: bytes, of the filesystem.
        room: bytes that a file's attributes may have together.

    Attributes:
        large: how many of the attributes are larger than a block, a part of 1.
    """

    def __init__(self, seed: int, block: int, room: int) -> None:
        self.random = Random(seed)
        self._block = block
        self._room = room
        self.directories = [""]
        self.large = 0.05

    def path(self) -> str:
        r = self.random
        char = r.choice("abcdefgh\xe9")
        length = r.choices((1, 2, 30, 120, 253, 254), (30, 10, 8, 6, 2, 1))[0]
        name = (char * length).encode("latin-1")[:length] + b"%d" % r.randrange(12)
        return r.choice(self.directories) + "/" + os.fsdecode(name)

    def next(self) -> Request:
        """Another one."""
        r = self.random
        kind = r.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        offset = r.choice((0, 0, r.randrange(5000), r.randrange(300_000), r.randrange(40) * 4096))
        length = r.choice((r.randrange(6000), r.randrange(200_000), r.randrange(9) * self._block))
        fill = bytes([r.randrange(1, 256)])
        return Request(
            kind,
            1000 if r.random() < 0.15 else 0,
            self.path(),
            self.path(),
            offset,
            length,
            fill * min(length, 5000 if kind == "create" else length),
            self._number(kind),
            r.choice(FALLOCATES if kind == "fallocate" else RENAMES),
            r.choice(_ACLS if kind == "set_acl" else _ATTRIBUTES),
            self._acl() if kind == "set_acl" else fill * self._value_length(),
            (self._time(), self._time()),
        )

    def _value_length(self) -> int:
        r = self.random
        if r.random() < self.large:
            return r.choice((self._block + 1, r.randrange(65536), 65536, 65537))
        return min(r.choice((0, 3, 10, 60, 300, 900)), self._room // 6)

    def _time(self) -> int:
        """Nanoseconds; years that all inodes can hold, and others."""
        r = self.random
        return (r.randrange(1 << 33) - (1 << 30)) * 10**9 + r.choice((0, r.randrange(10**9)))

    def _number(self, kind: str) -> int:
        r = self.random
        if kind == "mknod":
            return r.choice((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK)) | 0o600
        if kind == "flags":
            return sum(flag for flag in _FLAGS if r.random() < 0.2)
        if kind == "huge":
            return r.choice(((1 << 32) * self._block, 1 << 41, 1 << 62, 1 << 34))
        return r.randrange(0o10000)

    def _acl(self) -> bytes:
        r = self.random
        rows = [(1, r.randrange(8), -1), (4, r.randrange(8), -1)]
        if r.random() < 0.7:
            rows.insert(1, (2, r.randrange(8), 1000))
            rows += [(8, r.randrange(8), r.randrange(3000)), (16, r.randrange(8), -1)]
        rows.append((32, r.randrange(8), -1))
        packed = (struct.pack("<HHi", *row) for row in rows)
        return struct.pack("<I", 2) + b"".join(packed)
