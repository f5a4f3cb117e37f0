"""Options, times, boot sectors and the allocation table: conversion of bytes."""

from __future__ import annotations

import calendar
import errno
import itertools
import random
import struct
import time
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.fat import boot
from loopfs.fat.cache import Runs
from loopfs.fat.errors import Damaged
from loopfs.fat.fatent import CHUNK, Table, pack12, unpack12
from loopfs.fat.options import Defaults, Options
from loopfs.fat.times import Clock
from tests.fat.images import GEOMETRIES, Memory, made

SECOND = 10**9

# --- options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "good",
    [
        *("", "uid=1000,gid=0x10", "umask=0", "fmask=133,dmask=0022", "codepage=850", "quiet"),
        *("iocharset=iso8859-15", "iocharset=koi8-r", "iocharset=cp866", "shortname=mixed"),
        *(
            "check=r",
            "check=strict",
            "utf8",
            "utf8=0",
            "utf8=false",
            "uni_xlate=yes",
            "nonumtail=no",
        ),
        *("errors=panic", "time_offset=-1440", "tz=UTC", "allow_utime=20", "flush,debug", "nfs"),
        *("conv=binary", "fat=16", "blocksize=512", "posix", "cvf_format=x", "dos1xfloppy,usefree"),
        *("nfs=nostale_ro", "sys_immutable,rodir,showexec,discard", ",,quiet,"),
    ],
)
def test_options_of_the_kernel(good: str) -> None:
    Options(good)


@pytest.mark.parametrize(
    "bad",
    [
        *("nonsense", "uid=x", "uid=", "uid", "uid=4294967296", "uid=-1", "uid= 1", "uid=1_0"),
        *(
            "umask=9",
            "umask=0o22",
            "umask=-1",
            "codepage=12345",
            "codepage=cp437",
            "iocharset=nope",
        ),
        *("shortname=odd", "check=x", "utf8=maybe", "errors=ignore", "time_offset=1441", "tz=CET"),
        *("conv=odd", "fat=x", "quiet=1", "dotsOK=yes", "nfs=rw", "discard,bad"),
    ],
)
def test_what_is_no_option(bad: str) -> None:
    with pytest.raises(OSError, match=r"^\[Errno 22\] .*[a-z]"):
        Options(bad)


def test_options_of_one_type_only() -> None:
    for word in ("dots", "nodots", "dotsOK=yes", "dotsOK=no", "nocase", "check=s", "codepage=850"):
        Options(word, fstype="msdos")
    assert Options("dotsOK=yes", fstype="msdos").dots and Options("", fstype="msdos").rodir
    for word in ("iocharset=utf8", "shortname=mixed", "utf8", "uni_xlate", "nonumtail", "rodir"):
        with pytest.raises(OSError, match=f"unknown option {word}"):
            Options(word, fstype="msdos")
    with pytest.raises(OSError, match="unknown option dots"):
        Options("dots")


def test_what_options_mean() -> None:
    caller = Defaults(uid=7, gid=8, umask=0o027, minuteswest=-60)
    options = Options("", caller)
    assert (options.uid, options.gid, options.fmask, options.dmask) == (7, 8, 0o27, 0o27)
    assert options.offset == -3600
    options = Options("umask=077,fmask=0133,uid=010,time_offset=90,nonumtail,errors=panic", caller)
    assert (options.uid, options.fmask, options.dmask) == (8, 0o133, 0o077)
    assert (options.offset, options.numtail, options.errors) == (-5400, False, "remount-ro")
    assert Options("tz=UTC", caller).offset == 0


# --- times -------------------------------------------------------------------------


@given(st.integers(315532800, 4354819199), st.sampled_from([0, 3600, -5400, 86400]))
def test_a_moment_comes_back(seconds: int, offset: int) -> None:
    clock = Clock(offset)
    date, clock_time, hundredths = clock.pack((seconds + offset) * SECOND + 500_000_000)
    t = time.gmtime(seconds)
    assert (date >> 9) + 1980 == t.tm_year and date >> 5 & 15 == t.tm_mon
    assert clock.nanoseconds(date, clock_time) == ((seconds & ~1) + offset) * SECOND
    assert clock.nanoseconds(date, clock_time, hundredths) == (
        (seconds + offset) * SECOND + 500_000_000
    )


@pytest.mark.parametrize("seconds", [-(2**40), 0, 315532799, 4354819200, 2**40])
def test_moments_that_cannot_be_kept(seconds: int) -> None:
    clock = Clock(0)
    kept = clock.nanoseconds(*clock.pack(seconds * SECOND)) // SECOND
    assert kept == (315532800 if seconds < 315532800 else 4354819199)


@given(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
def test_any_date_on_disk(date: int, clock_time: int) -> None:
    """Those that are dates are the calendar's; the others are some moment, and no error."""
    seconds = Clock(0).nanoseconds(date, clock_time) // SECOND
    year, month, day = (date >> 9) + 1980, date >> 5 & 15, date & 31
    hour, minute, second = clock_time >> 11, clock_time >> 5 & 63, (clock_time & 31) * 2
    if 1 <= month <= 12 and 1 <= day <= calendar.monthrange(year, month)[1]:
        expected = calendar.timegm((year, month, day, 0, 0, 0))
        assert seconds == expected + hour * 3600 + minute * 60 + second


# --- the boot sector ---------------------------------------------------------------


@pytest.mark.parametrize("name", GEOMETRIES)
def test_what_mkfs_has_made(name: str) -> None:
    image = made(name)
    shape = boot.geometry(bytes(image[:512]), len(image))
    words = GEOMETRIES[name][1].split()
    assert shape.bits == int(words[words.index("-F") + 1])
    assert shape.sector == (4096 if "4096" in words else 512)
    assert len(shape.fats) == (1 if "-f" in words else 2)
    assert shape.volume_id == 0x12345678
    assert shape.state == 0
    for place in shape.fats:
        assert image[place] in (0xF0, 0xF8)
    if shape.info_at:
        info = boot.read_info(bytes(image[shape.info_at :][:512]), shape.clusters)
        assert info is not None and info.free == shape.clusters - 1


def changed(at: int, layout: str, *values: int) -> bytes:
    image = made("FAT32")
    struct.pack_into(layout, image, at, *values)
    return bytes(image[:512])


@pytest.mark.parametrize(
    ("at", "layout", "value"),
    [
        (11, "<H", 500),
        (11, "<H", 8192),
        (11, "<H", 0),
        (13, "<B", 3),
        (13, "<B", 0),
        (14, "<H", 0),
        (16, "<B", 0),
        (21, "<B", 0x12),
        (36, "<I", 0),  # the FAT's sectors
        (17, "<H", 3),
        (19, "<H", 1),  # sectors
        (44, "<I", 1),  # the root's cluster
        (40, "<H", 0x82),  # the third FAT is the active one
    ],
)
def test_boot_sectors_that_are_none(at: int, layout: str, value: int) -> None:
    with pytest.raises(OSError, match=r"^\[Errno 22\] .*FAT"):
        boot.geometry(changed(at, layout, value), 4 << 20)


@given(st.binary(min_size=512, max_size=512), st.integers(0, 1 << 42))
def test_any_boot_sector(raw: bytes, size: int) -> None:
    head = bytearray(raw)
    head[11:13] = b"\0\2"
    head[13], head[16], head[21] = 8, 2, 0xF8
    try:
        shape = boot.geometry(bytes(head), size, dos1xfloppy=bool(raw[0] & 1))
    except OSError as problem:
        if problem.errno != errno.EINVAL:
            raise
        return
    assert 0 < shape.clusters <= boot.MOST_CLUSTERS[shape.bits]
    assert shape.data_at > 0


def test_a_floppy_without_parameters() -> None:
    head = bytearray(512)
    head[0], head[2] = 0xEB, 0x90
    shape = boot.geometry(bytes(head), 360 << 10, dos1xfloppy=True)
    assert (shape.bits, shape.cluster, shape.root_size) == (12, 1024, 112 * 32)
    with pytest.raises(OSError, match="reserved"):
        boot.geometry(bytes(head), 360 << 10)


# --- the table ------------------------------------------------------------------------


@given(st.lists(st.integers(0, 0xFFF), max_size=40))
def test_twelve_bits(entries: list[int]) -> None:
    raw = pack12(array("H", entries))
    assert unpack12(raw, len(entries)) == entries


def table(name: str) -> tuple[Memory, boot.Geometry, Table]:
    device = Memory(made(name))
    shape = boot.geometry(bytes(device.data[:512]), device.size)
    return device, shape, Table(device, shape, None)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_taking_and_giving_back(name: str) -> None:
    """Against a set of numbers: no cluster is taken twice, all can be, and all copies are equal."""
    device, shape, fat = table(name)
    chance, all_free = random.Random(name), fat.count_free()
    taken: list[Runs] = []
    for _ in range(300):
        if taken and chance.random() < 0.45:
            fat.release(taken.pop(chance.randrange(len(taken))))
        elif (runs := fat.allocate(chance.choice([1, 3, 200, 5000]))).total:
            taken.append(runs)
        if chance.random() < 0.2:
            fat.flush()
    used = [n for runs in taken for first, count in runs for n in range(first, first + count)]
    assert len(set(used)) == len(used) == all_free - fat.count_free()
    fat.flush()
    again = Table(device, shape, None)
    assert again.count_free() == fat.count_free()
    for runs in taken:
        assert list(again.runs(runs.start, shape.clusters)) == list(runs)
    length = (fat.limit * shape.bits + 7) // 8
    assert len({bytes(device.data[place : place + length]) for place in shape.fats}) == 1
    free = {n for first, count in fat.free_runs(2, fat.limit) for n in range(first, first + count)}
    assert len(free) == fat.count_free() and not free & set(used)
    assert fat.allocate(shape.clusters).total == len(free)
    assert fat.allocate(1).total == 0


def test_few_chunks_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loopfs.fat.fatent._KEPT", 2)
    device = Memory(bytearray(1 << 20))
    shape = boot.Geometry(32, 512, 512, (0, 500_000), 0, 0, 2, 0, 6 * CHUNK + 77, 0, 0, 0, 0)
    fat = Table(device, shape, None)
    taken = [fat.allocate(9000) for _ in range(10)]
    fat.flush()
    for first, last in itertools.pairwise(taken):
        assert list(fat.runs(first.start, 1 << 20)) == list(first)
        assert first.end == last.start
    assert len(fat._chunks) <= 2
    assert fat.count_free() == 6 * CHUNK + 77 - 90000
    assert device.data[: 4 * fat.limit] == device.data[500_000 : 500_000 + 4 * fat.limit]


def test_four_bits_of_an_entry_are_not_ours() -> None:
    device, shape, _ = table("FAT32")
    (at, other) = shape.fats
    device.data[at + 4 * 100 + 3] = 0xF0
    fat = Table(device, shape, None)
    runs = fat.allocate(200)
    fat.flush()
    assert 100 in range(runs.start, runs.end)
    assert device.data[at + 4 * 100 + 3] == 0xF0
    assert device.data[other + 4 * 100 + 3] == 0xF0
    fat.release(runs)
    fat.flush()
    assert device.data[at + 4 * 100 : at + 4 * 101] == b"\0\0\0\xf0"


def test_mirroring_off() -> None:
    """Only the active FAT is read and written."""
    device = Memory(made("FAT32"))
    struct.pack_into("<H", device.data, 40, 0x81)
    shape = boot.geometry(bytes(device.data[:512]), device.size)
    assert len(shape.fats) == 1
    before = bytes(device.data[: shape.fats[0]])
    fat = Table(device, shape, None)
    fat.allocate(10)
    fat.flush()
    assert device.data[: shape.fats[0]] == before


def test_giving_back_what_is_free_already() -> None:
    _, _, fat = table("FAT16")
    free = fat.count_free()
    runs = fat.allocate(10)
    fat.release(runs)
    fat.release(runs)
    assert fat.count_free() == free


@pytest.mark.parametrize("following", [0, 1, 0x0FFFFFF0])
def test_chains_that_lead_nowhere(following: int) -> None:
    _, _, fat = table("FAT32")
    runs = fat.allocate(3)
    fat.set(runs.last, following)
    with pytest.raises(Damaged):
        fat.runs(runs.start, 1000)


@given(st.lists(st.tuples(st.integers(2, 500), st.integers(1, 9)), max_size=12), st.integers(0, 99))
def test_runs_as_a_list_of_clusters(pieces: list[tuple[int, int]], keep: int) -> None:
    runs = Runs()
    clusters: list[int] = []
    for first, count in pieces:
        runs.append(first, count)
        clusters += range(first, first + count)

    def flat(some: Runs) -> list[int]:
        return [n for first, count in some for n in range(first, first + count)]

    assert flat(runs) == clusters and runs.total == len(clusters)
    assert runs.start == (clusters[0] if clusters else 0)
    assert runs.last == (clusters[-1] if clusters else 0)
    for at in range(0, len(clusters), 3):
        piece = runs.within(at, len(clusters) - at)
        assert [n for first, count in piece for n in range(first, first + count)] == clusters[at:]
    gone = runs.cut(keep)
    assert flat(runs) == clusters[:keep] and flat(gone) == clusters[keep:]
