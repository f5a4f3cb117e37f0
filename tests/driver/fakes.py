"""Replacements for backing files and for callers of ioctls, in memory."""

from __future__ import annotations

import errno
import os
from itertools import count

from loopfs.driver.bdev import Opener
from loopfs.driver.instance import Instance
from loopfs.driver.ioctl import ioctl
from loopfs.driver.loop import LoopDevice, State
from loopfs.driver.minors import Minors
from loopfs.driver.ucounts import MAX_DEVICES
from loopfs.driver.world import Backing, FileIdentity
from loopfs.uapi.loop import LoopConfig, LoopInfo64

MIB = 1 << 20
_inodes = count(1000)


class FakeBacking:
    """A file of ``length`` bytes that counts how often it is closed."""

    def __init__(
        self,
        length: int = MIB,
        *,
        writable: bool = True,
        supported: bool = True,
        direct: bool = False,
        transfers: bool = True,
        dio: int = 512,
        node_of: LoopDevice | None = None,
    ) -> None:
        self.identity = FileIdentity(0x802, next(_inodes), 0)
        self.supported = supported
        self.transfers = transfers
        self.writable = writable
        self.dio = dio
        self.direct = direct
        self.loop_device: object | None = node_of
        self.path = "/images/disk.img"
        self.length = length
        self.closed = 0

    def size(self) -> int:
        assert not self.closed, "a file that the driver has let go of"
        if isinstance(self.loop_device, LoopDevice):
            return self.loop_device.capacity
        return self.length

    def min_dio_size(self) -> int:
        return self.dio

    def close(self) -> None:
        self.closed += 1


class FakeCaller:
    """A process with some memory at ``BASE`` and some files."""

    BASE = 0x7F0000000000

    def __init__(
        self, *, word: int = 8, capable: bool = True, memory: int = 4096, process: int = 1
    ) -> None:
        self.word = word
        self.is_capable = capable
        self.process = process
        self.memory = bytearray(memory)
        self.files: dict[int, Backing] = {}

    def capable(self) -> bool:
        return self.is_capable

    def _span(self, address: int, size: int) -> slice:
        start = address - self.BASE
        if start < 0 or start + size > len(self.memory):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return slice(start, start + size)

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.memory[self._span(address, size)])

    def write(self, address: int, data: bytes) -> None:
        self.memory[self._span(address, len(data))] = data

    def file(self, fd: int) -> Backing:
        if fd not in self.files:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self.files[fd]

    # --- calls of a program ----------------------------------------------------

    def put(self, data: bytes, offset: int = 0) -> int:
        """Store ``data`` in the memory of the process; return the address."""
        self.memory[offset : offset + len(data)] = data
        return self.BASE + offset

    def open_file(self, backing: Backing, fd: int = 3) -> int:
        self.files[fd] = backing
        return fd

    def call(
        self, device: LoopDevice, opener: Opener, cmd: int, arg: int | bytes = BASE
    ) -> bytes | int:
        """ioctl(2) with a number, or with a pointer to a structure."""
        if isinstance(arg, bytes):
            arg = self.put(arg)
        return ioctl(device, opener, self, cmd, arg)


def new_instance(minors: Minors | None = None, *, most: int = MAX_DEVICES) -> Instance:
    return Instance(Minors() if minors is None else minors, most)


def new_device(instance: Instance | None = None) -> LoopDevice:
    instance = instance or new_instance()
    return instance.devices[instance.ctl_add(-1)]


def bind(
    device: LoopDevice,
    backing: FakeBacking | None = None,
    *,
    opener: Opener | None = None,
    block_size: int = 0,
    offset: int = 0,
    sizelimit: int = 0,
    flags: int = 0,
    file_name: bytes = b"",
) -> tuple[Opener, FakeBacking]:
    """Bind ``device`` by LOOP_CONFIGURE, opening it for writing if necessary."""
    backing = backing or FakeBacking()
    opener = opener or device.open(write=True)
    info = LoopInfo64(offset=offset, sizelimit=sizelimit, flags=flags, file_name=file_name)
    device.configure(opener, backing, LoopConfig(block_size=block_size, info=info))
    return opener, backing


def state_of(device: LoopDevice) -> State:
    """Return the current state; a type checker would assume an attribute unchanged since an
    assert."""
    return device.state


def closings(*backings: FakeBacking) -> list[int]:
    """Return how often each file was closed."""
    return [backing.closed for backing in backings]
