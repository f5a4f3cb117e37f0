"""The caller of an ioctl, as the driver sees it.

The driver must not block. What it needs from the caller is fetched outside of the driver, by a
thread that can block: if the driver needs something that has not been fetched, it raises
:class:`Missing`; after that has been fetched, the driver is called again. This works because the
handler of an ioctl reads everything before it changes anything.
"""

from __future__ import annotations

from collections.abc import Callable

from loopfs.driver.bdev import PAGE_SIZE
from loopfs.filesystems.backing import BackingFile
from loopfs.process import Process

NUMBER = 8  # bytes of the largest number that an ioctl stores


class Missing(Exception):
    """The driver needs something not yet fetched: call :meth:`fetch`, then the driver again."""

    def __init__(self, fetch: Callable[[], None]) -> None:
        super().__init__()
        self.fetch = fetch


class IoctlCaller:
    """A :class:`~loopfs.driver.world.Caller` that is blocked in ioctl(2).

    Args:
        process: the calling thread.
        word: the size of its unsigned long in bytes.
        userns: the user namespace of the instance (its inode number).
        backing: creates a backing file from a duplicated descriptor.
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
        """Record data to be written by :meth:`store`."""
        self._stores.append((address, data))

    def file(self, fd: int) -> BackingFile:
        if fd not in self._files:
            raise Missing(lambda: self._fetch_file(fd))
        file = self._files.pop(fd)
        if isinstance(file, OSError):
            raise file
        return file

    # --- calls that can block ------------------------------------------------------

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
        """Write the recorded data to the caller's memory. Raises OSError EFAULT."""
        for address, data in self._stores:
            # A number that crosses a page boundary is stored as a whole or not at all (put_user).
            on_page = -address % PAGE_SIZE
            if not on_page < len(data) <= NUMBER:
                on_page = len(data)
            self._process.write(address + on_page, data[on_page:])
            self._process.write(address, data[:on_page])

    def close(self) -> None:
        """Close the files that the driver has not taken over."""
        for file in self._files.values():
            if isinstance(file, BackingFile):
                file.close()
        self._files = {}
