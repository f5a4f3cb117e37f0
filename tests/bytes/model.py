"""The contents of an image, and what its devices and a file in it may show: no I/O.

An image has views: the whole disk, partitions, a file of a filesystem in it. Each has a page cache
of its own, as in the kernel. The clean pages in it are not known (the kernel reads ahead, and
drops pages at any time), so a view may show the current contents of the image, or contents that it
had since the view's cache was dropped, and nothing else. The dirty pages are known, since the
program that dirties them reads them afterwards; the time when the kernel writes them is not known,
until an operation requires it.

Offsets and lengths are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

PAGE = 4096

Read = Callable[[int, int], bytes]  # of the image file: offset, length


class Fault(Exception):
    """A violation of the model."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes ``begin`` to ``end`` - 1; false if there are none."""

    begin: int
    end: int

    def __iter__(self) -> Iterator[int]:
        yield self.begin
        yield self.end

    def __len__(self) -> int:
        return max(self.end - self.begin, 0)

    def __and__(self, other: Range) -> Range:
        return Range(max(self.begin, other.begin), min(self.end, other.end))

    def moved(self, by: int) -> Range:
        return Range(self.begin + by, self.end + by)

    def within(self, other: Range) -> bool:
        return other.begin <= self.begin and self.end <= other.end


class Pieces:
    """Bytes that may be found at places of an image instead of the expected ones."""

    def __init__(self) -> None:
        self._pieces: list[tuple[int, bytes]] = []

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return iter(self._pieces)

    def add(self, offset: int, data: bytes) -> None:
        if data and (offset, data) not in self._pieces:
            self._pieces.append((offset, data))

    def clear(self) -> None:
        self._pieces.clear()

    def cut(self, gone: Range) -> list[tuple[int, bytes]]:
        """Remove the bytes within a range; return the overlapping pieces, unchanged."""
        cut = [piece for piece in self._pieces if len(_extent(piece) & gone)]
        if cut:
            whole = [piece for piece in self._pieces if not len(_extent(piece) & gone)]
            for offset, data in cut:
                whole += [
                    (offset, data[: max(gone.begin - offset, 0)]),
                    (gone.end, data[max(gone.end - offset, 0) :]),
                ]
            self._pieces = [piece for piece in whole if piece[1]]
        return cut

    def explain(self, offset: int, found: bytes, wrong: set[int]) -> None:
        """Remove from ``wrong`` the indices at which ``found`` agrees with one of the pieces."""
        here = Range(offset, offset + len(found))
        for piece in self._pieces:
            common = _extent(piece) & here
            if not len(common):
                continue
            ours = piece[1][common.begin - piece[0] : common.end - piece[0]]
            index = common.begin - offset
            if ours == found[index : index + len(common)]:
                wrong.difference_update(range(index, index + len(common)))
            else:
                wrong -= {
                    i
                    for i in wrong
                    if index <= i < index + len(common) and ours[i - index] == found[i]
                }
            if not wrong:
                return


def _extent(piece: tuple[int, bytes]) -> Range:
    return Range(piece[0], piece[0] + len(piece[1]))


def compare(
    what: str, offset: int, found: bytes, wanted: bytes, alternatives: Iterable[Pieces] = ()
) -> None:
    """Raise Fault unless each byte is the one wanted or one of the alternatives.

    Args:
        offset: of the first byte in the image.
    """
    if found == wanted:
        return
    if len(found) != len(wanted):
        raise Fault(f"{what}: {len(found)} bytes at {offset}, wanted were {len(wanted)}")
    wrong = {i for i in range(len(found)) if found[i] != wanted[i]}
    for pieces in alternatives:
        pieces.explain(offset, found, wrong)
        if not wrong:
            return
    at = min(wrong)
    raise Fault(
        f"{what}: {len(wrong)} wrong bytes of {len(found)}, from {offset + at} of the image to "
        f"{offset + max(wrong)}: {found[at : at + 16].hex()}, wanted: {wanted[at : at + 16].hex()}"
    )


class Image:
    """A backing file, with all writes that must have reached it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.content = bytearray(content)
        self.views: list[View] = []
        self.unknown: list[Range] = []  # ranges that an engine may change at any time

    def changed(self, offset: int, data: bytes, by: View | None) -> None:
        """Record ``data`` in the image. The cache of ``by`` has it; other views may still have the
        previous contents."""
        before = bytes(self.content[offset : offset + len(data)])
        self.content[offset : offset + len(data)] = data
        for view in self.views:
            if view is not by:
                view.may_be_behind(offset, before, data)

    def resized(self, size: int) -> None:
        """Record a change of the size by ftruncate(2)."""
        del self.content[size:]
        self.content += bytes(size - len(self.content))

    def check(self, offset: int, found: bytes) -> None:
        """Check data that was read from the image file. Raises Fault."""
        wanted = bytearray(self.content[offset : offset + len(found)])
        self.allow_unknown(offset, found, wanted)
        compare(f"{self.name}, the image", offset, found, bytes(wanted), self.maybe())

    def maybe(self) -> Iterator[Pieces]:
        """Return the data that the kernel may have written on its own."""
        return (view.maybe for view in self.views)

    def allow_unknown(self, offset: int, found: bytes, wanted: bytearray) -> None:
        here = Range(offset, offset + len(found))
        for unknown in self.unknown:
            begin, end = unknown & here
            if begin < end:
                wanted[begin - offset : end - offset] = found[begin - offset : end - offset]

    def known_again(self, found: bytes) -> None:
        """Record that the engine has ended: the image contains ``found``, and no view has older
        data."""
        for begin, end in self.unknown:
            self.content[begin:end] = found[begin:end]
        self.unknown = []


class Dirty:
    """A page that the program has stored into.

    ``stored`` are the ranges; ``others`` is data that others have written to the image since.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.stored: list[Range] = []
        self.others = Pieces()


class View:
    """A part of an image with a page cache of its own.

    Args:
        by_blocks: only the blocks of a page that were stored into are written (the kernel's block
            devices); otherwise whole pages (FUSE).
    """

    def __init__(
        self, image: Image, name: str, start: int, size: int, *, by_blocks: bool = False
    ) -> None:
        self.image = image
        self.name = name
        self.start = start
        self.size = size
        self.by_blocks = by_blocks
        self.open = False
        self.old = Pieces()  # outdated data that clean pages may still contain
        self.maybe = Pieces()  # dirty data that the kernel may already have written
        self.dirty: dict[int, Dirty] = {}
        image.views.append(self)

    @property
    def extent(self) -> Range:
        """The range of the view in the image."""
        return Range(self.start, self.start + self.size)

    def page(self, number: int) -> Range:
        """Return the range of a page in the image."""
        begin = number * PAGE
        return Range(begin, min(begin + PAGE, self.size)).moved(self.start)

    def pages(self, part: Range) -> range:
        """Return the pages that overlap a part of the view, in offsets of the view."""
        return range(part.begin // PAGE, -(-part.end // PAGE))

    def may_be_behind(self, offset: int, before: bytes, after: bytes) -> None:
        if not self.open:
            return
        begin, end = self.extent & Range(offset, offset + len(before))
        if begin >= end:
            return
        if before != after:
            self.old.add(begin, before[begin - offset : end - offset])
        for page in self.pages(Range(begin, end).moved(-self.start)):
            if page in self.dirty:
                self.dirty[page].others.add(offset, after)

    # --- what may be read --------------------------------------------------------

    def check(self, offset: int, found: bytes, how: str = "read") -> None:
        """Check data that was read at ``offset`` of the view. Raises Fault."""
        self._compare(offset, found, self.wanted(offset, len(found)), how)

    def wanted(self, offset: int, length: int) -> bytearray:
        """Return the contents if no page is outdated."""
        at = self.start + offset
        here = Range(at, at + length)
        wanted = bytearray(self.image.content[at : at + length])
        for page in self.pages(here.moved(-self.start)):
            if page in self.dirty:
                whole = self.page(page)
                begin, end = whole & here
                wanted[begin - at : end - at] = self.dirty[page].content[
                    begin - whole.begin : end - whole.begin
                ]
        return wanted

    def _compare(self, offset: int, found: bytes, wanted: bytearray, how: str) -> None:
        at = self.start + offset
        self.image.allow_unknown(at, found, wanted)
        compare(f"{self.name}, {how}", at, found, bytes(wanted), self._alternatives())

    def _alternatives(self) -> Iterator[Pieces]:
        yield self.old
        yield from self.image.maybe()
        yield from (dirty.others for dirty in self.dirty.values())

    # --- operations of the program -----------------------------------------------

    def written(self, offset: int, data: bytes) -> None:
        """Record a write(2) that has returned: the data is in the image, and in this cache."""
        at = self.start + offset
        here = Range(at, at + len(data))
        self.image.changed(at, data, self)
        self.old.cut(here)
        for piece in self.maybe.cut(here):
            self._others_may_have(piece)
        for number in self.pages(here.moved(-self.start)):
            if dirty := self.dirty.get(number):
                whole = self.page(number)
                begin, end = whole & here
                content = bytearray(dirty.content)
                content[begin - whole.begin : end - whole.begin] = data[begin - at : end - at]
                dirty.content = bytes(content)
                dirty.others.cut(here)
                self.maybe.add(begin, data[begin - at : end - at])

    def stored(self, offset: int, data: bytes, read: Read, how: str) -> None:
        """Record a store that has dirtied pages; ``read`` returns their current contents."""
        here = Range(offset, offset + len(data))
        for number in self.pages(here):
            whole = self.page(number).moved(-self.start)
            content = read(whole.begin, len(whole))
            self._check_stored(whole, content, here & whole, offset, data, how)
            dirty = self.dirty.get(number) or Dirty(content)
            dirty.content = content
            dirty.stored.append(here & whole)
            dirty.others.clear()
            self.dirty[number] = dirty
            self.maybe.add(whole.begin + self.start, content)
            self.old.cut(whole.moved(self.start))

    def _check_stored(
        self, whole: Range, content: bytes, part: Range, offset: int, data: bytes, how: str
    ) -> None:
        wanted = self.wanted(whole.begin, len(whole))
        stored = data[part.begin - offset : part.end - offset]
        wanted[part.begin - whole.begin : part.end - whole.begin] = stored
        self._compare(whole.begin, content, wanted, how)
        compare(
            f"{self.name}, {how}",
            part.begin + self.start,
            content[part.begin - whole.begin : part.end - whole.begin],
            stored,
        )

    def refused(self, offset: int, data: bytes) -> None:
        """Record a store that is refused: the cache may show it, the image never contains it."""
        self.old.add(self.start + offset, data)

    # --- events of the cache -------------------------------------------------------

    def flushed(self, read: Read, why: str, numbers: Sequence[int] | None = None) -> None:
        """Check that dirty pages, all or those with these numbers, are in the image. Raises
        Fault."""
        for number in [*self.dirty] if numbers is None else numbers:
            if dirty := self.dirty.get(number):
                self._page_flushed(number, dirty, read, why)
                del self.dirty[number]
        if not self.dirty:
            for piece in self.maybe:
                self._others_may_have(piece)
            self.maybe.clear()

    def _page_flushed(self, number: int, dirty: Dirty, read: Read, why: str) -> None:
        here = self.page(number)
        found = read(here.begin, len(here))
        wanted = bytearray(dirty.content)
        self.image.allow_unknown(here.begin, found, wanted)
        alternatives = [dirty.others]
        alternatives += [view.maybe for view in self.image.views if view is not self]
        if self.by_blocks:
            unstored = Pieces()
            unstored.add(here.begin, bytes(self.image.content[here.begin : here.end]))
            for part in dirty.stored:
                unstored.cut(part.moved(self.start))
            alternatives.append(unstored)
        what = f"{self.image.name}, dirty page {number} of {self.name} after {why}"
        compare(what, here.begin, found, bytes(wanted), alternatives)
        self.image.changed(here.begin, found, self)
        if found != dirty.content:
            self.old.add(here.begin, dirty.content)

    def dropped(self) -> None:
        """Record that all pages were dropped; none was dirty."""
        assert not self.dirty, f"{self.name} has dirty pages"
        self.old.clear()

    def moved(self, start: int, size: int) -> None:
        """Record that the view shows another part of the image; its pages were dropped."""
        self.dropped()
        self.start, self.size = start, size

    def _others_may_have(self, piece: tuple[int, bytes]) -> None:
        for view in self.image.views:
            if view is not self and view.open:
                view.old.add(*piece)
