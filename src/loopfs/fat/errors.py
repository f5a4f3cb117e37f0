"""The errors of this package: OSError with the errno that fs/fat gives."""

from __future__ import annotations

import errno
import os


class Damaged(OSError):
    """The image contradicts itself: what fat_fs_error() reports (EIO).

    Args:
        what: a sentence for the log.
    """

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, what)


def refused(code: int) -> OSError:
    """An OSError with the errno ``code`` and its own text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """EINVAL with a sentence for a person: a bad option, or no FAT filesystem."""
    return OSError(errno.EINVAL, sentence)
