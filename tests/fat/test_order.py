"""Killed at any moment: fsck.fat -a repairs the image, and fsync'ed files are complete.

What is on the device then is what had been written: the first N of the recorded writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.fat.calls import Calls
from tests.fat.images import Memory, made, mounted, on_disk, tool

KEPT = {"/kept.txt": b"fsync'ed" * 1000, "/dir/kept too, with a long name": b"and this" * 300}


def prepared(geometry: str) -> tuple[Memory, Calls]:
    """A volume with files that were fsync'ed, and a log of what is written from now on."""
    device = Memory(made(geometry))
    calls = Calls(mounted(device))
    calls.mkdir("/dir")
    for path, data in KEPT.items():
        calls.write(path, data)
    file = calls.open("/kept.txt")
    file.sync()
    file.close()
    device.log = []
    return device, calls


def after_a_kill(
    before: bytes, log: list[tuple[int, bytes]], count: int, *, torn: int = 0
) -> bytearray:
    """The image with the first ``count`` writes, and ``torn`` bytes of the next one."""
    image = bytearray(before)
    for offset, data in log[:count]:
        image[offset : offset + len(data)] = data
    if torn:
        offset, data = log[count]
        image[offset : offset + len(data[:torn])] = data[:torn]
    return image


def check(image: bytearray, extra: Callable[[Calls], object] = lambda calls: None) -> None:
    """It can be repaired, is clean then, and has what was fsync'ed."""
    with on_disk(image) as path:
        done = tool("fsck.fat", "-a", path)
        assert done.returncode in (0, 1), done.stdout
        done = tool("fsck.fat", "-n", path)
        assert done.returncode == 0, done.stdout
        calls = Calls(mounted(Memory(bytearray(path.read_bytes()))))
        for kept, data in KEPT.items():
            assert calls.read(kept) == data
        extra(calls)


def busy(calls: Calls, chance: random.Random, steps: int) -> None:
    """Calls that change much, but not what was fsync'ed."""
    for n in range(steps):
        name = f"/dir/file number {chance.randrange(12)}"
        others = [f"/dir/{other}" for other in calls.list("/dir") if "kept" not in other]
        what = chance.random()
        if what < 0.4 or not others:
            calls.write(name, chance.randbytes(chance.choice([0, 100, 3000, 9000])))
        elif what < 0.6:
            calls.unlink(chance.choice(others))
        elif what < 0.8:
            calls.rename(chance.choice(others), name)
        elif what < 0.9:
            calls.truncate(chance.choice(others), chance.randrange(9000))
        else:
            calls.mkdir(f"/directory {n}")


@pytest.mark.parametrize("geometry", ["FAT12 floppy", "FAT16 one FAT", "FAT32"])
def test_a_kill_at_any_write(geometry: str) -> None:
    device, calls = prepared(geometry)
    before, chance = bytes(device.data), random.Random(geometry)
    busy(calls, chance, 60)
    log = device.log
    assert log is not None and len(log) > 150
    for count in sorted(chance.sample(range(len(log)), 25)):
        # A write is cut between two pages at the most: so are the copies in the page cache.
        torn = 4096 if len(log[count][1]) > 4096 and count % 2 else 0
        check(after_a_kill(before, log, count, torn=torn))


def test_a_rename_leaves_one_of_the_names_at_any_moment() -> None:
    device, calls = prepared("FAT32")
    before = bytes(device.data)
    calls.rename("/kept.txt", "/dir/kept.new")
    log = device.log
    assert log is not None
    moved = KEPT["/kept.txt"]
    for count in range(len(log) + 1):
        with on_disk(after_a_kill(before, log, count)) as path:
            tool("fsck.fat", "-a", path)
            calls = Calls(mounted(Memory(bytearray(path.read_bytes()))))
            found = []
            for name in ("/kept.txt", "/dir/kept.new"):
                try:
                    found.append(calls.read(name))
                except FileNotFoundError:
                    continue
            assert moved in found


def test_a_rename_in_one_page_is_one_write() -> None:
    """So that a program that replaces a file has the old or the new one."""
    device, calls = prepared("FAT32")
    calls.write("/kept.new", b"new")
    device.log = []
    calls.rename("/kept.new", "/kept.txt")
    written = [entry for entry in device.log if b"KEPT" in entry[1]]
    assert len(written) == 1


def test_the_dirty_bit_and_fsinfo() -> None:
    device = Memory(made("FAT32"))
    fresh = bytes(device.data)
    tree = mounted(device)
    assert device.data == fresh, "mounting changes nothing"
    calls = Calls(tree)
    calls.write("/file", bytes(5000))
    assert device.data[65] == 1
    file = calls.open("/file")
    file.sync()
    file.close()
    assert device.synced == 1
    free = tree.statfs().free
    assert int.from_bytes(device.data[512 + 488 : 512 + 492], "little") == free
    tree.destroy()
    assert device.data[65] == 0


def test_what_was_dirty_before_stays_dirty() -> None:
    device = Memory(made("FAT32"))
    device.data[65] = 1
    calls = Calls(mounted(device))
    calls.write("/file", b"")
    calls.tree.destroy()
    assert device.data[65] == 1


def test_reading_only_writes_nothing() -> None:
    device, calls = prepared("FAT16")
    calls.tree.destroy()
    before = bytes(device.data)
    calls = Calls(mounted(device, read_only=True))
    assert calls.read("/kept.txt") == KEPT["/kept.txt"]
    with pytest.raises(OSError, match="Read-only"):
        calls.write("/new", b"")
    calls.tree.destroy()
    assert device.data == before
