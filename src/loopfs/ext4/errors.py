"""The errors of this package: OSError with the errno that fs/ext4 gives."""

from __future__ import annotations

import errno
import os


class Damaged(OSError):
    """The image contradicts itself (EFSCORRUPTED).

    Args:
        what: a sentence for the log.
        ino, block: which inode and block; 0: none, or not known.
    """

    def __init__(self, what: str, ino: int = 0, block: int = 0) -> None:
        super().__init__(errno.EUCLEAN, what)
        self.ino, self.block = ino, block


class BadChecksum(OSError):
    """A checksum of the image is wrong (EFSBADCRC).

    Args:
        what: a sentence for the log.
        ino, block: which inode and block; 0: none, or not known.
    """

    def __init__(self, what: str, ino: int = 0, block: int = 0) -> None:
        super().__init__(errno.EBADMSG, what)
        self.ino, self.block = ino, block


def refused(code: int) -> OSError:
    """An OSError with the errno ``code`` and its own text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """EINVAL with a sentence for a person: a bad option, or what is not supported."""
    return OSError(errno.EINVAL, sentence)
