"""Errors of syncs: reported once per open file of a device, and always by an engine's mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from loopfs.filesystems.engine_device import EngineDevice
from loopfs.filesystems.image_lock import ImageLock
from loopfs.fuse.session import Session
from loopfs.uapi import fuse
from tests.filesystems.conftest import Mounted
from tests.fuse.wire import Kernel, served

Fail = Callable[[int], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Have the next sync of the image fail; the kernel tells our one description only once."""
    real = os.fsync
    left: list[int] = []

    def fsync(fd: int) -> None:
        real(fd)
        if left:
            raise OSError(left.pop(), "told once")

    monkeypatch.setattr(os, "fsync", fsync)
    return left.append


def sync(mounted: Mounted, handle: int) -> int:
    """The errno, or 0. Notifications are passed over."""
    unique = mounted.kernel.send(fuse.FUSE_FSYNC, fuse.FSYNC_IN.pack(handle, 0, 0))
    while True:
        answered, reply = mounted.kernel.receive()
        if answered == unique:
            return reply.code
        assert answered == 0


def test_each_open_file_gets_the_error_once(mounted: Mounted, bound: int, failing: Fail) -> None:
    reader = mounted.handle(b"loop8", os.O_RDONLY)
    assert sync(mounted, bound) == 0
    failing(errno.ENOSPC)
    assert [sync(mounted, bound), sync(mounted, bound)] == [errno.ENOSPC, 0]
    later = mounted.handle(b"loop8")
    assert [sync(mounted, reader), sync(mounted, reader)] == [errno.ENOSPC, 0]
    assert sync(mounted, later) == 0
    failing(errno.EDQUOT)  # which no disk says
    assert [sync(mounted, each) for each in (later, bound, reader)] == [errno.EIO] * 3
    assert [sync(mounted, each) for each in (later, bound, reader)] == [0] * 3


def engine_device(
    mounted: Mounted, made: list[EngineDevice]
) -> Callable[[int], Callable[[], None]]:
    def make(fd: int) -> Callable[[], None]:
        node = mounted.filesystem.nodes.by_name[b"loop8"]
        assert node.device is not None
        use = node.device.mounted(0, node.device.capacity)
        lock = ImageLock.take(node.device, 0, node.device.capacity, write=True)
        made.append(EngineDevice(mounted.filesystem, node, use, lock))
        return Session(os.dup(fd), made[0], writeback=True).serve

    return make


class Engine:
    """What an engine's device is asked."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        reply = kernel.ask(fuse.FUSE_OPEN, fuse.OPEN_IN.pack(os.O_RDWR, 0), 2)
        self.handle, self.open_flags, _ = fuse.OPEN_OUT.unpack(reply.data)

    def write(self, data: bytes) -> int:
        body = fuse.WRITE_IN.pack(self.handle, 0, len(data), 0, 0, 0, 0) + data
        return self._kernel.ask(fuse.FUSE_WRITE, body, 2).code

    def sync(self) -> int:
        return self._kernel.ask(fuse.FUSE_FSYNC, fuse.FSYNC_IN.pack(self.handle, 0, 0), 2).code


@pytest.mark.parametrize("slow", [False, True], ids=["fast", "slow"])
def test_a_write_that_failed_fails_every_sync(
    mounted: Mounted, bound: int, monkeypatch: pytest.MonkeyPatch, slow: bool
) -> None:
    made: list[EngineDevice] = []
    with served(engine_device(mounted, made), os.getpid()) as kernel:
        engine = Engine(kernel)
        backing = made[0]._device.disk.window.backing  # type: ignore[union-attr]
        monkeypatch.setattr(backing, "slow", slow)
        assert (engine.write(bytes(4096)), engine.sync(), made[0].error) == (0, 0, 0)
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", refuse(errno.ENOSPC))
            assert engine.write(bytes(4096)) == errno.ENOSPC
        assert engine.write(bytes(4096)) == 0
        assert [engine.sync() for _ in range(3)] == [errno.ENOSPC] * 3
        assert made[0].error == errno.ENOSPC
        assert sync(mounted, bound) == 0  # whoever writes the device itself is not concerned


def test_a_sync_that_failed_fails_every_sync(mounted: Mounted, bound: int, failing: Fail) -> None:
    made: list[EngineDevice] = []
    with served(engine_device(mounted, made), os.getpid()) as kernel:
        engine = Engine(kernel)
        failing(errno.EIO)
        assert [engine.sync() for _ in range(2)] == [errno.EIO] * 2
        assert made[0].error == errno.EIO


def test_an_engines_pages_are_kept_when_its_device_is_opened_again(
    mounted: Mounted, bound: int
) -> None:
    """Who opens it to sync it must not drop its pages, with the errors that go with them."""
    with served(engine_device(mounted, []), os.getpid()) as kernel:
        assert [Engine(kernel).open_flags & fuse.FOPEN_KEEP_CACHE for _ in range(2)] == [
            fuse.FOPEN_KEEP_CACHE
        ] * 2
        reply = mounted.open(b"loop8", os.O_RDONLY)
        assert not fuse.OPEN_OUT.unpack(reply.data)[1] & fuse.FOPEN_KEEP_CACHE


def refuse(code: int) -> Callable[..., int]:
    def call(*arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return call
