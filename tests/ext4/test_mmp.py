"""Multiple mount protection: a second mount, and a mount after a crash."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.ext4.crc import crc32c
from loopfs.ext4.device import Device
from loopfs.ext4.mmp import MultipleMountProtection
from loopfs.ext4.super import Super
from loopfs.file_device import FileDevice
from loopfs.fuse.tree import Caller
from tests.ext4.conftest import Mounted
from tests.ext4.images import fsck

Image = Callable[[str], Path]
Protect = Callable[[Callable[[float], None]], MultipleMountProtection]


@pytest.fixture(params=["-b 1024 -O mmp", "-b 4096 -O mmp,^metadata_csum"])
def path(image: Image, request: pytest.FixtureRequest) -> Path:
    return image(request.param)


@pytest.fixture
def protect(path: Path) -> Iterator[Protect]:
    fd = os.open(path, os.O_RDWR)
    device = Device(FileDevice(fd))
    yield lambda wait: MultipleMountProtection(device, Super(device), wait)
    os.close(fd)


def never(seconds: float) -> None:
    raise AssertionError("it waits")


def test_one_after_the_other(protect: Protect, path: Path) -> None:
    for _ in range(2):
        one = protect(never)
        one.begin()
        one.update()
        one.end()
    assert (found := fsck(path)) == "", found


def test_two_at_once(protect: Protect) -> None:
    first = protect(never)
    first.begin()
    second = protect(lambda seconds: first.update())
    with pytest.raises(OSError, match=f"mounted by {os.uname().nodename}") as caught:
        second.begin()
    assert caught.value.errno == errno.EBUSY
    first.update()
    first.end()


def test_after_a_crash(protect: Protect) -> None:
    """The kernel's waiting times; and who has lost it, without knowing, finds out."""
    waits: list[float] = []
    first = protect(never)
    first.begin()
    second = protect(waits.append)
    second.begin()
    assert waits == [21, 21]
    with pytest.raises(OSError, match="mounted by"):
        first.update()
    first.end()
    second.update()
    second.end()


def test_while_e2fsck_is_at_work(protect: Protect, path: Path) -> None:
    with path.open("r+b") as file:
        sb = Super(Device(FileDevice(file.fileno())))
        file.seek(sb.u32(360) * sb.block_size)
        block = bytearray(file.read(1024))
        block[4:8] = struct.pack("<I", 0xE24D4D50)
        if sb.csum:
            block[1020:] = struct.pack("<I", crc32c(sb.seed, block[:1020]))
        file.seek(-1024, os.SEEK_CUR)
        file.write(block)
    with pytest.raises(OSError, match="e2fsck is at work"):
        protect(never).begin()


def test_another_takes_it(path: Path, mounted: Mounted) -> None:
    """Reading only needs no protection; what was mounted first writes nothing any more."""
    tree = mounted(path)
    assert mounted(path, read_only=True).volume.protection is None
    other = mounted(path)  # as if the first one slept
    assert tree.volume.protection is not None
    tree.volume.protection.interval = 0
    tree.start()
    while not tree.volume.error:
        os.sched_yield()
    assert tree.volume.error == errno.EBUSY
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        tree.mkdir(Caller(0, 0, 1), tree.root(), b"d", 0o755)
    tree.destroy()
    other.start()
    other.destroy()
    mounted(path).destroy()
    assert (found := fsck(path)) == "", found
