"""What the memory devices read and write (drivers/char/mem.c, drivers/char/random.c), for files of
ours that stand for them where a special file cannot be opened."""

from __future__ import annotations

import errno
import os

from loopfs.uapi.fuse import encode_dev

_ENDLESS = 1 << 62  # bytes: a mapping beyond a file's size faults
_SERVED = frozenset({b"null", b"zero", b"full", b"random", b"urandom"})
_ZEROES = frozenset({b"zero", b"full"})

# By their numbers as FUSE has them (Documentation/admin-guide/devices.txt). What a terminal does
# cannot be passed on.
NAMES = {
    encode_dev(1, 3): b"null",
    encode_dev(1, 5): b"zero",
    encode_dev(1, 7): b"full",
    encode_dev(1, 8): b"random",
    encode_dev(1, 9): b"urandom",
    encode_dev(5, 0): b"tty",
}


def check_opens(name: bytes) -> None:
    """Raise OSError ENXIO for a device that is not one of them."""
    if name not in _SERVED:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))


def size_of(name: bytes) -> int:
    """Bytes of the regular file that stands for it."""
    return _ENDLESS if name in _ZEROES else 0


def read(name: bytes, size: int) -> bytes:
    """At most ``size`` bytes."""
    if name == b"null":
        return b""
    return bytes(size) if name in _ZEROES else os.urandom(size)


def write(name: bytes, size: int) -> int:
    """Returns how many bytes were taken. Raises OSError: ENOSPC."""
    if name == b"full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return size
