"""A tree of which nothing ever changes: so all that the kernel is told it may remember.

A file is known by its place in the image, from which it can be read again; only what the kernel
knows is kept. Names of one file can be many (case, dots at the end); each is a name of the same
node.
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
MOST_ENTRIES = 1 << 18  # of a directory, and of those that are held together
LONGEST_LINK = 4095  # bytes
_DT_UNKNOWN, _DT_DIR = 0, 4

Place = tuple[int, int]


class FixedNode(Protocol):
    """What the tree needs of an inode.

    Attributes:
        known: by how many node ids the kernel knows it.
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
    """A name in a directory, and the place of what it is of; ``is_first``: a lookup finds it."""

    name: bytes
    place: Place
    is_first: bool


class Listing:
    """A directory's names.

    Attributes:
        found: by folded name.
        damage: what comes after the last entry: an errno, or 0.
    """

    __slots__ = ("damage", "entries", "found")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.found: dict[bytes, Place] = {}
        self.damage = 0

    def add(self, name: bytes, key: bytes, place: Place, most: int) -> None:
        """A name, if a caller could say it.

        Raises:
            OSError: EIO: there are ``most`` already.
        """
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            return
        if len(self.entries) >= most:
            raise _refused(errno.EIO)
        self.entries.append(Entry(name, place, key not in self.found))
        self.found.setdefault(key, place)


class Listings:
    """Those that are held: so many entries at most, unless one directory has more.

    Args:
        most: entries.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[Place, Listing] = {}
        self.count = 0

    def get(self, place: Place) -> Listing | None:
        """A directory's, which is dropped last from now on."""
        if (listing := self._held.pop(place, None)) is not None:
            self._held[place] = listing
        return listing

    def hold(self, place: Place, listing: Listing) -> None:
        """One that was read."""
        self._held[place] = listing
        self.count += len(listing.entries)
        while self.count > self._most and len(self._held) > 1:
            self.drop(next(iter(self._held)))

    def drop(self, place: Place) -> None:
        """It is not needed any more."""
        if (listing := self._held.pop(place, None)) is not None:
            self.count -= len(listing.entries)


class FixedVolume(Protocol, Generic[F]):
    """Where a tree's files are. Methods raise OSError."""

    @property
    def root(self) -> F: ...

    def inode(self, place: Place) -> F:
        """Read it."""

    def number(self, place: Place) -> int:
        """The inode number of what is at a place, which may be no inode."""

    def listing(self, node: F) -> Listing:
        """A directory's names."""

    def let_go(self, node: F) -> None:
        """The kernel does not know it any more."""

    def fold(self, name: bytes) -> bytes:
        """What spellings of a name have in common."""


class FixedTree(Tree[F], Generic[F]):
    """The names and nodes of a volume; files are derived classes'."""

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
        if node is self._root:  # which has no name
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
        """A place is 0 to 2 for the dots, then the number of the entry and 3."""
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
        except OSError:  # it is listed all the same; who looks at it hears of it
            return name, self._volume.number(place), _DT_UNKNOWN, None
        told = node if is_first and node is not self._root else None
        return name, node.ino, stat.S_IFMT(node.mode) >> 12, told


def _refused(code: int) -> OSError:
    return OSError(code, os.strerror(code))
