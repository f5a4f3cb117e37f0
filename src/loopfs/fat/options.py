"""The mount options of vfat and msdos (Documentation/filesystems/vfat.rst, fs/fat/inode.c).

Options that the kernel accepts and ignores are accepted and ignored; any other is EINVAL.
"""

from __future__ import annotations

from loopfs import nls
from loopfs.fat.errors import invalid
from loopfs.lean import Callable, Iterable, NamedTuple

# shortname=: how short names are shown, and which names are stored without a long name.
_SHORTNAMES = {
    "lower": ("lower", "win95"),
    "win95": ("win95", "win95"),
    "winnt": ("winnt", "winnt"),
    "mixed": ("winnt", "win95"),
}
_CHECK = {word: word[0] for word in ("r", "relaxed", "n", "normal", "s", "strict")}
_YES, _NO = {"yes", "true", "1"}, {"no", "false", "0"}
_ERRORS = ("continue", "panic", "remount-ro")
_FLAGS = {
    "quiet": "quiet",
    "showexec": "showexec",
    "rodir": "rodir",
    "discard": "discard",
    "sys_immutable": "sys_immutable",
    "usefree": "usefree",
    "dos1xfloppy": "dos1xfloppy",
    "nocase": "nocase",
}
# Options without an effect here: FUSE mounts of loopfs are not exported by NFS, and everything is
# written at once. The conv= options are obsolete, and ignored by the kernel, too.
_IGNORED = frozenset(
    {"flush", "debug", "posix", "nfs", "nfs=stale_rw", "nfs=nostale_ro"}
    | {f"conv={way}" for way in ("binary", "text", "auto", "b", "t", "a")}
)
_OBSOLETE_NUMBERS = ("fat", "blocksize")
_INT_MAX = 0x7FFFFFFF


class Defaults(NamedTuple):
    """The defaults from the caller: fsuid, fsgid, umask, and minutes west of Greenwich."""

    uid: int = 0
    gid: int = 0
    umask: int = 0o022
    minuteswest: int = 0


class Options:
    """The options, parsed.

    Args:
        data: as for mount(2), separated by commas.
        defaults: from the caller.
        fstype: "vfat" or "msdos".
    Raises:
        OSError: EINVAL with a sentence.
    """

    def __init__(
        self, data: str = "", defaults: Defaults | None = None, fstype: str = "vfat"
    ) -> None:
        defaults = defaults or Defaults()
        self.uid = defaults.uid
        self.gid = defaults.gid
        self.fmask = self.dmask = defaults.umask & 0o777
        self.shown, self.made = _SHORTNAMES["mixed"]
        self.numtail = True
        self.check = "n"
        self.uni_xlate = self.nocase = self.dots = False
        self.utf8 = True
        self.errors = "remount-ro"
        self.msdos = fstype == "msdos"
        self.quiet = self.showexec = self.discard = False
        self.rodir = self.msdos
        self.sys_immutable = self.usefree = self.dos1xfloppy = False
        self.offset = defaults.minuteswest * 60  # seconds to universal time
        self._codepage, self._iocharset = 437, "ascii"
        others = _ONLY_VFAT if self.msdos else _ONLY_MSDOS
        for word in filter(None, data.split(",")):
            if word.partition("=")[0] in others:
                raise invalid(f"unknown option {word}")
            self._take(word)
        self.codepage = nls.codepage(self._codepage)
        self.iocharset = nls.charset(self._iocharset)
        if self.iocharset.utf8:
            self.utf8 = True

    def _take(self, word: str) -> None:
        key, equals, value = word.partition("=")
        if word in _IGNORED:
            return
        if word in _FLAGS:
            setattr(self, _FLAGS[word], True)
        elif key in _VALUES and equals:
            _VALUES[key](self, value)
        elif key in ("dots", "nodots") and not equals:
            self.dots = key == "dots"
        elif key in _BOOLEANS and (not equals or value in _YES | _NO):
            setattr(self, _BOOLEANS[key], (value not in _NO) != (key == "nonumtail"))
        elif key in _OBSOLETE_NUMBERS and equals:
            _number(value)
        elif not (key in ("cvf_format", "cvf_options") and equals):
            raise invalid(f"unknown option {word}")

    def _set_uid(self, value: str) -> None:
        self.uid = _number(value)

    def _set_gid(self, value: str) -> None:
        self.gid = _number(value)

    def _set_umask(self, value: str) -> None:
        self.fmask = self.dmask = _octal(value) & 0o777

    def _set_fmask(self, value: str) -> None:
        self.fmask = _octal(value) & 0o777

    def _set_dmask(self, value: str) -> None:
        self.dmask = _octal(value) & 0o777

    def _set_codepage(self, value: str) -> None:
        self._codepage = _number(value)

    def _set_iocharset(self, value: str) -> None:
        self._iocharset = value

    def _set_shortname(self, value: str) -> None:
        self.shown, self.made = _SHORTNAMES[_one_of(_SHORTNAMES, "shortname", value)]

    def _set_check(self, value: str) -> None:
        self.check = _CHECK[_one_of(_CHECK, "check", value)]

    def _set_dots(self, value: str) -> None:
        self.dots = _one_of(_YES | _NO, "dotsOK", value) in _YES

    def _set_errors(self, value: str) -> None:
        _one_of(_ERRORS, "errors", value)
        # A user's image must not make the machine panic.
        self.errors = "remount-ro" if value == "panic" else value

    def _set_tz(self, value: str) -> None:
        if value != "UTC":
            raise invalid(f"tz={value}: only UTC is supported")
        self.offset = 0

    def _set_time_offset(self, value: str) -> None:
        minutes = _number(value, -24 * 60, 24 * 60)
        self.offset = -minutes * 60


_VALUES: dict[str, Callable[[Options, str], object]] = {
    "uid": Options._set_uid,
    "gid": Options._set_gid,
    "umask": Options._set_umask,
    "fmask": Options._set_fmask,
    "dmask": Options._set_dmask,
    # The kernel decides who can set times, before the request: the mount has default_permissions.
    "allow_utime": lambda options, value: _octal(value),
    "codepage": Options._set_codepage,
    "iocharset": Options._set_iocharset,
    "shortname": Options._set_shortname,
    "check": Options._set_check,
    "dotsOK": Options._set_dots,
    "errors": Options._set_errors,
    "tz": Options._set_tz,
    "time_offset": Options._set_time_offset,
}
_BOOLEANS = {"utf8": "utf8", "uni_xlate": "uni_xlate", "nonumtail": "numtail"}
_ONLY_VFAT = frozenset({*_BOOLEANS, "iocharset", "shortname", "rodir"})
_ONLY_MSDOS = frozenset({"dots", "nodots", "dotsOK"})


def knows(key: str) -> bool:
    """Return whether an option has the name ``key``, whatever its value is."""
    ignored = {word.partition("=")[0] for word in _IGNORED}
    return key in {*_FLAGS, *_VALUES, *_BOOLEANS, *_ONLY_MSDOS, *_OBSOLETE_NUMBERS, *ignored}


def _one_of(known: Iterable[str], key: str, value: str) -> str:
    if value not in known:
        raise invalid(f"{key}={value} is not one of {', '.join(known)}")
    return value


def _number(value: str, least: int = 0, most: int = _INT_MAX) -> int:
    """Parse a number as kstrtoint() with base 0: decimal, 0x…, or octal with a leading 0."""
    digits = value.removeprefix("-")
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[:1] == "0" and digits[1:] else 10
    number = _digits(digits[2:] if base == 16 else digits, base, value)
    number = -number if digits != value else number
    if not least <= number <= most:
        raise invalid(f"{value} is not in the range {least} to {most}")
    return number


def _octal(value: str) -> int:
    return _digits(value, 8, value)


def _digits(digits: str, base: int, value: str) -> int:
    # int() accepts more: signs, spaces, underscores, digits of other scripts.
    if not digits or not set(digits.lower()) <= set("0123456789abcdef"[:base]):
        raise invalid(f"{value} is not a number")
    return int(digits, base)
