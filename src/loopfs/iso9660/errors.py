"""The errors of this package: OSError with the errno that fs/isofs gives."""

from __future__ import annotations

import errno
import os


def refused(code: int) -> OSError:
    """An OSError with the errno ``code`` and its own text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """EINVAL with a sentence for a person: a bad option, or no ISO 9660 filesystem."""
    return OSError(errno.EINVAL, sentence)
