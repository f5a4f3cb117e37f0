"""The mount options of iso9660 (Documentation/filesystems/isofs.rst).

Options that the kernel accepts and ignores are accepted and ignored; any other is EINVAL.
"""

from __future__ import annotations

from loopfs.iso9660.errors import invalid

_FLAGS: dict[str, tuple[str, object]] = {
    "norock": ("rock", False),
    "nojoliet": ("joliet", False),
    "hide": ("hide", True),
    "showassoc": ("showassoc", True),
    "unhide": ("showassoc", True),  # the kernel treats them as the same
    "cruft": ("cruft", True),
    "utf8": ("iocharset", "utf8"),
    "overriderockperm": ("overriderockperm", True),
    "nocompress": ("nocompress", True),
    **{f"map={word}": ("map", word[0]) for word in ("off", "o", "normal", "n", "acorn", "a")},
    **{f"check={word}": ("check", word[0]) for word in ("relaxed", "r", "strict", "s")},
}
_IGNORED = frozenset(
    f"conv={way}" for way in ("binary", "b", "text", "t", "mtext", "m", "auto", "a")
)
_NUMBERS = frozenset({"session", "sbsector", "uid", "gid", "mode", "dmode", "block"})
_KEYS = frozenset({word.partition("=")[0] for word in (*_FLAGS, *_IGNORED)} | _NUMBERS)
_BLOCK_SIZES = (512, 1024, 2048)
_SESSIONS = 99
_PERMISSIONS = 0o777
_INT_MAX = 0x7FFFFFFF
_NO_ID = 0xFFFFFFFF


class Options:
    """The options, parsed.

    Args:
        data: as for mount(2), separated by commas.
    Attributes:
        rock, joliet: use these extensions if they are present.
        map: how to convert names without either: "n" normal, "o" off, "a" acorn.
        check: names are compared "r": ignoring case, "s": exactly; "": depending on the image.
        iocharset: of Joliet's names; "": UTF-8, the default in distribution kernels.
        hide, showassoc: hide hidden files, show associated ones.
        cruft: ignore the high byte of sizes.
        uid, gid: of all files, even with Rock Ridge; None: their own, or 0.
        mode, dmode: permissions of files and of directories without Rock Ridge; None: 0o555.
        overriderockperm: also with Rock Ridge.
        nocompress: show files compressed by zisofs as they are stored.
        block: the smallest block size, in bytes.
        sbsector: where the session begins, in sectors of 2048 bytes.
    Raises:
        OSError: EINVAL with a sentence.
    """

    def __init__(self, data: str = "") -> None:
        self.rock = self.joliet = True
        self.map, self.check, self.iocharset = "n", "", ""
        self.hide = self.showassoc = self.cruft = False
        self.overriderockperm = self.nocompress = False
        self.uid: int | None = None
        self.gid: int | None = None
        self.mode: int | None = None
        self.dmode: int | None = None
        self.block, self.sbsector = 1024, 0
        for word in filter(None, data.split(",")):
            self._take(word)

    def _take(self, word: str) -> None:
        key, equals, value = word.partition("=")
        if word in _FLAGS:
            setattr(self, *_FLAGS[word])
        elif key in _NUMBERS and equals:
            self._number(key, value)
        elif key == "iocharset" and equals:
            self.iocharset = value or "?"
        elif word not in _IGNORED:
            raise invalid(f"unknown option {word}")

    def _number(self, key: str, text: str) -> None:
        value = _parsed(text)
        if key in ("uid", "gid"):
            if value >= _NO_ID:
                raise invalid(f"{text} is not an id")
        elif value > _INT_MAX:
            raise invalid(f"{text} is too large")
        if key == "block" and value not in _BLOCK_SIZES:
            raise invalid(f"a block has 512, 1024 or 2048 bytes, not {text}")
        if key == "session":
            # Only a drive knows where it begins: on a loop device the kernel uses the first one.
            if value >= _SESSIONS:
                raise invalid(f"there cannot be a session {text}")
            return
        setattr(self, key, value & _PERMISSIONS if key in ("mode", "dmode") else value)


def _parsed(text: str) -> int:
    """Parse an unsigned number as simple_strtoul(): hexadecimal with 0x, octal with 0."""
    base = 16 if text[:2].lower() == "0x" else 8 if text[:1] == "0" else 10
    if text.isascii() and text.isalnum():
        try:
            return int(text, base)
        except ValueError:
            pass
    raise invalid(f"{text} is not a number")


def knows(key: str) -> bool:
    """Return whether an option has the name ``key``, whatever its value is."""
    return key in _KEYS or key == "iocharset"
