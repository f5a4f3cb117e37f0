"""Names: as bytes from callers, as text, and as directory entries (fs/fat/namei_vfat.c).

A *short name* is 11 bytes of the code page, base and extension padded with spaces. A name that a
short name cannot express is stored in *slots*, of 13 UTF-16 units each, before the short entry.
"""

from __future__ import annotations

import errno
import struct
import zlib

from loopfs.fat.errors import refused
from loopfs.fat.options import Options
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container

ATTR_LONG_NAME = 0x0F  # read-only, hidden, system and volume
CASE_LOWER_BASE, CASE_LOWER_EXT = 0x08, 0x10
DELETED, KANJI_E5 = 0xE5, 0x05  # the first byte of a free entry; the substitute for a real 0xE5
LAST_SLOT = 0x40
MOST_UNITS = 255  # FAT_LFN_LEN
MSDOS_NAME_MAX = 12  # characters: 8.3 with the dot
MOST_SLOTS = 20
SLOT = struct.Struct("<B10sBBB12sH4s")  # struct msdos_dir_slot

_BAD = frozenset('*?<>|":/\\') | {chr(c) for c in range(32)}
_SKIPPED = frozenset(b". ")
_REPLACED = frozenset(b"[];,+=")
_ESCAPE = 5  # ":" and four hexadecimal digits


class Short(NamedTuple):
    """An unused short name.

    Attributes:
        name: the 11 bytes.
        lcase: CASE_LOWER_* bits (NTRes).
        whole: it expresses the full name, so that no slots are needed.
    """

    name: bytes
    lcase: int
    whole: bool


class _Part(NamedTuple):
    """A base or an extension, converted to the short form.

    Attributes:
        lower, upper: all its letters are lower case, or all are upper case.
        valid: no character was replaced or left out.
        whole: it was not truncated.
        marks: where a numeric tail can begin, near 2 and 6, without splitting a character.
    """

    text: bytes
    lower: bool
    upper: bool
    valid: bool
    whole: bool
    marks: tuple[int, int]


class Names:
    """The conversion of names according to the mount options."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._codepage = options.codepage
        self._fold = options.iocharset.lower
        self._exact = options.check == "s" or options.iocharset.utf8
        self._units: dict[int, tuple[bytes, bool, bool, bool]] = {}

    def key(self, name: bytes) -> bytes:
        """Return the same for names that refer to the same file."""
        name = name.rstrip(b".")
        return name if self._exact else name.translate(self._fold)

    def keys(self, name: bytes, short: bytes, lcase: int, attr: int) -> tuple[bytes, bytes]:
        """Return the keys by which an entry is found: of its name, and of its shown short name."""
        return self.key(name), self.key(self.shown(short, lcase, attr))

    def decode(self, name: bytes) -> str:
        """Decode a caller's name for a new entry, without trailing dots.

        Raises:
            OSError: EINVAL (also for a character that the character set lacks), ENOENT,
                ENAMETOOLONG.
        """
        name = name.rstrip(b".")
        if not name:
            raise refused(errno.ENOENT)
        try:
            text = name.decode() if self._options.utf8 else self._decode_charset(name)
        except UnicodeError:
            raise refused(errno.EINVAL) from None
        if len(text) + sum(c > "\uffff" for c in text) > MOST_UNITS:
            raise refused(errno.ENAMETOOLONG)
        if text[-1] == " " or not _BAD.isdisjoint(text):
            raise refused(errno.EINVAL)
        return text

    def _decode_charset(self, name: bytes) -> str:
        codec = self._options.iocharset.codec
        if not self._options.uni_xlate:
            return name.decode(codec)
        first, *rest = name.split(b":")
        out = [first.decode(codec)]
        for part in rest:
            digits = part[: _ESCAPE - 1]
            if len(digits) < _ESCAPE - 1 or not digits.isalnum():
                raise refused(errno.EINVAL)
            try:
                out.append(chr(int(digits, 16)) + part[_ESCAPE - 1 :].decode(codec))
            except ValueError:
                raise refused(errno.EINVAL) from None
        # Two escapes may be a surrogate pair.
        return "".join(out).encode("utf-16-le", "surrogatepass").decode("utf-16-le")

    def encode(self, text: str) -> bytes:
        """Encode a name for callers; a lone surrogate is left out, or becomes "?"."""
        if self._options.utf8:
            return text.encode("utf-8", "ignore")
        return b"".join(map(self._encode_unit, _units(text)))

    def _encode_unit(self, unit: int) -> bytes:
        if raw := self._options.iocharset.encode(chr(unit)):
            return raw
        return b":%04x" % unit if self._options.uni_xlate else b"?"

    def named(self, short: bytes, lcase: int, attr: int, text: str | None) -> bytes:
        """Return the name of an entry; ``text`` is its long name, or None."""
        return self.shown(short, lcase, attr) if text is None else self.encode(text)

    def attributes(self, attr: int, name: bytes) -> int:
        """Return the ATTR_* of an entry with ``attr`` when it is named ``name``."""
        return attr

    def differs_by_dot(self, name: bytes, short: bytes) -> bool:
        """Return whether a name matches a short name, apart from the dot of a hidden file."""
        return False

    def shown(self, short: bytes, lcase: int, attr: int) -> bytes:
        """Return a short name as it is shown; ``lcase``: the CASE_LOWER_* bits of its entry."""
        if short[0] == KANJI_E5:
            short = bytes([DELETED]) + short[1:]
        way = self._options.shown
        parts = []
        for part, bit in ((short[:8], CASE_LOWER_BASE), (short[8:], CASE_LOWER_EXT)):
            lower = way == "lower" or (way == "winnt" and bool(lcase & bit))
            parts.append(self._shown_part(part.rstrip(b" "), lower))
        return self.encode(".".join(parts) if parts[1] else parts[0])

    def _shown_part(self, part: bytes, lower: bool) -> str:
        codepage = self._codepage
        if part.isascii():
            return (part.lower() if lower else part).decode("ascii")
        text = codepage.decode(part, "?")
        if not lower:
            return text
        # A character of two bytes has no case here, and its bytes are not letters.
        single = [(codepage.encode(c), c) for c in text]
        return "".join(
            codepage.decode(raw.translate(codepage.lower), "?") if len(raw) == 1 else c
            for raw, c in single
        )

    # --- new short names -----------------------------------------------------

    def short(self, text: str, taken: Container[bytes]) -> Short:
        """Return an unused short name for ``text`` (vfat_create_shortname()).

        Args:
            taken: the short names of the directory.
        Raises:
            OSError: EEXIST, EINVAL.
        """
        units = _units(text)
        dot = len(units) - 1 - units[::-1].index(0x2E) if 0x2E in units else -1
        if dot == len(units) - 1 or _SKIPPED.issuperset(units[: max(dot, 0)]):
            dot = -1
        base = self._part(units if dot < 0 else units[:dot], 8)
        extension = self._part(() if dot < 0 else units[dot + 1 :], 3)
        if not base.text:
            raise refused(errno.EINVAL)
        stem = base.text
        if stem[0] == DELETED:
            stem = bytes([KANJI_E5]) + stem[1:]
        plain = stem.ljust(8) + extension.text.ljust(3)
        if base.whole and extension.whole and base.valid and extension.valid:
            if plain in taken:
                raise refused(errno.EEXIST)
            return self._plain(plain, base, extension)
        if not self._options.numtail and plain not in taken:
            return Short(plain, 0, False)
        return Short(self._numbered(text, stem, base.marks, plain[8:], taken), 0, False)

    def _plain(self, name: bytes, base: _Part, extension: _Part) -> Short:
        if self._options.made == "win95":
            return Short(name, 0, base.upper and extension.upper)
        if not (base.upper or base.lower) or not (extension.upper or extension.lower):
            return Short(name, 0, False)
        lcase = 0 if base.upper else CASE_LOWER_BASE
        lcase |= 0 if extension.upper else CASE_LOWER_EXT
        return Short(name, lcase, True)

    @staticmethod
    def _numbered(
        text: str, base: bytes, marks: tuple[int, int], extension: bytes, taken: Container[bytes]
    ) -> bytes:
        """Return an unused name with a tail: ~1 to ~9, otherwise four hash digits and a number.

        The kernel derives the digits from its clock. Here they are derived from the name, so that
        images are reproducible.
        """
        two, six = marks
        stem = base[:six] if len(base) > 6 else base
        for digit in b"123456789":
            if (name := (stem + b"~%c" % digit).ljust(8) + extension) not in taken:
                return name
        stem = base[:two] if len(base) > 2 else base
        number = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        tail = 0x31 + (number >> 16 & 7)
        # The loop ends: a directory has fewer entries than there are such names.
        while True:
            name = (stem + b"%04X~%c" % (number & 0xFFFF, tail)).ljust(8) + extension
            if name not in taken:
                return name
            number -= 11

    def _part(self, units: tuple[int, ...], most: int) -> _Part:
        out = bytearray()
        lower = upper = valid = whole = True
        marks = [2, 6]
        for n, unit in enumerate(units):
            if (known := self._units.get(unit)) is None:
                known = self._units[unit] = self._unit(unit)  # at most 65,536 units
            raw, low, up, same = known
            lower, upper, valid = lower and low, upper and up, valid and same
            if not raw:
                continue
            end = len(out) + len(raw)
            if most == 3 and end > 3:
                whole = False
                break
            for k, mark in enumerate((2, 6)):
                if len(out) < mark < end:
                    marks[k] = len(out)
            out += raw[: most - len(out)]
            if len(out) == most:
                whole = end == most and n + 1 == len(units)
                break
        return _Part(bytes(out), lower, upper, valid, whole, (marks[0], marks[1]))

    def _unit(self, unit: int) -> tuple[bytes, bool, bool, bool]:
        """Convert a unit as to_shortname_char(): its bytes, and lower, upper, valid of _Part."""
        if unit in _SKIPPED:
            return b"", True, True, False
        raw = b"" if unit in _REPLACED else self._codepage.encode(chr(unit))
        if not raw:
            return b"_", True, True, False
        if len(raw) > 1:
            return raw, False, False, True
        capital = raw.translate(self._codepage.upper)
        if raw[0] >= 0x7F:
            return capital, False, False, True
        letter = capital.isalpha()
        return capital, not letter or capital != raw, not letter or capital == raw, True


def checksum(short: bytes) -> int:
    """Return the checksum of a short name that its slots contain (fat_checksum())."""
    total = 0
    for byte in short:
        total = (total >> 1 | total << 7 & 0x80) + byte & 0xFF
    return total


def slots(text: str, short: bytes) -> bytes:
    """Encode the slots of a long name, in their order on disk: the last part comes first."""
    raw = text.encode("utf-16-le", "surrogatepass")
    if len(raw) % 26:
        raw += b"\0\0"
        raw += b"\xff" * (-len(raw) % 26)
    count, check, out = len(raw) // 26, checksum(short), []
    for n in range(count, 0, -1):
        part = raw[n * 26 - 26 : n * 26]
        number = n | (LAST_SLOT if n == count else 0)
        head = number, part[:10], ATTR_LONG_NAME, 0, check
        out.append(SLOT.pack(*head, part[10:22], 0, part[22:]))
    return b"".join(out)


def slot_text(slot: bytes) -> bytes:
    """Return the 26 bytes of UTF-16 in a slot."""
    return slot[1:11] + slot[14:26] + slot[28:32]


def joined(parts: list[bytes]) -> str:
    """Return a long name from the contents of its slots, which are in their order on disk."""
    raw = b"".join(reversed(parts))
    end = next((at for at in range(0, len(raw), 2) if raw[at : at + 2] == b"\0\0"), len(raw))
    return raw[:end].decode("utf-16-le", "surrogatepass")


def _units(text: str) -> tuple[int, ...]:
    raw = text.encode("utf-16-le", "surrogatepass")
    return struct.unpack(f"<{len(raw) // 2}H", raw)
