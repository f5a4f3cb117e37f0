"""The errors of this package: OSError with the same errno as in fs/udf."""

from __future__ import annotations

import errno
import os


def refused(code: int) -> OSError:
    """Return an OSError with the errno ``code`` and its standard text."""
    return OSError(code, os.strerror(code))


def damaged() -> OSError:
    """Return EIO: the image is inconsistent or truncated."""
    return refused(errno.EIO)


def invalid(sentence: str) -> OSError:
    """Return EINVAL with a sentence for the user: a bad option, or not a UDF filesystem."""
    return OSError(errno.EINVAL, sentence)
