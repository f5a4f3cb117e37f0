"""The caller of an ioctl, as the driver asks for it.

The driver waits for nobody. What it wants of the caller is fetched by a thread that may wait,
outside of the driver: it is called, what it has not got is :class:`Missing`, and when that has
been fetched it is called again. A handler of an ioctl reads before it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable

from loopfs.driver.bdev import PAGE_SIZE
from loopfs.filesystems.backing import BackingFile
from loopfs.process import Process

NUMBER = 8  # bytes in the largest that an ioctl stores


class Missing(Exception):
    """The driver wants what has not been fetched yet: call :meth:`fetch`, then the driver again."""

    def __init__(self, fetch: Callable[[], None]) -> None:
        super().__init__()
        self.fetch = fetch


class IoctlCaller:
    """A :class:`~loopfs.driver.world.Caller` that waits in ioctl(2).

    Args:
        process: the calling thread.
        word: bytes in its unsigned long.
        userns: the instance's user namespace (its inode number).
        backing: makes a backing file of a duplicated descriptor.
    """

    def __init__(
        self, process: Process, word: int, userns: int, backing: Callable[[int], BackingFile]
    ) -> None:
        self.word = word
        self._process = process
        self._userns = userns
        self._backing = backing
        self._memory: dict[tuple[int, int], bytes | OSError] = {}
        self._files: dict[int, BackingFile | OSError] = {}
        self._stores: list[tuple[int, bytes]] = []

    @property
    def process(self) -> int:
        return self._process.tgid

    def capable(self) -> bool:
        return self._process.namespace("user") == self._userns and self._process.has_capability()

    def read(self, address: int, size: int) -> bytes:
        if (address, size) not in self._memory:
            raise Missing(lambda: self._fetch_memory(address, size))
        data = self._memory[address, size]
        if isinstance(data, OSError):
            raise data
        return data

    def write(self, address: int, data: bytes) -> None:
        """Remember what :meth:`store` will store."""
        self._stores.append((address, data))

    def file(self, fd: int) -> BackingFile:
        if fd not in self._files:
            raise Missing(lambda: self._fetch_file(fd))
        file = self._files.pop(fd)
        if isinstance(file, OSError):
            raise file
        return file

    # --- what may wait -------------------------------------------------------------

    def _fetch_memory(self, address: int, size: int) -> None:
        try:
            self._memory[address, size] = self._process.read(address, size)
        except OSError as problem:
            self._memory[address, size] = problem

    def _fetch_file(self, fd: int) -> None:
        try:
            self._files[fd] = self._backing(self._process.descriptor(fd))
        except OSError as problem:
            self._files[fd] = problem

    def store(self) -> None:
        """Store what the driver has written. Raises OSError EFAULT."""
        for address, data in self._stores:
            # A number that reaches over a page's end is stored whole or not, as by put_user().
            on_page = -address % PAGE_SIZE
            if not on_page < len(data) <= NUMBER:
                on_page = len(data)
            self._process.write(address + on_page, data[on_page:])
            self._process.write(address, data[:on_page])

    def close(self) -> None:
        """Let go of files that the driver has not taken."""
        for file in self._files.values():
            if isinstance(file, BackingFile):
                file.close()
        self._files = {}
