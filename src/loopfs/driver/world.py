"""What the driver asks of the world: backing files and the callers of ioctls."""

from __future__ import annotations

from loopfs.lean import NamedTuple, Protocol


class FileIdentity(NamedTuple):
    """What vfs_getattr says of a backing file, device numbers as st_dev has them."""

    dev: int
    ino: int
    rdev: int


class Backing(Protocol):
    """A file that a device is bound to; opaque to the driver but for these facts."""

    @property
    def identity(self) -> FileIdentity: ...

    @property
    def supported(self) -> bool:
        """A regular file or a block device; the driver takes no others."""

    @property
    def transfers(self) -> bool:
        """It can be read or written at all: anything but a directory."""

    @property
    def writable(self) -> bool:
        """The descriptor was opened for writing."""

    @property
    def direct(self) -> bool:
        """The descriptor was opened with O_DIRECT."""

    @property
    def path(self) -> str:
        """Where it is, for people."""

    @property
    def loop_device(self) -> object | None:
        """The BlockDevice this file is a node of, if it is one of ours."""

    def size(self) -> int:
        """Bytes in the file now."""

    def min_dio_size(self) -> int:
        """Bytes that offsets and lengths of direct I/O are multiples of; 0: there is none."""

    def close(self) -> None:
        """The driver holds the file no longer."""


class Caller(Protocol):
    """The process that calls an ioctl."""

    @property
    def word(self) -> int:
        """Bytes in its unsigned long: 8, or 4 for a 32-bit caller."""

    @property
    def process(self) -> int:
        """Its process id."""

    def capable(self) -> bool:
        """It has CAP_SYS_ADMIN in the instance's user namespace (patch 3/8)."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes of its memory. Raises OSError EFAULT."""

    def write(self, address: int, data: bytes) -> None:
        """Store into its memory. Raises OSError EFAULT."""

    def file(self, fd: int) -> Backing:
        """The file behind its descriptor. Raises OSError EBADF."""
