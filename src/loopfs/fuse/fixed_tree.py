"""A tree that never changes, so that the kernel can cache everything.

An inode is identified by its place in the image, from which it can be read again; only inodes that
the kernel refers to are kept in memory. Several spellings of a name (case, trailing dots) can refer
to the same node.
"""

from __future__ import annotations

import errno
import os
import stat
from itertools import count

from loopfs.fuse.tree import Caller, Handle, Tree
from loopfs.lean import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar
from loopfs.uapi.fuse import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FUSE_ROOT_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_VALID = 3600  # seconds
MOST_ENTRIES = 1 << 18  # in one directory, and in all cached listings together
LONGEST_LINK = 4095  # bytes
_DT_UNKNOWN, _DT_DIR = 0, 4

Place = tuple[int, int]


class FixedNode(Protocol):
    """What the tree requires of an inode.

    Attributes:
        known: the number of node ids by which the kernel refers to it.
        up: the inode number of a directory in which it was found.
    """

    place: Place
    nodeid: int
    known: int
    up: int
    ino: int
    mode: int


F = TypeVar("F", bound=FixedNode)


class Entry(NamedTuple):
    """A directory entry; ``is_first``: a lookup of the name finds it."""

    name: bytes
    place: Place
    is_first: bool


class Listing:
    """The entries of a directory.

    Attributes:
        found: places by folded name.
        damage: the errno with which reading fails after the last entry, or 0.
    """

    __slots__ = ("damage", "entries", "found")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.found: dict[bytes, Place] = {}
        self.damage = 0

    def add(self, name: bytes, key: bytes, place: Place, most: int) -> None:
        """Add an entry, unless its name cannot be used in a path.

        Raises:
            OSError: EIO: the directory has ``most`` entries already.
        """
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            return
        if len(self.entries) >= most:
            raise _refused(errno.EIO)
        self.entries.append(Entry(name, place, key not in self.found))
        self.found.setdefault(key, place)


class Listings:
    """A cache of listings, with a limit on their entries; a single directory may exceed it.

    Args:
        most: the limit.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Place, Listing] = {}
        self.count = 0

    def get(self, place: Place) -> Listing | None:
        """Return the listing of a directory, which becomes the most recently used, or None."""
        if (listing := self._held.pop(place, None)) is not None:
            self._held[place] = listing
        return listing

    def hold(self, place: Place, listing: Listing) -> None:
        """Add a listing that was read, and drop the least recently used ones above the limit."""
        self._held[place] = listing
        self.count += len(listing.entries)
        while self.count > self._most and len(self._held) > 1:
            self.drop(next(iter(self._held)))

    def drop(self, place: Place) -> None:
        """Drop the listing of a directory."""
        if (listing := self._held.pop(place, None)) is not None:
            self.count -= len(listing.entries)


class FixedVolume(Protocol, Generic[F]):
    """The source of a tree's files. Methods raise OSError."""

    @property
    def root(self) -> F: ...

    def inode(self, place: Place) -> F:
        """Read an inode."""

    def number(self, place: Place) -> int:
        """Return the inode number for a place, even if the inode cannot be read."""

    def listing(self, node: F) -> Listing:
        """Return the entries of a directory."""

    def let_go(self, node: F) -> None:
        """Drop an inode: the kernel does not refer to it any more."""

    def fold(self, name: bytes) -> bytes:
        """Return the form of a name that is the same for all its spellings."""


class FixedTree(Tree[F], Generic[F]):
    """The names and nodes of a volume; derived classes implement reading of files."""

    negative_valid = NAME_VALID

    def __init__(self, volume: FixedVolume[F]) -> None:
        self._volume = volume
        self._root = volume.root
        self._root.nodeid = FUSE_ROOT_ID
        self._nodeids = count(FUSE_ROOT_ID + 1)
        self._known: dict[Place, F] = {}
        volume.listing(self._root)

    # --- nodes ------------------------------------------------------------------

    def root(self) -> F:
        return self._root

    def known(self, node: F) -> None:
        self._known[node.place] = node
        node.known += 1

    def forgotten(self, node: F) -> None:
        node.known -= 1
        if not node.known:
            self._known.pop(node.place, None)
            self._volume.let_go(node)

    def _node(self, place: Place, parent: F) -> F:
        if (node := self._known.get(place)) is None:
            node = self._volume.inode(place)
            node.nodeid, node.up = next(self._nodeids), parent.ino
        return node

    # --- names -----------------------------------------------------------------

    def lookup(self, parent: F, name: bytes) -> tuple[F, int]:
        volume = self._volume
        place = volume.listing(parent).found.get(volume.fold(name))
        if place is None:
            raise _refused(errno.ENOENT)
        node = self._node(place, parent)
        if node is self._root:  # the root must not have a name
            raise _refused(errno.ELOOP)
        return node, NAME_VALID

    # --- open files -------------------------------------------------------------

    def open(self, caller: Caller, node: F, flags: int) -> Handle[F]:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise _refused(errno.EROFS)
        return Handle(node, FOPEN_KEEP_CACHE)

    def opendir(self, caller: Caller, node: F) -> Handle[F]:
        self._volume.listing(node)
        return Handle(node, FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR)

    def entries(
        self, handle: Handle[F], place: int
    ) -> Iterator[tuple[int, bytes, int, int, F | None]]:
        """Yield entries; the place after one is 1 or 2 (the dots), or its index + 3."""
        directory, listing = handle.node, self._volume.listing(handle.node)
        if listing.damage and place >= len(listing.entries) + 2:
            raise _refused(listing.damage)
        if place < 1:
            yield 1, b".", directory.ino, _DT_DIR, None
        if place < 2:
            yield 2, b"..", directory.up, _DT_DIR, None
        for at in range(max(place - 2, 0), len(listing.entries)):
            yield at + 3, *self._listed(listing.entries[at], directory)

    def _listed(self, entry: Entry, directory: F) -> tuple[bytes, int, int, F | None]:
        name, place, is_first = entry
        try:
            node = self._node(place, directory)
        except OSError:  # it is listed without attributes; accessing it fails
            return name, self._volume.number(place), _DT_UNKNOWN, None
        told = node if is_first and node is not self._root else None
        return name, node.ino, stat.S_IFMT(node.mode) >> 12, told


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
