"""Reads and writes of the memory devices (drivers/char/mem.c, drivers/char/random.c), for the
regular files that replace them where a special file cannot be opened."""

from __future__ import annotations

import errno
import os

from loopfs.uapi.fuse import encode_dev

_ENDLESS = 1 << 62  # bytes: access to a mapping beyond the size of a file faults
_SERVED = frozenset({b"null", b"zero", b"full", b"random", b"urandom"})
_ZEROES = frozenset({b"zero", b"full"})

# By their device numbers as FUSE encodes them (Documentation/admin-guide/devices.txt). A terminal
# cannot be replaced: it is listed, but does not open.
NAMES = {
    encode_dev(1, 3): b"null",
    encode_dev(1, 5): b"zero",
    encode_dev(1, 7): b"full",
    encode_dev(1, 8): b"random",
    encode_dev(1, 9): b"urandom",
    encode_dev(5, 0): b"tty",
}


def check_opens(name: bytes) -> None:
    """Check that a regular file can replace a device. Raises OSError ENXIO."""
    if name not in _SERVED:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


def size_of(name: bytes) -> int:
    """Return the size in bytes of the regular file that replaces a device."""
    return _ENDLESS if name in _ZEROES else 0


def read(name: bytes, size: int) -> bytes:
    """Return at most ``size`` bytes."""
    if name == b"null":
        return b""
    return bytes(size) if name in _ZEROES else os.urandom(size)


def write(name: bytes, size: int) -> int:
    """Return how many bytes were written. Raises OSError ENOSPC."""
    if name == b"full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return size
