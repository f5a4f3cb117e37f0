"""The mount options of ext4 (ext4(5); ext4_param_specs of Linux 6.18)."""

from __future__ import annotations

from loopfs.ext4.errors import invalid
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.ext4.super import Super

# The default behaviour.
_ALWAYS = frozenset(
    {"acl", "user_xattr", "barrier", "nobarrier", "data=ordered"}
    | {"bsddf", "nogrpid", "sysvgroups", "nodiscard"}
)
_FLAGS = {
    "discard": "discard",
    "minixdf": "minixdf",
    "grpid": "grpid",
    "bsdgroups": "grpid",
    "noload": "noload",
    "norecovery": "noload",
    "noacl": "noacl",  # before Linux 6.18
    "journal_checksum": "journal_checksum",
    "journal_async_commit": "journal_async_commit",
    "delalloc": "delalloc",
    "prjquota": "prjquota",
}
_NUMBERS = {"commit", "resuid", "resgid", "sb", "debug_want_extra_isize"}
_ERRORS = ("continue", "remount-ro", "panic")
# Options of every filesystem (vfs_parse_sb_flag); a value is ignored.
_OF_THE_VFS = {"sync": ("sync", True), "async": ("sync", False), "dirsync": ("dirsync", True)}
_OF_THE_VFS_ALONE = frozenset({"lazytime", "nolazytime", "mand", "nomand"})
# Options for the kernel's allocation, caches, checks and reports, and removed ones.
_NO_EFFECT = """
abort auto_da_alloc bh block_validity data=journal data=writeback data_err=abort data_err=ignore
dax=inode dax=never debug delalloc dioread_lock dioread_nolock grpjquota= grpquota i_version
init_itable inlinecrypt journal_async_commit journal_checksum jqfmt=vfsold jqfmt=vfsv0 jqfmt=vfsv1
mblk_io_submit no_mbcache no_prefetch_block_bitmaps noauto_da_alloc nobh noblock_validity nocheck
nodelalloc nodioread_nolock noinit_itable nojournal_checksum nombcache nomblk_io_submit noquota
noreservation nouid32 nowarn_on_error oldalloc orlov prefetch_block_bitmaps prjquota quota
reservation usrjquota= usrquota warn_on_error
"""
_WITHOUT_EFFECT = frozenset(_NO_EFFECT.split())
# Options with a number that have no effect, and the largest number that is accepted.
_UINT_MAX = 2**32 - 1
_NUMBERS_WITHOUT_EFFECT = {
    **dict.fromkeys(("auto_da_alloc", "barrier", "init_itable", "journal"), _UINT_MAX),
    **dict.fromkeys(("max_batch_time", "max_dir_size_kb", "min_batch_time", "stripe"), _UINT_MAX),
    "inode_readahead_blks": 1 << 30,
    "journal_dev": 0,
    "journal_ioprio": 7,
    "mb_optimize_scan": 1,
}
_ANY_WITHOUT_EFFECT = frozenset({"check", "usrjquota", "grpjquota"})
_EXT4_ALONE = frozenset(
    {"journal_checksum", "nojournal_checksum", "journal_async_commit", "dax", "delalloc"}
    | {"nodelalloc", "dioread_nolock", "nodioread_nolock", "dioread_lock"}
)
_OF_A_JOURNAL = frozenset(
    {"noload", "norecovery", "commit", "journal_dev", "data", "data_err", "journal_ioprio"}
)
_NOT_OF = {"ext3": _EXT4_ALONE, "ext2": _EXT4_ALONE | _OF_A_JOURNAL}

_DIGITS = "0123456789abcdef"
_LONGEST_COMMIT = (2**31 - 1) // 250  # seconds: INT_MAX / HZ
_COMMIT = 5  # seconds: JBD2_DEFAULT_MAX_COMMIT_AGE
_RARELY = 900  # seconds: the longest interval between commits
_DEFAULT_MOUNT_OPTS, _JMODE, _JMODE_ORDERED = 256, 0x60, (0, 0x40)  # in the superblock
_LEAST_EXTRA_ISIZE, _GOOD_OLD_INODE_SIZE = 4, 128  # bytes


class Options:
    """The options, parsed.

    Args:
        data: as for mount(2), separated by commas.
        fstype: "ext2", "ext3" or "ext4".

    Attributes:
        sb: where the superblock is, in units of 1024 bytes.
        without_effect: options that only affect the kernel's driver.

    Raises:
        OSError: EINVAL with a sentence.
    """

    def __init__(self, data: str = "", fstype: str = "ext4") -> None:
        self.discard = self.minixdf = self.grpid = self.noload = self.noacl = False
        self.sync = self.dirsync = False
        self.journal_checksum = self.journal_async_commit = self.delalloc = False
        self.prjquota = False
        self.commit = _COMMIT  # seconds
        self.resuid: int | None = None  # the user and the group that can use the reserved blocks;
        self.resgid: int | None = None  # None: those in the superblock
        self.sb = 1
        self.debug_want_extra_isize: int | None = None
        self.errors = ""  # empty: the behaviour in the superblock
        self.without_effect: list[str] = []
        self._given: dict[str, str] = {}
        for word in filter(None, data.split(",")):
            key, _, value = word.partition("=")
            if key in _NOT_OF.get(fstype, ()):
                raise invalid(f"{fstype} has no option {key}")
            self._take(word, key, value)
            self._given[key] = value

    def _take(self, word: str, key: str, value: str) -> None:
        known = word in _ALWAYS or key in _OF_THE_VFS_ALONE
        if word in _FLAGS:
            setattr(self, _FLAGS[word], True)
            known = True
        elif key in _OF_THE_VFS:
            setattr(self, *_OF_THE_VFS[key])
            known = True
        elif key in _NUMBERS:
            self._number(key, _parsed(word, value))
            known = True
        elif key == "errors" and value in _ERRORS:
            self.errors = value
            known = True
        if _is_without_effect(word, key, value) or word == "errors=panic":
            self.without_effect.append(word)
        elif not known:
            raise invalid(f"unknown option {word}")

    def _number(self, key: str, number: int) -> None:
        if key == "commit":
            if number > _LONGEST_COMMIT:
                raise invalid(f"commit={number}: at most {_LONGEST_COMMIT}")
            number = min(number or _COMMIT, _RARELY)
        elif key in ("resuid", "resgid") and number == _UINT_MAX:
            raise invalid(f"{key}={number} is not an id")
        setattr(self, key, number)

    def check(self, sb: Super, *, has_journal: bool) -> None:
        """Check that the options suit the filesystem and each other.

        Args:
            has_journal: whether the filesystem has a journal and uses it.
        Raises:
            OSError: EINVAL with a sentence.
        """
        given = self._given
        refused = {
            "prjquota": self.prjquota and not sb.has_projects,
            "commit=": not has_journal and self.commit != _COMMIT,
            "data=": not has_journal and "data" in given,
            "data_err=abort": not has_journal and given.get("data_err") == "abort",
            "journal_checksum": not has_journal and self.journal_checksum,
            "journal_async_commit": self.journal_async_commit
            and (not has_journal or self._is_ordered(sb)),
            "delalloc": self.delalloc and given.get("data") == "journal",
            "usrjquota=, grpjquota=": not self._journaled_quota_is_right(sb),
            "debug_want_extra_isize=": not self._extra_isize_is_right(sb),
        }
        for name in (name for name, is_refused in refused.items() if is_refused):
            raise invalid(f"the option {name} does not suit this filesystem or another option")

    def _is_ordered(self, sb: Super) -> bool:
        if data := self._given.get("data"):
            return data == "ordered"
        return sb.u32(_DEFAULT_MOUNT_OPTS) & _JMODE in _JMODE_ORDERED

    def _journaled_quota_is_right(self, sb: Super) -> bool:
        names = [name for key in ("usrjquota", "grpjquota") if (name := self._given.get(key))]
        if any("/" in name for name in names):
            return False
        return not names or "jqfmt" in self._given or sb.has_quota

    def _extra_isize_is_right(self, sb: Super) -> bool:
        size, most = self.debug_want_extra_isize, sb.inode_size - _GOOD_OLD_INODE_SIZE
        return size is None or (_LEAST_EXTRA_ISIZE <= size <= most and not size & 1)


def _is_without_effect(word: str, key: str, value: str) -> bool:
    if word in _WITHOUT_EFFECT or (key in _ANY_WITHOUT_EFFECT and value):
        return True
    if key not in _NUMBERS_WITHOUT_EFFECT or word == key:
        return False
    number = _parsed(word, value)
    if key == "inode_readahead_blks" and number & (number - 1):
        raise invalid(f"{word}: not a power of two")
    if number > _NUMBERS_WITHOUT_EFFECT[key]:
        raise invalid(f"{word}: at most {_NUMBERS_WITHOUT_EFFECT[key]}")
    return True


def _parsed(word: str, value: str) -> int:
    """Parse a number as kstrtouint(): hexadecimal with 0x, octal with 0."""
    digits, base = value.removeprefix("+").lower(), 10
    if digits[:2] == "0x":
        digits, base = digits[2:], 16
    elif digits[:1] == "0":
        base = 8
    if not digits or not set(digits) <= set(_DIGITS[:base]):
        raise invalid(f"{word}: a number is expected")
    number = int(digits, base)
    if number > _UINT_MAX:
        raise invalid(f"{word}: at most {_UINT_MAX}")
    return number


def knows(key: str) -> bool:
    """Return whether an option has the name ``key``, whatever its value is."""
    words = {word.partition("=")[0] for word in (*_ALWAYS, *_WITHOUT_EFFECT)}
    others = (*_FLAGS, *_NUMBERS, *_OF_THE_VFS, *_NUMBERS_WITHOUT_EFFECT, "errors")
    return key in {*words, *others, *_OF_THE_VFS_ALONE, *_ANY_WITHOUT_EFFECT}
