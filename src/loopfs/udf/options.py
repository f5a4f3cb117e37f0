"""The mount options of udf (Documentation/filesystems/udf.rst).

Options that the kernel accepts and ignores are accepted and ignored; any other is EINVAL.
"""

from __future__ import annotations

from loopfs.nls import Charset, charset
from loopfs.udf.errors import invalid

_FLAGS = {"novrs": "novrs", "unhide": "unhide", "undelete": "undelete"}
# How files are written, which is never done here; and options that the kernel ignores.
_IGNORED = frozenset(
    {"nostrict", "adinicb", "noadinicb", "shortad", "longad"}
    | {f"{key}={what}" for key in ("uid", "gid") for what in ("forget", "ignore")}
)
_NUMBERS = frozenset({"session", "lastblock", "anchor", "bs", "uid", "gid"})
_NEVER_USED = frozenset({"volume", "partition", "fileset", "rootdir"})
_MODES = frozenset({"umask", "mode", "dmode"})
_KEYS = frozenset(
    {*_FLAGS, *_NUMBERS, *_NEVER_USED, *_MODES, "utf8", "iocharset"}
    | {word.partition("=")[0] for word in _IGNORED}
)
BLOCK_SIZES = (512, 1024, 2048, 4096)
_PERMISSIONS = 0o777
_INT_MAX, _UINT_MAX = 0x7FFFFFFF, 0xFFFFFFFF


class Options:
    """The options, parsed.

    Args:
        data: as for mount(2), separated by commas.
    Attributes:
        novrs: do not look for the volume recognition sequence.
        unhide, undelete: show hidden files, show deleted files.
        bs: the block size in bytes; 0: detect it.
        session, lastblock, anchor: the blocks where these are; 0: the usual places.
        uid, gid: of all files; None: their own.
        umask: permissions removed from all files.
        mode, dmode: permissions of files and of directories; None: their own.
        charset: the character set of names for callers.
    Raises:
        OSError: EINVAL with a sentence.
    """

    def __init__(self, data: str = "") -> None:
        self.novrs = self.unhide = self.undelete = False
        self.bs = self.session = self.lastblock = self.anchor = 0
        self.uid: int | None = None
        self.gid: int | None = None
        self.umask = 0
        self.mode: int | None = None
        self.dmode: int | None = None
        self.charset = charset("utf8")
        for word in filter(None, data.split(",")):
            self._take(word)

    def _take(self, word: str) -> None:
        key, equals, value = word.partition("=")
        if word in _FLAGS:
            setattr(self, _FLAGS[word], True)
        elif word == "utf8":
            self.charset = charset("utf8")
        elif word in _IGNORED:
            return
        elif key == "iocharset" and equals:
            self.charset = _charset(value)
        elif key in _MODES and equals:
            setattr(self, key, _octal(value))
        elif key in _NUMBERS and equals:
            setattr(self, key, _number(key, value))
        elif key in _NEVER_USED and equals:
            _number(key, value)
        else:
            raise invalid(f"unknown option {word}")


def _charset(name: str) -> Charset:
    try:
        return charset(name)
    except OSError as problem:
        raise invalid(str(problem.strerror)) from None


def _number(key: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise invalid(f"{text} is not a number")
    value = int(text)
    if value > (_UINT_MAX - 1 if key in ("uid", "gid") else _INT_MAX):
        raise invalid(f"{text} is too large")
    if key == "bs" and value not in BLOCK_SIZES:
        raise invalid(f"a block has 512, 1024, 2048 or 4096 bytes, not {text}")
    return value


def _octal(text: str) -> int:
    try:
        if text.isascii() and text.isdecimal():
            return int(text, 8) & _PERMISSIONS
    except ValueError:
        pass
    raise invalid(f"{text} is not an octal number")


def knows(key: str) -> bool:
    """Return whether an option has the name ``key``, whatever its value is."""
    return key in _KEYS
