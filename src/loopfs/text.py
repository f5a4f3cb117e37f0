"""Names and options, which the kernel has as bytes, as str; and how a person is shown them.

Names of files, mounts, partitions, filesystem types and processes, and mount options, can be any
bytes but NUL. Inside they are str as Python has paths (PEP 383): a byte that the locale's encoding
does not know is a lone surrogate, and each comes back as it was, in every locale. So nothing but
this pair makes one of the other: str.encode() refuses the surrogates, and in a locale whose
encoding is not UTF-8 it gives other bytes.
"""

from __future__ import annotations

import os


def to_str(data: bytes) -> str:
    """Bytes of the kernel's as str; :func:`to_bytes` gives the same bytes again."""
    return os.fsdecode(data)


def to_bytes(text: str) -> bytes:
    """A str of :func:`to_str`, or a path of Python's, as the kernel has it.

    What the locale's encoding lacks came from no bytes of the kernel's (a word of the settings'
    file, which is UTF-8), and is UTF-8.
    """
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def unicode(text: str) -> str:
    """``text`` for who reads UTF-8: it is read as UTF-8 whatever the locale is, and each byte that
    is none is ``\\xNN``."""
    return to_bytes(text).decode("utf-8", "backslashreplace")


def shown(text: str) -> str:
    """``text`` for a person's terminal: as :func:`unicode`, in one line, and what cannot be
    printed as Python escapes it."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in unicode(text)
    )
