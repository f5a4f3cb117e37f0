"""Conversion of the kernel's byte strings to str and back, and their display.

Names of files, mounts, partitions, filesystem types and processes, and mount options, can contain
any byte except NUL. loopfs stores them as str in the way of Python's paths (PEP 383): a byte that
the locale's encoding cannot decode is a lone surrogate, and is restored by the inverse conversion,
in every locale. Only the following pair of functions must be used for that: str.encode() refuses
surrogates, and in a locale whose encoding is not UTF-8 it returns other bytes.
"""

from __future__ import annotations

import os


def to_str(data: bytes) -> str:
    """Convert bytes of the kernel to str; :func:`to_bytes` is the inverse."""
    return os.fsdecode(data)


def to_bytes(text: str) -> bytes:
    """Convert a str from :func:`to_str`, or a path of Python, to the kernel's bytes.

    A str that the locale's encoding lacks characters of is not from the kernel (but from the
    settings file, which is UTF-8), and is encoded as UTF-8.
    """
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def unicode(text: str) -> str:
    """Return ``text`` for a reader of UTF-8: its bytes decoded as UTF-8 in every locale.

    An invalid byte becomes ``\\xNN``.
    """
    return to_bytes(text).decode("utf-8", "backslashreplace")


def shown(text: str) -> str:
    """Return ``text`` for a terminal: as :func:`unicode`, in one line.

    Unprintable characters are escaped as by Python.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in unicode(text)
    )
