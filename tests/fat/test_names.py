"""Short and long names by the kernel's rules, from its sources and its results."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs import nls
from loopfs.fat import names
from loopfs.fat.dir import parse
from loopfs.fat.names import Names
from loopfs.fat.options import Options
from tests.fat import uml
from tests.fat.images import Memory, made, mounted, on_disk, tool
from tests.support.skip import need
from tests.support.uml import modules


def short(text: str, options: str = "", taken: set[bytes] | None = None) -> tuple[bytes, int, bool]:
    return tuple(Names(Options(options)).short(text, taken or set()))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("text", "options", "name", "lcase", "whole"),
    [
        ("FOO.TXT", "", b"FOO     TXT", 0, True),
        ("foo.txt", "", b"FOO     TXT", 0, False),
        ("foo.txt", "shortname=winnt", b"FOO     TXT", 0x18, True),
        ("foo.TXT", "shortname=winnt", b"FOO     TXT", 0x08, True),
        ("Foo.TXT", "shortname=winnt", b"FOO     TXT", 0, False),
        ("longer than eight", "", b"LONGER~1   ", 0, False),
        (".hidden", "", b"HIDDEN~1   ", 0, False),
        ("a.b.c", "", b"AB~1    C  ", 0, False),
        ("x.html", "", b"X~1     HTM", 0, False),
        ("x.html", "nonumtail", b"X       HTM", 0, False),
        ("a+b", "", b"A_B~1      ", 0, False),
        ("ü.txt", "", b"\x9a       TXT", 0, False),
        ("日本語.txt", "", b"___~1   TXT", 0, False),
        ("日本語.txt", "codepage=932", b"\x93\xfa\x96\x7b\x8c\xea  TXT", 0, False),
        ("日本語のファイル", "codepage=932", b"\x93\xfa\x96\x7b\x8c\xea~1   "[:11], 0, False),
        ("Õ", "codepage=850", b"\x05          ", 0, False),  # 0xE5 is a free entry's
    ],
)
def test_short_names(text: str, options: str, name: bytes, lcase: int, whole: bool) -> None:
    assert short(text, options) == (name, lcase, whole)


def test_numbers_are_those_that_are_free() -> None:
    taken: set[bytes] = set()
    for n in range(9):
        name, _, _ = short(f"some long name {n}", taken=taken)
        assert name == b"SOMELO~%d   " % (n + 1)
        taken.add(name)
    name, _, _ = short("some long name 9", taken=taken)
    assert name[:2] == b"SO" and name[6:7] == b"~"
    assert name == short("some long name 9", taken=taken)[0], "the same in each run"
    taken.add(name)
    assert short("some long name 9", taken=taken)[0] not in taken


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", errno.ENOENT),
        (b"...", errno.ENOENT),
        (b"x" * 256, errno.ENAMETOOLONG),
        ("😀".encode() * 128, errno.ENAMETOOLONG),
        *((b"a" + bytes([c]), errno.EINVAL) for c in b'*?<>|":\\ \x01\x1f'),
        (b"\xff", errno.EINVAL),
        (b"\xed\xa0\x80", errno.EINVAL),
    ],
)
def test_bad_names(name: bytes, code: int) -> None:
    with pytest.raises(OSError, match=os.strerror(code)):
        Names(Options()).decode(name)


def test_escapes_of_uni_xlate() -> None:
    xlate = Names(Options("utf8=no,uni_xlate"))
    assert xlate.encode("aж") == b"a:0436"
    assert xlate.decode(b"a:0436b") == "aжb"
    assert xlate.decode(xlate.encode("😀")) == "😀"
    for bad in (b"a:043", b"a:", b"a:zzzz", b"a:+436"):
        with pytest.raises(OSError, match="Invalid"):
            xlate.decode(bad)
    assert Names(Options("utf8=no")).encode("aж") == b"a?"


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="".join(names._BAD) + "."),
    min_size=1,
    max_size=120,
).filter(lambda text: text[-1] != " ")  # of spaces alone there is no short name


@given(TEXT, st.sampled_from(["", "shortname=winnt", "codepage=932", "codepage=866", "nonumtail"]))
def test_a_name_comes_back_from_its_entries(text: str, options: str) -> None:
    of = Names(Options(options))
    name, lcase, whole = of.short(text, set())
    assert len(name) == 11 and name[0] not in (0, names.DELETED, 0x20)
    slots = b"" if whole else names.slots(text, name)
    data = slots + name + bytes([0x20, lcase]) + bytes(19)
    (entry,) = parse(data)
    assert entry.slot == len(slots) // 32
    if whole:
        assert of.key(of.shown(name, lcase, 0)) == of.key(text.encode())
    else:
        assert entry.text == text


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=12).map(b"".join))
def test_any_bytes_can_be_a_directory(data: bytes) -> None:
    for entry in parse(data):
        assert entry.first <= entry.slot
        if entry.text is not None:
            assert len(entry.text) <= 20 * 13


@given(
    st.lists(st.sampled_from([0x00, 0xE5, 0x41, 0x01, 0x42, 0x02, 0x54]), max_size=12), st.data()
)
def test_slots_in_any_order(heads: list[int], data: st.DataObject) -> None:
    """Only a complete name, in order and of the entry behind it, counts."""
    check = names.checksum(b"SHORT      ")
    raw = b""
    for head in heads:
        sum_ = data.draw(st.sampled_from([check, check, 7]))
        raw += names.SLOT.pack(head, b"a\0" * 5, 0x0F, 0, sum_, b"b\0" * 6, 0, b"c\0" * 2)
    raw += b"SHORT      " + bytes([0x20]) + bytes(20)
    (entry,) = parse(raw)
    assert entry.slot == len(heads)
    if entry.text is not None:
        count = entry.slot - entry.first
        assert heads[-count:] == [0x40 | count, *range(count - 1, 0, -1)]


def test_slots_are_those_of_mtools() -> None:
    """A name as mtools writes it, byte for byte but for the times."""
    text = "A long name für mtools.text"
    image = made("FAT16")
    with on_disk(image) as path:
        (path.parent / "file").write_bytes(b"")
        assert tool("mcopy", "-i", path, path.parent / "file", f"::{text}").returncode == 0
        image = bytearray(path.read_bytes())
    tree = mounted(Memory(image))
    theirs = tree.volume.root.dir
    assert theirs is not None
    (inode,) = theirs.inodes.values()
    assert inode.name == text.encode()
    slots = names.slots(text, inode.short)
    at = 32 * inode.first
    assert theirs.data[at : at + len(slots)] == slots


# --- character sets against the kernel's own tables --------------------------------


def _symbols(path: Path) -> dict[str, bytes]:
    """The data of an ELF object, by the names in its symbol table."""
    raw = path.read_bytes()
    (headers,) = struct.unpack_from("<Q", raw, 0x28)
    size, count = struct.unpack_from("<HH", raw, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", raw, headers + n * size) for n in range(count)]
    (table,) = (section for section in sections if section[1] == 2)
    strings = sections[table[6]][4]
    found = {}
    for at in range(table[4], table[4] + table[5], 24):
        name, _, _, section, value, length = struct.unpack_from("<IBBHQQ", raw, at)
        if 0 < section < count and length:
            begin = strings + name
            text = raw[begin : raw.index(0, begin)].decode()
            place = sections[section][4] + value
            found[text] = raw[place : place + length]
    return found


def _to_charset(symbols: dict[str, bytes], unit: int, codepage: int) -> bytes:
    """uni2char() by the tables; a codepage of two bytes has others than one of one byte."""
    if codepage != 932:
        page = symbols.get(f"page{unit >> 8:02x}", b"")
        return page[unit & 255 : (unit & 255) + 1].strip(b"\0")
    if unit < 0x80 or 0xFF61 <= unit <= 0xFF9F:
        return bytes([unit if unit < 0x80 else unit - 0xFF61 + 0xA1])
    page = symbols.get(f"u2c_{unit >> 8:02X}", b"")
    at = unit & 255
    if unit < 0x100:
        page, at = symbols["u2c_00hi"], unit - 0xA0
    return page[2 * at : 2 * at + 2].strip(b"\0") if at >= 0 else b""


@pytest.mark.may_skip(reason="no package user-mode-linux")
@pytest.mark.parametrize("number", [437, 850, 852, 866, 932])
def test_code_pages_are_the_kernels(number: int) -> None:
    need(not (why := uml.missing()), why)
    symbols, ours = _symbols(modules() / f"nls/nls_cp{number}.ko"), nls.codepage(number)
    for which, table in (("charset2lower", ours.lower), ("charset2upper", ours.upper)):
        kernel = symbols[which]
        assert [kernel[c] or c for c in range(256)] == list(table)
    differ = [
        (hex(unit), _to_charset(symbols, unit, number), ours.encode(chr(unit)))
        for unit in range(1, 0x10000)
        if not 0xD800 <= unit < 0xE000
        and ours.encode(chr(unit)) != _to_charset(symbols, unit, number)
    ]
    assert differ == []


def test_bytes_that_are_no_characters() -> None:
    japanese = nls.codepage(932)
    assert japanese.decode(b"\x93\xfa\x96", "?") == "日?"
    assert japanese.decode(b"\xf0\x40a", "?") == "?@a"  # only Python has a private use area
    assert nls.codepage(874).decode(b"a\xdb", "?") == "a?"
