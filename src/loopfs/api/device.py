"""Devices and mounts of a sandbox, for Python programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

Operate = Callable[..., Any]  # the name of an operation of loopfs.api.inside, and its arguments


class Status(NamedTuple):
    """The state of a device, as losetup --list shows it. Sizes are in bytes; ``sizelimit`` 0: no
    limit."""

    backing_file: str
    offset: int
    sizelimit: int
    size: int
    sector_size: int
    read_only: bool
    autoclear: bool
    partscan: bool
    direct_io: bool


class Device:
    """A loop device of a sandbox; as a context manager, it is detached at the end.

    Args:
        operate: carries out an operation inside the sandbox.
        number: N of /dev/loopN.
    """

    def __init__(self, operate: Operate, number: int) -> None:
        self._operate = operate
        self.number = number

    @property
    def path(self) -> str:
        """/dev/loopN, which exists only inside the sandbox."""
        return f"/dev/loop{self.number}"

    @property
    def partitions(self) -> tuple[str, ...]:
        """The paths of its current partitions. Raises LoopfsError."""
        return tuple(self._operate("partitions", number=self.number))

    def status(self) -> Status:
        """Return its backing file and settings. Raises LoopfsError: ENXIO: it is not bound."""
        return Status(**self._operate("status", number=self.number))

    def set_capacity(self) -> None:
        """Update its size to that of the image (losetup -c).

        Raises:
            LoopfsError: ENXIO: it is not bound.
        """
        self._operate("set_capacity", number=self.number)

    def detach(self) -> None:
        """Detach it; if it is open, at its last close (losetup -d).

        Raises:
            LoopfsError: ENXIO: it is not bound.
        """
        self._operate("detach", number=self.number)

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"<loopfs.Device {self.path}>"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.detach()


class Mount:
    """A mounted filesystem; as a context manager, it is unmounted at the end.

    Args:
        operate: carries out an operation inside the sandbox.
        source: the device or image.
        target: the directory, inside the sandbox.
        fstype: the filesystem's type.
        temporary: the directory was made for this mount, and is removed with it.
    """

    def __init__(
        self, operate: Operate, source: str, target: str, fstype: str, *, temporary: bool
    ) -> None:
        self._operate = operate
        self._temporary = temporary
        self.source = source
        self.target = target
        self.fstype = fstype

    def umount(self, *, lazy: bool = False) -> None:
        """Unmount the filesystem. On return the image is complete, unless ``lazy`` (umount -l).

        Raises:
            LoopfsError: EBUSY: it is in use; EINVAL: it is not mounted.
        """
        self._operate("umount", target=self.target, lazy=lazy, remove=self._temporary)

    def __fspath__(self) -> str:
        return self.target

    def __repr__(self) -> str:
        return f"<loopfs.Mount {self.source} on {self.target} type {self.fstype}>"

    def __enter__(self) -> Mount:
        return self

    def __exit__(self, *_: object) -> None:
        self.umount()
