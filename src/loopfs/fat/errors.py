"""The errors of this package: OSError with the same errno as in fs/fat."""

from __future__ import annotations

import errno
import os


class Damaged(OSError):
    """The image is inconsistent, which fat_fs_error() reports (EIO).

    Args:
        what: a sentence for the log.
    """

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, what)


def refused(code: int) -> OSError:
    """Return an OSError with the errno ``code`` and its standard text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """Return EINVAL with a sentence for the user: a bad option, or not a FAT filesystem."""
    return OSError(errno.EINVAL, sentence)
