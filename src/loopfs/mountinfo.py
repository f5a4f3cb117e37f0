"""The mount table of a process (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os

from loopfs.lean import Iterable, NamedTuple
from loopfs.text import to_str


class Mount(NamedTuple):
    """A mount: its id and its parent's, mount point, type, and the st_dev of its filesystem."""

    mount_id: int
    parent: int
    place: str
    fstype: str
    device: int


def parse(lines: Iterable[bytes]) -> list[Mount]:
    """Return the mounts of a table, in the same order."""
    mounts = []
    for line in lines:
        fields = line.rstrip(b"\n").split(b" ")  # only spaces separate; other blanks are text
        fstype = fields[fields.index(b"-") + 1]
        device = os.makedev(*map(int, fields[2].split(b":")))
        ids = int(fields[0]), int(fields[1])
        mounts.append(Mount(*ids, _text(fields[4]), _text(fstype), device))
    return mounts


def _text(field: bytes) -> str:
    """Decode a field, in which blanks, newlines and backslashes are octal numbers."""
    plain, *escaped = field.split(b"\\")  # three octal digits follow each
    return to_str(plain + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in escaped))
