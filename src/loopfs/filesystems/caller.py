"""The caller of an ioctl, as the driver asks for it."""

from __future__ import annotations

from collections.abc import Callable

from loopfs.driver.bdev import PAGE_SIZE
from loopfs.driver.world import Backing
from loopfs.process import Process

NUMBER = 8  # bytes in the largest that an ioctl stores


class IoctlCaller:
    """A :class:`~loopfs.driver.world.Caller` that waits in ioctl(2).

    Args:
        process: the calling thread.
        word: bytes in its unsigned long.
        userns: the instance's user namespace (its inode number).
        backing: makes a backing file of a duplicated descriptor.
    """

    def __init__(
        self, process: Process, word: int, userns: int, backing: Callable[[int], Backing]
    ) -> None:
        self.word = word
        self._process = process
        self._userns = userns
        self._backing = backing

    def capable(self) -> bool:
        return self._process.namespace("user") == self._userns and self._process.has_capability()

    def read(self, address: int, size: int) -> bytes:
        return self._process.read(address, size)

    def write(self, address: int, data: bytes) -> None:
        # A number that reaches over the end of a page is stored whole or not, as by put_user().
        on_page = -address % PAGE_SIZE
        if on_page < len(data) <= NUMBER:
            self._process.write(address + on_page, data[on_page:])
            data = data[:on_page]
        self._process.write(address, data)

    def file(self, fd: int) -> Backing:
        return self._backing(self._process.descriptor(fd))
