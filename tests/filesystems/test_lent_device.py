"""A device whose file is lent to an engine: this process is also the engine."""

from __future__ import annotations

import errno
import gc
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from loopfs.channel import Channel
from loopfs.driver.bdev import BlockDevice
from loopfs.engines.lent import Lent
from loopfs.filesystems import blockdev, faces, lending, lent_device
from loopfs.filesystems.faces import HOLD, LOOK, OPEN
from loopfs.filesystems.image_lock import ImageLock
from loopfs.filesystems.lent_device import LentDevice, may_be_lent, open_lent
from loopfs.uapi import loop
from loopfs.uapi.loop import LoopInfo64
from tests.filesystems.conftest import SIZE, Mounted, configure
from tests.support.parts import wait_until

ENDED = threading.Event()  # by the engine's thread, instead of the process
SECTOR = 512  # where the device begins in the image
CONNECTION = b"what the engine serves"


class Both(NamedTuple):
    """The supervisor's end, and the engine's."""

    device: LentDevice
    lent: Lent


def device_of(mounted: Mounted, name: bytes = b"loop8") -> BlockDevice:
    node = mounted.filesystem.nodes.by_name[name]
    assert node.device is not None
    return node.device


def lend(mounted: Mounted, *, read_only: bool = False) -> Both:
    device = device_of(mounted)
    opener = open_lent(mounted.filesystem, device, read_only=read_only)
    use = None if read_only else device.mounted(0, device.capacity)
    lock = ImageLock.take(device, 0, device.capacity, write=not read_only)
    node = mounted.filesystem.nodes.by_name[b"loop8"]
    loan = LentDevice(mounted.filesystem, node, use, lock, opener).lend_in_thread()
    lent = Lent(os.dup(loan.file), Channel.of_descriptor(loan.end), loan.offset, loan.size)
    return Both(loan.device, lent)


def end(both: Both) -> None:
    """As the engine's process does."""
    both.lent._channel._socket.shutdown(2)
    assert both.device.gone.wait(10)
    assert not both.lent._followed or ENDED.wait(10)  # whose end would be ours
    both.lent._channel.close()
    os.close(both.lent.window[0])


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def dropped(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Node ids whose pages were dropped; the supervisor's end, which is no end of this process."""
    nodes: list[int] = []
    session = mounted.filesystem.session
    monkeypatch.setattr(session, "invalidate", lambda node, *part: nodes.append(node))
    monkeypatch.setattr(session, "grow", lambda node, size: None)
    ENDED.clear()
    monkeypatch.setattr(os, "_exit", lambda status: ENDED.set())
    return nodes


@pytest.fixture
def connection() -> Iterator[int]:
    fd = os.memfd_create("connection")
    os.write(fd, CONNECTION)
    yield fd
    os.close(fd)


@pytest.fixture
def both(mounted: Mounted, bound: int) -> Iterator[Both]:
    made = lend(mounted)
    yield made
    end(made)


def test_it_reads_and_writes_the_image_itself(both: Both, image: Path, bound: int) -> None:
    assert both.lent.size == SIZE - SECTOR
    assert both.lent.read(1000, 100) == image.read_bytes()[SECTOR + 1000 : SECTOR + 1100]
    both.lent.write(4096, b"new", bytes(5))
    assert image.read_bytes()[SECTOR + 4096 : SECTOR + 4104] == b"new" + bytes(5)
    for offset in (both.lent.size - 1, both.lent.size):
        with pytest.raises(OSError, match="Input/output error"):
            both.lent.write(offset, b"ab")
    assert image.stat().st_size == SIZE


def test_the_nodes_write_nothing_of_it_meanwhile(
    mounted: Mounted, bound: int, both: Both, image: Path
) -> None:
    before = image.read_bytes()
    assert mounted.write(bound, 8192, b"x" * SECTOR) == -errno.EBUSY
    assert mounted.open(b"loop8", os.O_RDWR).code == 0
    assert image.read_bytes() == before
    with pytest.raises(OSError, match="busy"):
        open_lent(mounted.filesystem, device_of(mounted), read_only=True)


def test_when_the_engine_has_ended_all_is_as_before(
    mounted: Mounted, bound: int, dropped: list[int]
) -> None:
    device = device_of(mounted)
    both = lend(mounted)
    assert (device.claimed, len(device.disk.uses)) == (True, 1)
    dropped.clear()
    end(both)
    assert dropped == [mounted.node(b"loop8")]
    assert (device.claimed, len(device.disk.uses)) == (False, 0)
    assert mounted.write(bound, 8192, b"x" * SECTOR) == SECTOR
    assert both.device.connection() is None
    ImageLock.take(device, 0, device.capacity, write=True).release()


def test_a_device_without_other_openers_is_cleared_with_the_engine(
    mounted: Mounted, bound: int
) -> None:
    both = lend(mounted)
    assert mounted.ioctl(bound, loop.LOOP_CLR_FD) == 0
    mounted.close(bound)
    assert device_of(mounted).disk.backing is not None
    end(both)
    assert device_of(mounted).disk.backing is None


def test_its_connection_is_handed_over(both: Both, connection: int) -> None:
    both.lent.follow_in_thread(connection)
    fd = both.device.connection()
    assert fd is not None
    assert os.pread(fd, 100, 0) == CONNECTION
    os.close(fd)


def test_an_engine_that_says_anything_is_asked_all_the_same(
    both: Both, connection: int, mounted: Mounted
) -> None:
    before = descriptors()
    channel = both.lent._channel
    lending.say(channel, lending.ANSWER, fds=(connection,))  # to no question
    for words in ((), (lending.DONE,), (lending.DONE, 1, 2), (lending.DONE, *[-1] * 12), (99, 1)):
        lending.say(channel, 1000, *words)
        if words:
            lending.say(channel, *words)
    channel.send(b"odd")
    counted = device_of(mounted).statistics.show()
    both.lent.follow_in_thread(connection)
    fd = both.device.connection()
    assert fd is not None
    os.close(fd)
    assert device_of(mounted).statistics.show() == counted
    wait_until(lambda: descriptors() == before, "no descriptor more is open")


def test_an_opener_of_the_device_reads_what_was_synced(
    both: Both, connection: int, mounted: Mounted, dropped: list[int]
) -> None:
    both.lent.follow_in_thread(connection)
    dropped.clear()
    both.lent.sync()
    assert dropped == [mounted.node(b"loop8")]


def test_a_sync_that_has_failed_fails_for_ever(
    both: Both, connection: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.lent.follow_in_thread(connection)
    both.lent.sync()

    def full(device: BlockDevice, datasync: bool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(blockdev, "sync", full)
        with pytest.raises(OSError, match="No space"):
            both.lent.sync()
    with pytest.raises(OSError, match="No space"):
        both.lent.sync()
    assert both.device.error == errno.ENOSPC


def test_it_is_free_when_the_engine_has_closed_it(mounted: Mounted, bound: int) -> None:
    """Though the process still runs, and a thread of it waits for what is said."""
    made = lend(mounted)
    made.lent.follow_in_thread(-1)
    made.lent.done()
    made.lent.close()
    assert made.device.gone.wait(10)
    assert ENDED.wait(10)
    made.lent._channel.close()
    end(lend(mounted))  # once more


def test_its_transfers_are_counted_when_it_syncs_and_ends(
    both: Both, connection: int, mounted: Mounted
) -> None:
    def counted() -> list[int]:
        return list(map(int, device_of(mounted).statistics.show().split()))

    both.lent.follow_in_thread(connection)
    begun = counted()
    both.lent.read(0, 1024)
    both.lent.write(4096, bytes(SECTOR))
    both.lent.sync()
    now = counted()
    fields = (0, 2, 4, 6, 15)  # reads, their sectors; writes, theirs; flushes
    assert [now[field] - begun[field] for field in fields] == [1, 2, 1, 1, 1]
    both.lent.discard(4096, 4096)
    both.lent.done()
    wait_until(lambda: counted()[11] == begun[11] + 1, "the discard is counted")


def test_it_continues_with_the_file_of_the_device(
    mounted: Mounted, image: Path, tmp_path: Path, connection: int
) -> None:
    """LOOP_CHANGE_FD."""
    mounted.control(loop.LOOP_CTL_ADD, -1)
    handle = mounted.handle(b"loop8")
    assert configure(mounted, handle, image, LoopInfo64(offset=SECTOR), flags=os.O_RDONLY) == 0
    both = lend(mounted, read_only=True)
    both.lent.follow_in_thread(connection)
    other = tmp_path / "other.img"
    other.write_bytes(os.urandom(SIZE))
    with other.open("rb") as file:
        assert mounted.ioctl(handle, loop.LOOP_CHANGE_FD, file.fileno()) == 0
    assert both.lent.read(0, 4096) == other.read_bytes()[SECTOR : SECTOR + 4096]
    with pytest.raises(OSError, match="Bad file descriptor"):
        both.lent.write(0, b"x")
    end(both)


def test_a_device_that_a_process_makes(both: Both, connection: int) -> None:
    both.lent.follow_in_thread(connection)
    with both.device.made_by(7, stat.S_IFCHR, 0x103):
        assert both.lent.making == {7: (stat.S_IFCHR, 0x103)}
    assert both.lent.making == {}


def test_what_a_lookup_is_for(both: Both, connection: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was looked up for a mount has its data face until nothing is mounted any more."""
    assert both.lent.purpose(os.getpid(), 12) == LOOK, "before it is followed"
    both.lent.follow_in_thread(connection)
    both.device.superblock = os.makedev(0, 77)
    found = {"mounts": False, "purpose": OPEN, "left": False, "covered": True}
    monkeypatch.setattr(faces, "mounts", lambda process: found["mounts"])
    monkeypatch.setattr(faces, "purpose", lambda process: found["purpose"])
    monkeypatch.setattr(lent_device, "has_left", lambda mounter: found["left"])
    monkeypatch.setattr(lent_device, "is_covered", lambda number, paths: found["covered"])

    def purpose(**changed: int) -> int:
        found.update(changed)
        return both.lent.purpose(os.getpid(), 12)

    assert purpose() == OPEN
    assert both.device.characters == {12}
    assert purpose(purpose=LOOK) == LOOK
    assert purpose(mounts=True) == HOLD
    assert purpose(mounts=False) == HOLD, "it may not have mounted it yet"
    assert purpose(left=True) == HOLD
    assert purpose(covered=False) == LOOK


def test_the_lookup_of_a_thread_that_is_gone(both: Both, connection: int) -> None:
    both.lent.follow_in_thread(connection)
    assert both.lent.purpose(1 << 40, 12) == LOOK
    assert both.device.characters == set()


def test_an_engine_may_name_any_inode(
    both: Both, connection: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    both.lent.follow_in_thread(connection)
    monkeypatch.setattr(faces, "purpose", lambda process: OPEN)
    for ino in range(5000):
        both.lent.purpose(os.getpid(), ino)
    assert 0 < len(both.device.characters) <= 4096


def test_what_cannot_be_lent(mounted: Mounted, bound: int) -> None:
    """A device that is bound to nothing, or to another device of ours."""
    assert may_be_lent(device_of(mounted))
    mounted.control(loop.LOOP_CTL_ADD, -1)
    assert not may_be_lent(device_of(mounted, b"loop9"))


def test_a_write_protected_device_is_lent_for_reading_only(mounted: Mounted, image: Path) -> None:
    mounted.control(loop.LOOP_CTL_ADD, -1)
    handle = mounted.handle(b"loop8")
    assert configure(mounted, handle, image, LoopInfo64(), flags=os.O_RDONLY) == 0
    device = device_of(mounted)
    with pytest.raises(PermissionError):
        open_lent(mounted.filesystem, device, read_only=False)
    assert not device.claimed
    opener = open_lent(mounted.filesystem, device, read_only=True)
    mounted.filesystem.drive(lambda: device.disk.release(opener))


def test_without_a_thread_it_is_not_lent(
    mounted: Mounted, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(lent_device, "spawn", cannot)
        device = device_of(mounted)
        opener = open_lent(mounted.filesystem, device, read_only=True)
        lock = ImageLock.take(device, 0, device.capacity, write=False)
        node = mounted.filesystem.nodes.by_name[b"loop8"]
        with pytest.raises(BlockingIOError):
            LentDevice(mounted.filesystem, node, None, lock, opener).lend_in_thread()
        lock.release()
        mounted.filesystem.drive(lambda: device.disk.release(opener))
    wait_until(lambda: descriptors() == before, "no descriptor more is open")
