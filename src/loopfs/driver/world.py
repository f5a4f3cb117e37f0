"""The protocols through which the driver sees backing files and the callers of ioctls."""

from __future__ import annotations

from loopfs.lean import NamedTuple, Protocol


class FileIdentity(NamedTuple):
    """What vfs_getattr() returns for a backing file; device numbers are encoded as in st_dev."""

    dev: int
    ino: int
    rdev: int


class Backing(Protocol):
    """A file that a device is bound to. The driver uses only these properties."""

    @property
    def identity(self) -> FileIdentity: ...

    @property
    def supported(self) -> bool:
        """Whether it is a regular file or a block device; the driver accepts no others."""

    @property
    def transfers(self) -> bool:
        """Whether it can be read or written at all. False for a directory."""

    @property
    def writable(self) -> bool:
        """Whether the descriptor was opened for writing."""

    @property
    def direct(self) -> bool:
        """Whether the descriptor was opened with O_DIRECT."""

    @property
    def path(self) -> str:
        """The path of the file, to be displayed."""

    @property
    def loop_device(self) -> object | None:
        """The BlockDevice that this file is a node of; None if it is not one of ours."""

    def size(self) -> int:
        """Return the current size in bytes."""

    def min_dio_size(self) -> int:
        """Return the alignment of direct I/O in bytes; 0 if direct I/O is not possible."""

    def close(self) -> None:
        """Close the file: the driver does not use it any more."""


class Caller(Protocol):
    """The process that calls an ioctl."""

    @property
    def word(self) -> int:
        """The size of the caller's unsigned long in bytes: 8, or 4 for a 32-bit program."""

    @property
    def process(self) -> int:
        """The process id."""

    def capable(self) -> bool:
        """Return whether it has CAP_SYS_ADMIN in the user namespace of the instance (patch 3/8)."""

    def read(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes of its memory. Raises OSError EFAULT."""

    def write(self, address: int, data: bytes) -> None:
        """Write to its memory. Raises OSError EFAULT."""

    def file(self, fd: int) -> Backing:
        """Return the file that its descriptor ``fd`` refers to. Raises OSError EBADF."""
