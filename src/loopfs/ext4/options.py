"""The mount options of ext4 (ext4(5)) that have an effect here."""

from __future__ import annotations

from loopfs.ext4.errors import invalid

# The default behaviour. The engine handles the options that have no effect here.
_ALWAYS = frozenset(
    {"acl", "user_xattr", "barrier", "nobarrier", "data=ordered", "sb=1"}
    | {"bsddf", "nogrpid", "sysvgroups", "nodiscard", "lazytime", "nolazytime"}
)
_NUMBERS = ("commit", "resuid", "resgid")
_FLAGS = {
    "discard": "discard",
    "minixdf": "minixdf",
    "grpid": "grpid",
    "bsdgroups": "grpid",
    "noload": "noload",
    "norecovery": "noload",
    "noacl": "noacl",
}
_ERRORS = ("continue", "remount-ro", "panic")


class Options:
    """The options, parsed.

    Args:
        data: as for mount(2), separated by commas.
    Raises:
        OSError: EINVAL with a sentence.
    """

    def __init__(self, data: str = "") -> None:
        self.discard = self.minixdf = self.grpid = self.noload = self.noacl = False
        self.commit = 5  # seconds
        self.resuid: int | None = None  # the user and the group that can use the reserved blocks;
        self.resgid: int | None = None  # None: those in the superblock
        self.errors = ""  # empty: the behaviour in the superblock
        for word in filter(None, data.split(",")):
            self._take(word)

    def _take(self, word: str) -> None:
        key, _, value = word.partition("=")
        if word in _ALWAYS:
            return
        if word in _FLAGS:
            setattr(self, _FLAGS[word], True)
        elif key == "barrier" and value.isascii() and value.isdigit():
            return
        elif key in _NUMBERS and value.isascii() and value.isdigit():
            number = int(value)
            setattr(self, key, min(number or 5, 900) if key == "commit" else number)
        elif key == "errors" and value in _ERRORS:
            self.errors = value
        else:
            raise invalid(f"unknown option {word}")


def knows(key: str) -> bool:
    """Return whether an option has the name ``key``, whatever its value is."""
    words = {word.partition("=")[0] for word in _ALWAYS}
    return key in {*words, *_NUMBERS, *_FLAGS, "errors"}
