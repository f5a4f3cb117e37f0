"""The contents of a directory, which are in memory as a whole (fs/fat/dir.c)."""

from __future__ import annotations

import errno

from loopfs.fat import names
from loopfs.fat.boot import ENTRY_SIZE
from loopfs.fat.errors import Damaged, refused
from loopfs.fat.inode import ATTR_DIR, ATTR_VOLUME, ENTRY, MAX_DIR_SLOTS, Inode
from loopfs.fat.names import ATTR_LONG_NAME, DELETED
from loopfs.fat.volume import Volume
from loopfs.lean import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DOTS = frozenset({b".".ljust(11), b"..".ljust(11)})
_IS_USED = bytes(head not in (0, DELETED) for head in range(256))
_PAGE = 4096  # bytes: a write within a page is not split if the process is killed


class Entry(NamedTuple):
    """An entry of a directory.

    Attributes:
        first, slot: the index of its first slot, and of its short entry.
        raw: the short entry.
        text: the long name; None if it has no valid one.
    """

    first: int
    slot: int
    raw: bytes
    text: str | None


def parse(data: bytes | bytearray) -> Iterator[Entry]:
    """Yield the entries of files and directories, without dots and volume labels.

    A long name is valid if its slots are complete, in order, and match the short name after them.
    """
    parts: list[bytes] = []
    check = first = 0
    left = -1  # the number of slots still to come of a long name; -1: none
    for slot in range(-(-len(data.rstrip(b"\0")) // ENTRY_SIZE)):
        at = slot * ENTRY_SIZE
        head, attr = data[at], data[at + 11]
        if head not in (0, DELETED) and attr == ATTR_LONG_NAME:
            if head & names.LAST_SLOT:
                left, check, first = head & ~names.LAST_SLOT, data[at + 13], slot
                left = left if 0 < left <= names.MOST_SLOTS else -1
                parts.clear()
            if left > 0 and head & ~names.LAST_SLOT == left and data[at + 13] == check:
                parts.append(names.slot_text(bytes(data[at : at + ENTRY_SIZE])))
                left -= 1
            else:
                left = -1
            continue
        if head not in (0, DELETED) and not attr & ATTR_VOLUME:
            raw = bytes(data[at : at + ENTRY_SIZE])
            if raw[:11] not in _DOTS:
                if left == 0 and check == names.checksum(raw[:11]):
                    yield Entry(first, slot, raw, names.joined(parts))
                else:
                    yield Entry(slot, slot, raw, None)
        left = -1


def dots(inode: Inode, up: int) -> bytes:
    """Return the first two entries of a directory; ``up``: the parent's cluster, 0: the root."""
    times = inode.ctime_cs, inode.ctime, inode.cdate, inode.adate
    out = b""
    for short, start in ((b".", inode.start), (b"..", up)):
        places = start >> 16, inode.time, inode.date, start & 0xFFFF
        out += ENTRY.pack(short.ljust(11), ATTR_DIR, 0, *times, *places, 0)
    return out


class Directory:
    """The slots of a directory, and the inodes of its entries.

    Attributes:
        inodes: by the index of the short entry.
        by_key: by folded name: the long name, and the short name as it is shown.
        shorts: by short name.
    """

    def __init__(self, volume: Volume, inode: Inode, data: bytearray) -> None:
        self._volume = volume
        self._inode = inode
        self.data = data
        self.used = bytearray(len(data) // ENTRY_SIZE)  # 1 for each slot in use
        self.inodes: dict[int, Inode] = {}
        self.by_key: dict[bytes, Inode] = {}
        self.shorts: dict[bytes, Inode] = {}
        self.subdirs = 0
        self._dirty: list[tuple[int, int]] = []  # first slot, count

    def __bool__(self) -> bool:
        """Whether it has any entries."""
        return bool(self.inodes)

    def is_idle(self) -> bool:
        """Return whether it can be dropped from memory: nothing in it is in use or unwritten."""
        if self._inode.opens or self._inode.gone or self in self._volume.unwritten:
            return False
        return not any(
            child.known or child.opens or child.dir is not None for child in self.inodes.values()
        )

    # --- names -----------------------------------------------------------------

    def enter(self, inode: Inode) -> None:
        """Add an inode whose entry is in the slots to the tables."""
        called = inode.name, inode.short, inode.lcase, inode.attr
        inode.keys = self._volume.names.keys(*called)
        self.inodes[inode.slot] = inode
        for key in inode.keys:
            self.by_key.setdefault(key, inode)
        self.shorts.setdefault(inode.short, inode)
        self.subdirs += inode.is_dir

    def leave(self, inode: Inode) -> None:
        """Remove an inode from the tables; its entry will be freed, or become another inode's."""
        del self.inodes[inode.slot]
        for key in inode.keys:
            if self.by_key.get(key) is inode:
                del self.by_key[key]
        if self.shorts.get(inode.short) is inode:
            del self.shorts[inode.short]
        self.subdirs -= inode.is_dir

    # --- slots --------------------------------------------------------------------

    def replace(self, slot: int, raw: bytes) -> None:
        """Change the contents of slots; :meth:`flush` writes them."""
        at = slot * ENTRY_SIZE
        if self.data[at : at + len(raw)] != raw:
            self.data[at : at + len(raw)] = raw
            self._dirty.append((slot, len(raw) // ENTRY_SIZE))
            self._volume.unwritten.add(self)

    def flush(self) -> None:
        """Write the changed slots; those of one page with one write.

        Raises:
            OSError: an error of the device. The next call, at the latest a sync, tries again.
        """
        volume = self._volume
        while self._dirty:
            first, end = self._dirty[0][0], sum(self._dirty[0])
            taken = 1
            for slot, count in self._dirty[1:]:
                low, high = min(first, slot), max(end, slot + count)
                if low * ENTRY_SIZE // _PAGE != (high * ENTRY_SIZE - 1) // _PAGE:
                    break
                first, end, taken = low, high, taken + 1
            self._write(first, end - first)
            del self._dirty[:taken]
        volume.unwritten.discard(self)

    def _write(self, first: int, count: int) -> None:
        view = memoryview(self.data)[first * ENTRY_SIZE : (first + count) * ENTRY_SIZE]
        for place, length in self._volume.extents(self._inode, first * ENTRY_SIZE, len(view)):
            self._volume.device.write(place, view[:length])
            view = view[length:]

    def _room(self, count: int) -> int:
        """Return the index of the first of ``count`` consecutive free slots."""
        first = self.used.find(bytes(count))
        if first < 0:
            first = len(self.used.rstrip(b"\0"))
        if first + count > MAX_DIR_SLOTS:
            raise refused(errno.ENOSPC)
        if first + count > len(self.used):
            self._extend((first + count) * ENTRY_SIZE)
        return first

    def _extend(self, size: int) -> None:
        volume, inode, old = self._volume, self._inode, len(self.data)
        if inode is volume.root and volume.shape.root_size:
            raise refused(errno.ENOSPC)
        before = old // volume.cluster
        volume.reserve(inode, size)
        new = volume.chain(inode).total * volume.cluster
        try:
            volume.zero(inode, old, new)  # before the table makes them part of the directory
            volume.table.flush()
        except OSError:
            volume.shrink(inode, before)
            raise
        self.data += bytes(new - old)
        self.used += bytes((new - old) // ENTRY_SIZE)

    def add(self, inode: Inode, text: str, *, write: bool = True) -> None:
        """Add an entry for ``inode``, which has all attributes but a name.

        Args:
            text: the name, as from Names.decode().
            write: write the entry at once; otherwise the caller calls :meth:`flush`.
        Raises:
            OSError: ENOSPC, EEXIST, EINVAL, or an error of the device; nothing has changed.
        """
        volume = self._volume
        short = volume.names.short(text, self.shorts)
        slots = b"" if short.whole else names.slots(text, short.name)
        count = len(slots) // ENTRY_SIZE + 1
        first = self._room(count)
        inode.parent, inode.short, inode.lcase = self._inode, short.name, short.lcase
        inode.first, inode.slot = first, first + count - 1
        said = None if short.whole else text
        inode.name = volume.names.named(short.name, short.lcase, inode.attr, said)
        self._put(first, slots + inode.packed(), True, write)
        self.enter(inode)

    def remove(self, inode: Inode, *, write: bool = True) -> None:
        """Free the slots of an entry; its clusters stay. ``write`` is as for :meth:`add`.

        Raises:
            OSError: an error of the device; the entry still exists.
        """
        begin, end = inode.first * ENTRY_SIZE, (inode.slot + 1) * ENTRY_SIZE
        raw = self.data[begin:end]
        for at in range(0, len(raw), ENTRY_SIZE):
            raw[at] = DELETED
        self._put(inode.first, bytes(raw), False, write)
        self.leave(inode)

    def _put(self, slot: int, raw: bytes, used: bool, write: bool) -> None:
        at, count = slot * ENTRY_SIZE, len(raw) // ENTRY_SIZE
        before = bytes(self.data[at : at + len(raw)])
        self.replace(slot, raw)
        if write:
            try:
                self.flush()
            except OSError:
                self.replace(slot, before)
                raise
        self.used[slot : slot + count] = bytes([used]) * count

    # --- reading -----------------------------------------------------------------

    def read(self, known: Mapping[int, Inode] | None = None) -> list[Inode]:
        """Make inodes of what the slots hold.

        Args:
            known: those that were made before, by their slots, for the entries that are the same.
        Returns:
            those of ``known`` whose entries have changed.
        """
        volume, changed = self._volume, []
        self.used[:] = self.data[::ENTRY_SIZE].translate(_IS_USED)
        for entry in parse(self.data):
            inode = volume.new_inode(self._inode)
            inode.take(entry.raw, volume.shape.bits == 32)
            inode.first, inode.slot = entry.first, entry.slot
            if volume.options.msdos:  # long names are ignored
                inode.first, inode.seen = entry.slot, inode.date
            called = inode.short, inode.lcase, inode.attr
            inode.name = volume.names.named(*called, entry.text)
            before = known.get(entry.slot) if known else None
            if before is not None and inode.called == before.called:
                if before.packed() != entry.raw:
                    before.take(entry.raw, volume.shape.bits == 32)
                    changed.append(before)
                before.first, before.runs = inode.first, None
                inode = before
            # Entries whose names are empty or cannot be used in a path are ignored.
            name = inode.name
            if name not in (b"", b".", b"..") and b"/" not in name and b"\0" not in name:
                self.enter(inode)
        return changed


def read_again(volume: Volume) -> list[Inode]:
    """Read all that is held in memory again, where nothing of it was changed.

    Returns:
        the inodes whose entries have changed.
    Raises:
        OSError: EBUSY: the device has another filesystem now, or a file that the kernel knows is
            not there any more; as of :func:`load`.
    """
    volume.read_again()
    changed, directories = [], [volume.root]
    while directories:
        inode = directories.pop()
        known = inode.dir.inodes if inode.dir is not None else {}
        content = Directory(volume, inode, _data(volume, inode))
        changed += content.read(known)
        for slot, child in known.items():
            if content.inodes.get(slot) is not child and (child.known or child.opens or child.dir):
                raise OSError(errno.EBUSY, f"{child.name!r} is not on the device now; unmount it")
        volume.let_go(inode)
        volume.hold(inode, content)
        directories += [child for child in content.inodes.values() if child.dir is not None]
    return changed


def load(volume: Volume, inode: Inode) -> Directory:
    """Return the contents of a directory, read if they are not in memory.

    Raises:
        Damaged: it has no clusters, or too many.
        OSError: ENOTDIR.
    """
    if inode.dir is not None:
        return inode.dir
    if not inode.is_dir:
        raise refused(errno.ENOTDIR)
    content = Directory(volume, inode, _data(volume, inode))
    content.read()
    volume.hold(inode, content)
    return content


def _data(volume: Volume, inode: Inode) -> bytearray:
    """The bytes of a directory. Raises Damaged as :func:`load`."""
    size = volume.shape.root_size if inode is volume.root else 0
    if not size:
        size = volume.chain(inode).total * volume.cluster
        if not size:
            raise volume.damaged(Damaged(f"the directory {inode.name!r} has no cluster"))
    data = bytearray(size)
    view, at = memoryview(data), 0
    for place, length in volume.extents(inode, 0, size):
        volume.device.read_into(place, view[at : at + length])
        at += length
    view.release()
    return data
