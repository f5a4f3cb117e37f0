"""Names: OSTA Compressed Unicode (UDF 2.1.1), converted for Linux (UDF 4.2.2.1.5)."""

from __future__ import annotations

import encodings.utf_16_be  # noqa: F401 a serving engine cannot import modules

from loopfs.lean import TYPE_CHECKING
from loopfs.udf.tag import crc

if TYPE_CHECKING:
    from loopfs.nls import Charset

_EIGHT, _SIXTEEN = 8, 16  # bits of a character
_ILLEGAL = "/\0"
_LONGEST_EXTENSION = 5  # characters
_NAME_MAX = 254  # bytes
_MARK = 5  # bytes: "#" and a CRC


def decode(raw: bytes, charset: Charset, *, component: bool = False) -> bytes | None:
    """Decode a name for callers; None: it is invalid.

    Args:
        component: it is a component of a symbolic link, which can be "." and "..".
    """
    if not raw:
        return b""
    text = _text(raw)
    if text is None:
        return None
    name, damaged = _encoded(text, charset)
    if (name in (b".", b"..") and not component) or damaged or len(name) > _NAME_MAX:
        return _marked(text, raw[1:], charset)
    return name


def _text(raw: bytes) -> str | None:
    if raw[0] == _EIGHT:
        return raw[1:].decode("latin-1")
    if raw[0] != _SIXTEEN or not len(raw) & 1:
        return None
    return raw[1:].decode("utf-16-be", "replace")


def _encoded(text: str, charset: Charset) -> tuple[bytes, bool]:
    """Encode a name in a character set; return whether a character had to be replaced, too.

    "_" replaces each character that the set lacks, and each sequence of characters that no name
    can contain.
    """
    if charset.utf8 and "/" not in text and "\0" not in text and "\ufffd" not in text:
        return text.encode(), False
    out, replaced, last = [], False, ""
    for character in text:
        if character in _ILLEGAL:
            replaced = True
            if last not in _ILLEGAL or not last:
                out.append(b"_")
        else:
            raw = b"" if character == "\ufffd" else charset.encode(character)
            replaced |= not raw
            out.append(raw or b"_")
        last = character
    return b"".join(out), replaced


def _marked(text: str, raw: bytes, charset: Charset) -> bytes:
    """Return a name with the CRC of the stored name before the extension, so that it is unique."""
    stem, dot, extension = text.rpartition(".")
    if not dot or not 0 < len(extension) <= _LONGEST_EXTENSION:
        stem, extension = text, ""
    end = _encoded(dot + extension, charset)[0] if extension else b""
    begin = _encoded(stem, charset)[0][: _NAME_MAX - _MARK - len(end)]
    return begin + b"#%04X" % crc(raw) + end
