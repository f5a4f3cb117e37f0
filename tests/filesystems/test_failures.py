"""A failure during one call leaves the instance consistent."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import NoReturn

import pytest

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.minors import Minors
from loopfs.driver.partition import Found
from loopfs.filesystems import loopfs
from loopfs.filesystems.backing import facts
from loopfs.filesystems.engine_device import EngineDevice
from loopfs.filesystems.image_lock import ImageLock
from loopfs.filesystems.instances import Instances
from loopfs.filesystems.threads import Pool
from loopfs.fuse.connection import Connection
from loopfs.uapi import fuse, loop
from loopfs.uapi.loop import LO_FLAGS_PARTSCAN, LoopInfo64
from tests.filesystems.conftest import Mounted, configure, names
from tests.fuse.wire import served

PARTITIONS = [Found(number, number << 14, 1 << 14, "") for number in (1, 2, 3)]
PARTS = [b"loop8p1", b"loop8p2", b"loop8p3"]


@pytest.fixture
def with_table() -> Instances:
    """Instances all of whose images have three partitions."""
    return Instances(Minors(8), lambda fd: facts(os.fstat(fd)), lambda *_: PARTITIONS)


def scanned(mounted: Mounted, handle: int, image: Path) -> int:
    return configure(mounted, handle, image, LoopInfo64(flags=LO_FLAGS_PARTSCAN))


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO, errno.EAGAIN])
def test_links_that_cannot_be_changed_are_no_matter(
    with_table: Instances, image: Path, code: int
) -> None:
    mounted = Mounted(with_table)

    def refuse(action: str, name: str) -> NoReturn:
        raise OSError(code, os.strerror(code))

    with served(mounted.make, os.getpid()) as mounted.kernel:
        mounted.filesystem.on_device = refuse
        assert mounted.control(loop.LOOP_CTL_GET_FREE) == 8
        handle = mounted.handle(b"loop8")
        assert scanned(mounted, handle, image) == 0
        assert names(mounted)[1:] == [b"loop8", *PARTS]
        assert mounted.ioctl(handle, loop.LOOP_CLR_FD) == 0
        mounted.close(handle)
        assert names(mounted)[1:] == [b"loop8"]
        assert mounted.control(loop.LOOP_CTL_REMOVE, 8) == 0
        assert names(mounted)[1:] == []


def test_events_after_one_that_failed_are_carried_out(with_table: Instances, image: Path) -> None:
    """Its errno is that call's answer; nodes and driver agree, so the next calls work."""
    mounted = Mounted(with_table)
    forgotten: list[str] = []

    def refuse(device: BlockDevice) -> NoReturn:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with_table.on_removal[:] = [refuse, lambda device: forgotten.append(device.name)]
    with served(mounted.make, os.getpid()) as mounted.kernel:
        mounted.control(loop.LOOP_CTL_ADD, 8)
        handle = mounted.handle(b"loop8")
        for _ in range(2):
            forgotten.clear()
            assert scanned(mounted, handle, image) == 0
            assert names(mounted)[1:] == [b"loop8", *PARTS]
            mounted.ioctl(handle, loop.LOOP_CLR_FD)
            mounted.close(handle)
            assert names(mounted)[1:] == [b"loop8"]
            assert sorted(forgotten) == [os.fsdecode(name) for name in PARTS]
            handle = mounted.handle(b"loop8")
        mounted.close(handle)
        assert mounted.control(loop.LOOP_CTL_REMOVE, 8) == -errno.ENOMEM
        assert names(mounted)[1:] == []
        assert mounted.control(loop.LOOP_CTL_ADD, 8) == 8
        with_table.on_removal.clear()


def test_an_open_that_fails_leaves_no_opener(mounted: Mounted, bound: int) -> None:
    device = mounted.filesystem.nodes.by_name[b"loop8"].device
    assert device is not None
    before = len(device.openers)

    def fail() -> NoReturn:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mounted.filesystem, "_tell_names", fail)
        assert mounted.open(b"loop8").code == errno.ENOMEM
    assert len(device.openers) == before


# --- no room for a thread ---------------------------------------------------------------


def _cannot(_: threading.Thread) -> NoReturn:
    raise RuntimeError("can't start new thread")


@pytest.fixture(autouse=True)
def no_thread_waits_for_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loopfs, "spawn", Pool().spawn)


def test_an_ioctl_without_a_thread(mounted: Mounted, image: Path) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot)
        assert configure(mounted, handle, image, LoopInfo64()) == -errno.EAGAIN
        other = mounted.handle(b"loop8")
        mounted.close(other)
    assert configure(mounted, handle, image, LoopInfo64()) == 0


def test_an_fsync_without_a_thread(mounted: Mounted, bound: int) -> None:
    body = fuse.FSYNC_IN.pack(bound, 0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loopfs, "spawn", Pool().spawn)
        patch.setattr(threading.Thread, "start", _cannot)
        assert mounted.kernel.ask(fuse.FUSE_FSYNC, body).code == errno.EAGAIN
    assert mounted.kernel.ask(fuse.FUSE_FSYNC, body).code == 0


def test_an_instance_without_a_thread_is_none() -> None:
    mounted = Mounted()
    reader, writer = os.pipe()
    mounted.make(writer)
    os.close(writer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot)
        with pytest.raises(BlockingIOError):
            mounted.instances.serve_in_thread(mounted.filesystem)
    assert mounted.instances.device_numbers() == ()
    assert mounted.filesystem.gone.is_set()
    assert os.read(reader, 1) == b"", "its connection is closed"
    os.close(reader)


def test_an_engines_device_without_a_thread_is_none(mounted: Mounted, bound: int) -> None:
    reader, writer = os.pipe()
    node = mounted.filesystem.nodes.by_name[b"loop8"]
    assert node.device is not None
    lock = ImageLock.take(node.device, 0, node.device.capacity, write=False)
    device = EngineDevice(mounted.filesystem, node, None, lock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", _cannot)
        with pytest.raises(BlockingIOError):
            device.serve_in_thread(Connection(writer))
    assert os.read(reader, 1) == b"", "its connection is closed"
    os.close(reader)
