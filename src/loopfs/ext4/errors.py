"""The errors of this package: OSError with the errno that fs/ext4 gives."""

from __future__ import annotations

import errno
import os


class Damaged(OSError):
    """The image contradicts itself (EFSCORRUPTED).

    Args:
        what: a sentence for the log.
    """

    def __init__(self, what: str) -> None:
        super().__init__(errno.EUCLEAN, what)


class BadChecksum(OSError):
    """A checksum of the image is wrong (EFSBADCRC).

    Args:
        what: a sentence for the log.
    """

    def __init__(self, what: str) -> None:
        super().__init__(errno.EBADMSG, what)


def refused(code: int) -> OSError:
    """An OSError with the errno ``code`` and its own text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """EINVAL with a sentence for a person: a bad option, or what is not supported."""
    return OSError(errno.EINVAL, sentence)
