"""The errors of this package: OSError with the same errno as in fs/isofs."""

from __future__ import annotations

import errno
import os


def refused(code: int) -> OSError:
    """Return an OSError with the errno ``code`` and its standard text."""
    return OSError(code, os.strerror(code))


def invalid(sentence: str) -> OSError:
    """Return EINVAL with a sentence for the user: a bad option, or not an ISO 9660 filesystem."""
    return OSError(errno.EINVAL, sentence)
