"""The model detects errors, and permits what the kernel may do at any time."""

from __future__ import annotations

import pytest

from tests.bytes.model import PAGE, Fault, Image, Pieces, Range, View, compare

SIZE = 4 * PAGE


@pytest.fixture
def image() -> Image:
    return Image("image", bytes(SIZE))


@pytest.fixture
def disk(image: Image) -> View:
    view = View(image, "disk", 0, SIZE)
    view.open = True
    return view


@pytest.fixture
def part(image: Image, disk: View) -> View:
    """At an odd place, as a partition may be."""
    view = View(image, "part", 512, 2 * PAGE)
    view.open = True
    return view


def read(image: Image, offset: int, length: int) -> bytes:
    """Of an image file that is as the model has it."""
    return bytes(image.content[offset : offset + length])


def store(view: View, offset: int, data: bytes) -> None:
    """A store by somebody whose cache is not behind."""

    def page(at: int, size: int) -> bytes:
        content = view.wanted(at, size)
        begin, end = Range(at, at + size) & Range(offset, offset + len(data))
        content[begin - at : end - at] = data[begin - offset : end - offset]
        return bytes(content)

    view.stored(offset, data, page, "store")


def test_a_write_is_seen_at_once_by_its_own_view_only(disk: View, part: View) -> None:
    disk.written(1000, b"new")
    disk.check(1000, b"new")
    part.check(1000 - 512, b"new")  # it had not read it before
    part.check(1000 - 512, bytes(3))  # it had
    with pytest.raises(Fault, match="disk, read"):
        disk.check(1000, bytes(3))
    with pytest.raises(Fault, match="part, read"):
        part.check(1000 - 512, b"old")


def test_what_is_behind_ends_with_a_drop(disk: View, part: View) -> None:
    disk.written(1000, b"new")
    part.flushed(lambda *_: b"", "BLKFLSBUF")
    part.dropped()
    part.check(1000 - 512, b"new")
    with pytest.raises(Fault, match="wrong bytes"):
        part.check(1000 - 512, bytes(3))


def test_a_view_that_is_not_open_is_not_outdated(disk: View, part: View) -> None:
    part.open = False
    disk.written(1000, b"new")
    part.open = True
    with pytest.raises(Fault, match="wrong bytes"):
        part.check(1000 - 512, bytes(3))


def test_a_dirty_page_is_in_the_image_or_not_until_it_must(image: Image, disk: View) -> None:
    store(disk, 10, b"dirty")
    disk.check(10, b"dirty")
    image.check(0, bytes(PAGE))
    image.check(10, b"dirty")
    with pytest.raises(Fault, match="dirty page 0 of disk after fsync"):
        disk.flushed(lambda *_: bytes(PAGE), "fsync")


def test_a_dirty_page_that_was_written_is_no_longer_dirty(image: Image, disk: View) -> None:
    store(disk, 10, b"dirty")
    disk.flushed(lambda *_: bytes(10) + b"dirty" + bytes(PAGE - 15), "fsync")
    image.check(10, b"dirty")
    with pytest.raises(Fault, match="the image"):
        image.check(10, bytes(5))


def test_only_some_pages_are_written(disk: View) -> None:
    store(disk, 0, b"a")
    store(disk, PAGE, b"b")
    disk.flushed(lambda *_: b"a" + bytes(PAGE - 1), "msync", [0])
    assert list(disk.dirty) == [1]


def test_a_last_byte_that_is_lost(disk: View) -> None:
    store(disk, SIZE - 1, b"z")
    with pytest.raises(Fault, match="1 wrong bytes of 4096, from 16383"):
        disk.flushed(lambda *_: bytes(PAGE), "BLKFLSBUF")


def test_zeroes_stay_where_a_page_was_dirty(image: Image, disk: View) -> None:
    store(disk, 0, b"d" * PAGE)
    disk.written(0, bytes(512))  # BLKZEROOUT
    with pytest.raises(Fault, match="the image"):
        image.check(0, b"d" * 512)
    disk.flushed(lambda *_: bytes(512) + b"d" * (PAGE - 512), "fsync")


def test_of_two_writers_either_may_be_last(image: Image, disk: View, part: View) -> None:
    store(part, 0, b"part")
    disk.written(512, b"disk")
    image.check(512, b"disk")
    image.check(512, b"part")
    part.flushed(lambda *_: b"disk" + bytes(PAGE - 4), "fsync")  # the page had been written before
    with pytest.raises(Fault, match="the image"):
        image.check(512, b"part")


def test_a_write_into_a_dirty_page_may_come_again(image: Image, disk: View, part: View) -> None:
    store(disk, 512, b"stored")
    disk.written(512, b"mine")
    part.written(0, b"part")
    image.check(512, b"mineed")
    image.check(512, b"part")
    with pytest.raises(Fault, match="the image"):
        image.check(512, b"stored")


def test_what_another_writes_may_be_what_was_there(disk: View, part: View) -> None:
    store(part, 0, b"part")
    disk.written(512, bytes(4))
    part.flushed(lambda *_: bytes(PAGE), "fsync")  # the page had been written before


def test_the_last_store_wins_over_what_was_written_before(disk: View, part: View) -> None:
    store(part, 0, b"part")
    disk.written(512, b"disk")
    part.stored(0, b"anew", lambda *_: b"anew" + bytes(PAGE - 4), "store")
    with pytest.raises(Fault, match="dirty page 0 of part"):
        part.flushed(lambda *_: b"disk" + bytes(PAGE - 4), "fsync")


def test_a_store_that_brings_other_bytes(disk: View) -> None:
    with pytest.raises(Fault, match="store"):
        disk.stored(0, b"x", lambda *_: b"xy" + bytes(PAGE - 2), "store")
    with pytest.raises(Fault, match="store"):
        disk.stored(0, b"x", lambda *_: bytes(PAGE), "store")


def test_what_is_refused_is_never_in_the_image(image: Image, disk: View) -> None:
    disk.refused(100, b"no")
    disk.check(100, b"no")
    disk.check(100, bytes(2))
    with pytest.raises(Fault, match="the image"):
        image.check(100, b"no")


def test_what_an_engine_writes_is_known_when_it_has_ended(image: Image, disk: View) -> None:
    image.unknown = [Range(PAGE, SIZE)]
    image.check(0, bytes(PAGE) + b"e" * 3 * PAGE)
    with pytest.raises(Fault, match="the image"):
        image.check(0, b"e" * SIZE)
    image.known_again(bytes(PAGE) + b"e" * 3 * PAGE)
    with pytest.raises(Fault, match="disk, read"):
        disk.check(PAGE, bytes(1))


def test_blocks_of_a_page_without_stores(image: Image) -> None:
    """The kernel's devices do not write them; FUSE does."""
    view = View(image, "device", 0, SIZE, by_blocks=True)
    view.open = True
    store(view, 0, b"x")
    image.changed(2048, b"by another", None)
    view.flushed(lambda *_: b"x" + bytes(2047) + b"by another" + bytes(PAGE - 2058), "fsync")
    image.check(2048, b"by another")


def test_pieces_are_cut() -> None:
    pieces = Pieces()
    pieces.add(10, b"abcdef")
    assert pieces.cut(Range(12, 14)) == [(10, b"abcdef")]
    assert sorted(pieces) == [(10, b"ab"), (14, b"ef")]
    compare("x", 10, b"ab..ef", b"......", [pieces])
    with pytest.raises(Fault, match="2 wrong bytes of 6, from 12"):
        compare("x", 10, b"abcdef", b"......", [pieces])


def test_lengths_differ() -> None:
    with pytest.raises(Fault, match="3 bytes at 0, wanted were 4"):
        compare("x", 0, b"abc", b"abcd")
