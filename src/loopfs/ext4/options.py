"""The options of a mount of ext4 (ext4(5)), as far as they mean something here."""

from __future__ import annotations

from loopfs.ext4.errors import invalid

# They change nothing here, or are what is done anyway.
_IGNORED = frozenset(
    {"acl", "user_xattr", "barrier", "nobarrier", "data=ordered", "lazytime", "nolazytime"}
    | {"delalloc", "nodelalloc", "auto_da_alloc", "noauto_da_alloc", "block_validity", "bsddf"}
    | {"noblock_validity", "dioread_nolock", "dioread_lock", "nouid32", "journal_async_commit"}
    | {"journal_checksum", "nojournal_checksum", "init_itable", "noinit_itable", "i_version"}
    | {"grpid=0", "nogrpid", "sysvgroups", "orlov", "oldalloc", "check=none", "nocheck", "debug"}
    | {"barrier=0", "barrier=1", "noquota", "nodiscard", "prefetch_block_bitmaps"}
)
_NUMBERS = (
    *("commit", "stripe", "inode_readahead_blks", "max_batch_time", "min_batch_time"),
    *("journal_ioprio", "init_itable", "max_dir_size_kb"),
)
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
        data: as mount(2) has them, with commas between.
    Raises:
        OSError: EINVAL with a sentence.
    """

    def __init__(self, data: str = "") -> None:
        self.discard = self.minixdf = self.grpid = self.noload = self.noacl = False
        self.commit = 5  # seconds
        for word in filter(None, data.split(",")):
            self._take(word)

    def _take(self, word: str) -> None:
        key, _, value = word.partition("=")
        if word in _IGNORED:
            return
        if word in _FLAGS:
            setattr(self, _FLAGS[word], True)
        elif key in _NUMBERS and value.isascii() and value.isdigit():
            if key == "commit":
                self.commit = min(int(value) or 5, 900)
        elif not (key == "errors" and value in _ERRORS):
            raise invalid(f"unknown option {word}")


def knows(key: str) -> bool:
    """An option is called so, whatever its value."""
    words = {word.partition("=")[0] for word in _IGNORED}
    return key in {*words, *_NUMBERS, *_FLAGS, "errors"}
