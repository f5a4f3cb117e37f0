"""The errors of this package: OSError with the errno that fs/udf gives."""

from __future__ import annotations

import errno
import os


def refused(code: int) -> OSError:
    """An OSError with the errno ``code`` and its own text."""
    return OSError(code, os.strerror(code))


def damaged() -> OSError:
    """EIO: the image contradicts itself, or ends too soon."""
    return refused(errno.EIO)


def invalid(sentence: str) -> OSError:
    """EINVAL with a sentence for a person: a bad option, or no UDF filesystem."""
    return OSError(errno.EINVAL, sentence)
