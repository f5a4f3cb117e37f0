"""The errors of this package: OSError with the same errno as in fs/ext4."""

from __future__ import annotations

import errno
import os


class Damaged(OSError):
    """The image is inconsistent (EFSCORRUPTED).

    Args:
        what: a sentence for the log.
        ino, block: the inode and the block concerned; 0 if there is none or it is not known.
    """

    def __init__(self, what: str, ino: int = 0, block: int = 0) -> None:
        super().__init__(errno.EUCLEAN, what)
        self.ino, self.block = ino, block


class BadChecksum(OSError):
    """A checksum in the image is wrong (EFSBADCRC).

    Args:
        what: a sentence for the log.
        ino, block: the inode and the block concerned; 0 if there is none or it is not known.
    """

    def __init__(self, what: str, ino: int = 0, block: int = 0) -> None:
        super().__init__(errno.EBADMSG, what)
        self.ino, self.block = ino, block


def refused(code: int) -> OSError:
    """Return an OSError with the errno ``code`` and its standard text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """Return EINVAL with a sentence for the user: a bad option or an unsupported feature."""
    return OSError(errno.EINVAL, sentence)
