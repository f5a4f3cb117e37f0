"""Character sets (fs/nls): of names on disk, and of names for callers.

The tables are those of Python's codecs. Where they differ from the kernel's they are corrected
here; the tests compare them with the kernel's modules.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from functools import cache

from loopfs.lean import Callable, Iterable

_CODEPAGES = frozenset(
    {437, 737, 775, 850, 852, 855, 857, 860, 861, 862, 863, 864, 865, 866, 869, 874}
    | {932, 936, 949, 950, 1250, 1251, 1255}
)
_ISO8859 = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 13, 14, 15})
# The kernel's name: Python's name.
_OTHERS = {
    "ascii": "ascii",
    "default": "iso8859-1",
    "utf8": "utf-8",
    "euc-jp": "euc-jp",
    "koi8-r": "koi8-r",
    "koi8-u": "koi8-u",
    "sjis": "cp932",
    "gb2312": "cp936",
    "euc-kr": "cp949",
    "big5": "cp950",
}
# Characters that cp932 has twice: the kernel prefers the NEC and IBM rows, Python JIS and NEC.
_CP932 = {
    **{chr(0x2160 + n): bytes((0xFA, 0x4A + n)) for n in range(10)},
    "№": b"\xfa\x59",
    "℡": b"\xfa\x5a",
    "㈱": b"\xfa\x58",
    "√": b"\x87\x95",
    "∠": b"\x87\x97",
    "∩": b"\x87\x9b",
    "\u222a": b"\x87\x9c",
    "∫": b"\x87\x92",
    "∵": b"\xfa\x5b",
    "≒": b"\x87\x90",
    "≡": b"\x87\x91",
    "⊥": b"\x87\x96",
    "\u3094": b"\x83\x94",
    # Characters that only Python encodes, without the private use area.
    **dict.fromkeys("\x80\u2016\u2212\u301c\uf8f0\uf8f1\uf8f2\uf8f3", b""),
}


class Charset:
    """A table of fs/nls.

    Args:
        codec: the name of the codec in Python.
    """

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.utf8 = codec == "utf-8"
        self._exceptions: dict[str, bytes] = _CP932 if codec == "cp932" else {}
        # tolower() and toupper() of each single-byte character.
        self.lower = bytes(self._cased(c, str.lower) for c in range(256))
        self.upper = bytes(self._cased(c, str.upper) for c in range(256))

    def _cased(self, byte: int, case: Callable[[str], str]) -> int:
        if self.utf8:  # nls_utf8 has no case conversion, not even for ASCII
            return byte
        try:
            changed = case(bytes([byte]).decode(self.codec)).encode(self.codec)
        except UnicodeError:
            return byte
        return changed[0] if len(changed) == 1 else byte

    def encode(self, character: str) -> bytes:
        """Return the bytes of a character, as uni2char(); none if the set lacks it."""
        if (known := self._exceptions.get(character)) is not None:
            return known
        if self._exceptions and "\ue000" <= character <= "\uf8ff":
            return b""
        try:
            return character.encode(self.codec)
        except UnicodeError:
            return b""

    def decode(self, data: bytes, unknown: str) -> str:
        """Decode ``data`` as char2uni(); ``unknown`` replaces each byte that is no character."""
        try:
            text = data.decode(self.codec)
        except UnicodeError:
            pass
        else:
            if not self._exceptions or max(text, default="") < "\ue000" or text.isascii():
                return text
        out, at = [], 0
        while at < len(data):
            for length in (1, 2, 3, 4):
                if character := self._one(data[at : at + length]):
                    break
            else:
                character, length = unknown, 1
            out.append(character)
            at += length
        return "".join(out)

    def length(self, data: bytes) -> int:
        """Return the length of the first character of ``data``; 1 if it is invalid."""
        return next((n for n in (1, 2) if self._one(data[:n])), 1)

    def _one(self, raw: bytes) -> str:
        try:
            character = raw.decode(self.codec)
        except UnicodeError:
            return ""
        private = self._exceptions and "\ue000" <= character <= "\uf8ff"
        return "" if private or len(character) != 1 else character


@cache  # the tables take longer than all else that a mount's options do
def _charset(codec: str) -> Charset:
    return Charset(codec)


def codepage(number: int) -> Charset:
    """Return the table for the mount option ``codepage``, as load_nls().

    Raises:
        OSError: EINVAL: the kernel has no such code page.
    """
    if number not in _CODEPAGES:
        raise OSError(errno.EINVAL, f"there is no code page {number}")
    return _charset(f"cp{number}")


def charset(name: str) -> Charset:
    """Return the table for the mount option ``iocharset``, as load_nls().

    Raises:
        OSError: EINVAL: the kernel has no such character set.
    """
    kind, _, number = name.partition("-")
    if name in _OTHERS:
        return _charset(_OTHERS[name])
    if kind == "iso8859" and number.isdecimal() and int(number) in _ISO8859:
        return _charset(name)
    if name[:2] == "cp" and name[2:].isdecimal():
        return codepage(int(name[2:]))
    raise OSError(errno.EINVAL, f"there is no character set {name}")


def load(options: Iterable[str]) -> None:
    """Import the codecs that mount options need: a confined engine cannot import them later."""
    for option in options:
        key, _, value = option.partition("=")
        with suppress(OSError, ValueError):  # the parser of the options reports a bad one
            if key == "codepage":
                codepage(int(value, 0))
            elif key == "iocharset":
                charset(value)
