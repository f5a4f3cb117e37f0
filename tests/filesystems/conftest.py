"""An instance over a socket pair: this process is also its caller.

Requests come from the main thread, which waits for their answer, so that its memory and
descriptors are those of the caller of an ioctl.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.driver.minors import Minors
from loopfs.filesystems.backing import facts
from loopfs.filesystems.blkid import read_table
from loopfs.filesystems.instances import Instances, Owner
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.process import Process
from loopfs.uapi import fuse, loop
from loopfs.uapi.loop import LoopConfig, LoopInfo64
from tests.fuse.wire import Kernel, Reply, entries, served

FIRST = 8
SIZE = 192 << 10


class Mounted:
    """An instance that is served, and calls of a program on it.

    Args:
        instances: it and the others; by default there is no other.
        device_number: its st_dev.
    """

    def __init__(self, instances: Instances | None = None, device_number: int = 0xFFFF) -> None:
        self.instances = instances or Instances(
            Minors(FIRST), lambda fd: facts(os.fstat(fd)), read_table
        )
        self._device_number = device_number
        self.told: list[tuple[str, str]] = []
        self.kernel: Kernel
        self.filesystem: LoopFilesystem

    def make(self, fd: int) -> Callable[[], None]:
        owner = Owner.of(Process(os.getpid()))
        told = self.told
        self.filesystem = self.instances.add(
            os.dup(fd),
            self._device_number,
            owner,
            lambda *what: told.append(what),
        )
        return lambda: self.instances.serve(self.filesystem)

    def node(self, name: bytes) -> int:
        """Return the node id of the data face."""
        return self.filesystem.nodes.by_name[name].data

    def open(self, name: bytes, flags: int = os.O_RDWR) -> Reply:
        return self.kernel.ask(fuse.FUSE_OPEN, fuse.OPEN_IN.pack(flags, 0), self.node(name))

    def handle(self, name: bytes, flags: int = os.O_RDWR) -> int:
        reply = self.open(name, flags)
        assert reply.code == 0, os.strerror(reply.code)
        return int(fuse.OPEN_OUT.unpack(reply.data)[0])

    def close(self, handle: int) -> None:
        body = fuse.RELEASE_IN.pack(handle, 0, 0, 0)
        assert self.kernel.ask(fuse.FUSE_RELEASE, body) == Reply(0, b"")

    def ioctl(self, handle: int, cmd: int, arg: int = 0) -> int:
        """Return the result of ioctl(2), or minus an errno. Notifications are skipped."""
        body = fuse.IOCTL_IN.pack(handle, 0, cmd, arg % 2**64, 0, 0)
        unique = self.kernel.send(fuse.FUSE_IOCTL, body)
        while True:
            answered, reply = self.kernel.receive()
            if answered == unique:
                if reply.code:
                    return -reply.code
                return int(fuse.IOCTL_OUT.unpack(reply.data)[0])
            assert answered == 0

    def control(self, cmd: int, arg: int = 0) -> int:
        handle = self.handle(b"loop-control")
        result = self.ioctl(handle, cmd, arg)
        self.close(handle)
        return result

    def read(self, handle: int, offset: int, size: int) -> Reply:
        return self.kernel.ask(fuse.FUSE_READ, fuse.READ_IN.pack(handle, offset, size, 0, 0, 0, 0))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Return the number of bytes written, or minus an errno."""
        body = fuse.WRITE_IN.pack(handle, offset, len(data), 0, 0, 0, 0) + data
        reply = self.kernel.ask(fuse.FUSE_WRITE, body)
        return -reply.code or int(fuse.WRITE_OUT.unpack(reply.data)[0])

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> int:
        body = fuse.FALLOCATE_IN.pack(handle, offset, length, mode, 0)
        return self.kernel.ask(fuse.FUSE_FALLOCATE, body).code


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    mounted = Mounted()
    with served(mounted.make, os.getpid()) as kernel:
        mounted.kernel = kernel
        yield mounted


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


@pytest.fixture
def bound(mounted: Mounted, image: Path) -> int:
    """The handle of loop8, bound to the image from its first sector on."""
    mounted.control(loop.LOOP_CTL_ADD, -1)
    handle = mounted.handle(b"loop8")
    assert configure(mounted, handle, image, LoopInfo64(offset=512)) == 0
    return handle


def configure(mounted: Mounted, handle: int, image: Path, info: LoopInfo64, **how: int) -> int:
    fd = os.open(image, how.get("flags", os.O_RDWR))
    try:
        data = LoopConfig(fd=fd, block_size=how.get("block_size", 0), info=info).pack()
        argument = ctypes.create_string_buffer(data, len(data))
        return mounted.ioctl(handle, loop.LOOP_CONFIGURE, ctypes.addressof(argument))
    finally:
        os.close(fd)


def names(mounted: Mounted) -> list[bytes]:
    reply = mounted.kernel.ask(fuse.FUSE_READDIR, fuse.READ_IN.pack(0, 0, 4096, 0, 0, 0, 0))
    return [entry.name for entry in entries(reply.data)][2:]
