"""Joliet: names in UCS-2, in a separate directory tree."""

from __future__ import annotations

import encodings.utf_16_be  # noqa: F401 a serving engine cannot import modules

from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.nls import Charset

# Escape sequences of a supplementary volume descriptor: UCS-2 levels 1, 2 and 3.
ESCAPE = b"%/"
LEVELS = {0x40: 1, 0x43: 2, 0x45: 3}
_VERSION = b";1"


def decode(raw: bytes, charset: Charset) -> bytes:
    """Decode a name for callers. It ends before a NUL; ";1" and trailing dots are removed.

    Characters that UTF-8 cannot encode are left out; those that another set lacks become "?".
    """
    units = [raw[at : at + 2] for at in range(0, len(raw) - 1, 2)]
    if b"\0\0" in units:
        units = units[: units.index(b"\0\0")]
    text = b"".join(units)
    if charset.utf8:
        name = text.decode("utf-16-be", "ignore").encode()
    else:
        name = b"".join(charset.encode(chr(int.from_bytes(unit, "big"))) or b"?" for unit in units)
    if len(name) > len(_VERSION) and name.endswith(_VERSION):
        name = name[: -len(_VERSION)]
    return name[:1] + name[1:].rstrip(b".")
