"""Calls that a golden file does not cover: lookups, listings in pages, parts of files."""

from __future__ import annotations

import itertools
import os
import random

import pytest

from loopfs.fuse.tree import Caller
from loopfs.iso9660 import dates
from loopfs.iso9660.filesystem import Iso9660
from loopfs.iso9660.inode import Inode
from loopfs.iso9660.options import knows
from tests.iso9660 import build
from tests.iso9660.build import Directory, File
from tests.iso9660.images import both_trees, mounted

NOBODY = Caller(0, 0, 0)


def of_files(*files: File) -> bytearray:
    return build.image(Directory(b"\0", children=list(files)))


def found(tree: Iso9660, name: str) -> Inode | None:
    try:
        return tree.lookup(tree.root(), name.encode())[0]
    except FileNotFoundError:
        return None


@pytest.mark.parametrize(
    ("options", "name", "is_there"),
    [
        ("norock", "abc.txt", True),
        ("norock", "ABC.TXT", True),
        ("norock", "Abc.TXT...", True),
        ("norock", "Abc", False),
        ("norock,check=s", "abc.txt", False),
        ("norock,check=s", "Abc.TXT.", True),
        ("norock", "SUB DIR", True),
        ("", "rock.txt", False),
        ("", "Rock.txt", True),
        ("check=r", "ROCK.TXT", True),
        ("check=r", "rock.txt.", False),
        ("norock,nojoliet", "rock.txt", True),
        ("norock,nojoliet", "ROCK.TXT", False),
        ("norock,nojoliet,check=r", "ROCK.TXT", True),
        ("norock,nojoliet,map=o", "ROCK.TXT;1", True),
    ],
)
def test_spellings(options: str, name: str, is_there: bool) -> None:
    assert (found(mounted(both_trees(), options), name) is not None) is is_there


def test_spellings_are_names_of_one_node() -> None:
    tree = mounted(both_trees(), "norock")
    node = found(tree, "no version")
    assert node is not None
    tree.known(node)
    assert found(tree, "NO VERSION.") is node
    tree.forgotten(node)
    assert found(tree, "no version") is not node


def test_the_first_of_two_equal_names_is_used() -> None:
    tree = mounted(of_files(File(b"A.;1", b"one"), File(b"A.;1", b"two"), File(b"B.;1")))
    rows = list(tree.entries(tree.opendir(NOBODY, tree.root()), 2))
    assert [(row[1], row[4] is not None) for row in rows] == [
        (b"a", True),
        (b"a", False),
        (b"b", True),
    ]
    node = found(tree, "a")
    assert node is not None
    assert bytes(tree.read(tree.open(NOBODY, node, os.O_RDONLY), 0, 10)) == b"one"


def test_names_that_cannot_be_looked_up() -> None:
    use = build.nm(b"a/b"), build.nm(b".."), build.nm(b"fine")
    files = [File(b"F%d.;1" % n, use=one) for n, one in enumerate(use)]
    tree = mounted(of_files(*files))
    assert [row[1] for row in tree.entries(tree.opendir(NOBODY, tree.root()), 2)] == [b"fine"]


def test_a_listing_from_any_place_and_what_comes_after_damage() -> None:
    files = [File(b"F%02d.;1" % n) for n in range(90)]
    image = of_files(*files)
    image[image.index(b"F70.;1") - 1] = 200
    tree = mounted(image)
    handle = tree.opendir(NOBODY, tree.root())
    rows = list(tree.entries(handle, 0))
    assert len(rows) == 72
    for row, following in itertools.pairwise(rows):
        assert next(iter(tree.entries(handle, row[0])))[:4] == following[:4]
    with pytest.raises(OSError, match="Input/output"):
        list(tree.entries(handle, rows[-1][0]))


def test_nothing_is_written() -> None:
    tree = mounted(of_files(File(b"A.;1")))
    node = found(tree, "a")
    assert node is not None
    with pytest.raises(OSError, match="Read-only"):
        tree.open(NOBODY, node, os.O_RDWR)


@pytest.mark.parametrize("shift", [12, 15, 17])
def test_parts_of_a_compressed_file(shift: int) -> None:
    chance = random.Random(shift)
    text = chance.randbytes(70000) + bytes(300000) + b"x" * 123457
    stored = build.zisofs(text, shift)
    tree = mounted(of_files(File(b"Z.;1", stored, use=build.zf(4, shift, len(text)))))
    node = found(tree, "z")
    assert node is not None
    handle = tree.open(NOBODY, node, os.O_RDONLY)
    for _ in range(60):
        offset, size = chance.randrange(len(text) + 10), chance.randrange(1 << 18)
        assert tree.read(handle, offset, size) == text[offset : offset + size]


def test_parts_of_a_file_in_sections() -> None:
    parts = [random.Random(n).randbytes(4096 * (n + 1)) for n in range(5)]
    flags = [build.MULTI_EXTENT] * 4 + [0]
    files = [File(b"S.;1", part, flags=flag) for part, flag in zip(parts, flags, strict=True)]
    text, tree = b"".join(parts), mounted(of_files(*files))
    node = found(tree, "s")
    assert node is not None
    handle = tree.open(NOBODY, node, os.O_RDONLY)
    for offset in range(0, len(text) + 4096, 3001):
        assert tree.read(handle, offset, 9000) == text[offset : offset + 9000]


def test_dates() -> None:
    assert dates.nanoseconds(bytes((70, 1, 1, 0, 0, 0, 0))) == 0
    assert dates.nanoseconds(bytes((70, 1, 1, 1, 0, 0, 4))) == 0
    assert dates.nanoseconds(bytes((70, 1, 1, 0, 0, 0, 0xFC))) == 3600 * 10**9
    assert dates.nanoseconds(bytes((70, 1, 1, 0, 0, 0, 100))) == 0  # no time zone
    assert dates.nanoseconds(bytes((124, 3, 1, 0, 0, 0))) == 1709251200 * 10**9
    assert dates.nanoseconds(b"2038011903140850\x00") == 2147483648 * 10**9 + 500_000_000
    assert dates.nanoseconds(bytes(17)) == 0


def test_a_date_in_the_long_form() -> None:
    date = b"2031122523595999\x04"
    image = of_files(File(b"A.;1", use=build.tf(0x80 | 2, date)))
    node = found(mounted(image), "a")
    assert node is not None
    assert node.times[1] == 1956005999 * 10**9 + 990_000_000


def test_options_by_their_keys() -> None:
    assert all(map(knows, ("norock", "map", "check", "conv", "uid", "iocharset", "unhide")))
    assert not any(map(knows, ("", "rock", "umask", "utf")))
