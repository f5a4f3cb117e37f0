"""Names of type msdos: 8.3, in bytes of the code page, without long names (fs/fat/namei_msdos.c).

The class has the interface of :class:`loopfs.fat.names.Names`.
"""

from __future__ import annotations

import errno

from loopfs.fat.errors import refused
from loopfs.fat.names import DELETED, KANJI_E5, Short
from loopfs.fat.options import Options
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Container

ATTR_HIDDEN = 2
_SPACE = 0x20
_NEVER = frozenset(b":\\") | frozenset(range(0x20))
_BAD = frozenset(b'*?<>|"')
_BAD_IF_STRICT = frozenset(b"+=,; ") | frozenset(range(0x41, 0x5B))
_HIDDEN_KEY = b"."


class MsdosNames:
    """The conversion of names according to the mount options.

    A name that is too long is truncated; case is ignored. With ``dots`` a leading dot means that
    the file is hidden.
    """

    def __init__(self, options: Options) -> None:
        self._dots = options.dots
        self._folds = not options.nocase
        self._check = options.check
        self._codepage = options.codepage

    def key(self, name: bytes) -> bytes:
        """Return the same for names that refer to the same file, and b"" for an invalid name."""
        try:
            short = self._formatted(name)
        except OSError:
            return b""
        return short + _HIDDEN_KEY if self._dots and name[:1] == b"." else short

    def keys(self, name: bytes, short: bytes, lcase: int, attr: int) -> tuple[bytes, bytes]:
        """Return the keys by which an entry is found."""
        key = short + _HIDDEN_KEY if self._dots and attr & ATTR_HIDDEN else short
        return key, key

    def decode(self, name: bytes) -> str:
        """Check a caller's name for a new entry, and return it as text for :meth:`short`.

        Raises:
            OSError: EINVAL.
        """
        self._formatted(name)
        return name.decode("latin-1")

    def named(self, short: bytes, lcase: int, attr: int, text: str | None) -> bytes:
        """Return the name of an entry. Its long name is ignored."""
        return self.shown(short, lcase, attr)

    def shown(self, short: bytes, lcase: int, attr: int) -> bytes:
        """Return a short name as it is shown (fat_parse_short())."""
        if short[0] == KANJI_E5:
            short = bytes([DELETED]) + short[1:]
        base, extension = (
            self._lower(part.partition(b"\0")[0].rstrip(b" ")) for part in (short[:8], short[8:])
        )
        name = base + b"." + extension if extension else base
        return b"." + name if name and self._dots and attr & ATTR_HIDDEN else name

    def _lower(self, part: bytes) -> bytes:
        if not self._folds:
            return part
        if part.isascii():
            return part.lower()
        out, at = b"", 0
        while at < len(part):
            length = self._codepage.length(part[at:])
            character = part[at : at + length]
            out += character.lower() if length == 1 else character
            at += length
        return out

    def short(self, text: str, taken: Container[bytes]) -> Short:
        """Return the short name of ``text``, which must be unused (``.foo`` has that of ``foo``).

        Args:
            taken: the short names of the directory.
        Raises:
            OSError: EINVAL.
        """
        short = self._formatted(text.encode("latin-1"))
        if short in taken:
            raise refused(errno.EINVAL)
        return Short(short, 0, True)

    def attributes(self, attr: int, name: bytes) -> int:
        """Return the ATTR_* of an entry with ``attr`` when it is named ``name``."""
        return attr | ATTR_HIDDEN if name[:1] == b"." else attr & ~ATTR_HIDDEN

    def differs_by_dot(self, name: bytes, short: bytes) -> bool:
        """Return whether a name matches a short name, apart from the dot of a hidden file."""
        return self.key(name)[: len(short)] == short

    def _formatted(self, name: bytes) -> bytes:
        """Return the short name (msdos_format_name()). Raises OSError EINVAL."""
        if name[:1] == b".":
            if not self._dots:
                raise refused(errno.EINVAL)
            name = name[1:]
        strict = self._check == "s"
        base, _, rest = name.partition(b".")
        self._allow(base[:8])
        if not base or base[:8][-1] == _SPACE or (strict and len(base) > 8):
            raise refused(errno.EINVAL)
        extension, more, _ = rest.partition(b".")
        self._allow(extension[:3])
        if extension[:3][-1:] == b" " or (strict and (len(extension) > 3 or more)):
            raise refused(errno.EINVAL)
        short = base[:8].ljust(8) + extension[:3].ljust(3)
        if short[0] == DELETED:
            short = bytes([KANJI_E5]) + short[1:]
        return short.upper() if self._folds else short

    def _allow(self, part: bytes) -> None:
        bad = _NEVER if self._check == "r" else _NEVER | _BAD
        if self._check == "s":
            bad |= _BAD_IF_STRICT
        if not bad.isdisjoint(part):
            raise refused(errno.EINVAL)
