"""The tools of a scenario: devices, images, raw system calls, and a store for results."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeVar

from tests.support.patience import scaled

from . import uapi

T = TypeVar("T")
Record = Callable[[str, object], None]
Scenario = Callable[["Bench"], None]

LOOP_MAJOR = 7
SIZE = 1 << 20  # of an image, in bytes, unless a scenario needs another
PATIENCE = scaled(3.0)  # seconds to wait until other programs close a device
NOWHERE = 8  # an address that no process has mapped

SCENARIOS: dict[str, Scenario] = {}

_kept: list[mmap.mmap] = []  # not freed: the process runs only one scenario
_libc = ctypes.CDLL(None, use_errno=True)


def scenario(function: Scenario) -> Scenario:
    """Register a scenario under the name of the function."""
    assert function.__name__ not in SCENARIOS
    SCENARIOS[function.__name__] = function
    return function


def call(name: str, *args: int | bytes | mmap.mmap) -> int:
    """Call a function of the C library that sets errno; bytes are passed as the address of a copy.

    Raises:
        OSError: it returned -1.
    """
    ctypes.set_errno(0)
    function = getattr(_libc, name)
    function.restype = ctypes.c_long
    result = int(function(*map(_argument, args)))
    # ioctl() and similar functions return an int: only the low half of the register is defined.
    if result & 0xFFFFFFFF == 0xFFFFFFFF and ctypes.get_errno():
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _argument(value: int | bytes | mmap.mmap) -> object:
    if isinstance(value, int):
        return ctypes.c_ulong(value & 0xFFFFFFFFFFFFFFFF)
    if isinstance(value, mmap.mmap):
        return ctypes.byref(ctypes.c_char.from_buffer(value))
    return ctypes.create_string_buffer(value, len(value))


def ioctl(fd: int, cmd: int, arg: int | bytes = 0) -> int:
    return int(ctypes.c_int(call("ioctl", fd, cmd, arg)).value)


def ioctl_out(fd: int, cmd: int, size: int, preset: bytes = b"") -> bytes:
    """Make an ioctl that fills in ``size`` bytes; return eight more if it writes more."""
    buffer = ctypes.create_string_buffer(preset.ljust(size + 8, b"\xa5"), size + 8)
    call("ioctl", fd, cmd, ctypes.addressof(buffer))
    more = buffer.raw[size:] != b"\xa5" * 8
    return buffer.raw if more else buffer.raw[:size]


def number_out(fd: int, cmd: int, size: int) -> int:
    """Return the number of ``size`` bytes that an ioctl stores."""
    return int.from_bytes(ioctl_out(fd, cmd, size), "little")


class Device(NamedTuple):
    """A loop device; ``path`` is its node, not a link to it."""

    number: int
    path: str

    def open(self, flags: int = os.O_RDWR) -> int:
        return os.open(self.path, flags | os.O_CLOEXEC)

    @contextmanager
    def opened(self, flags: int = os.O_RDWR) -> Iterator[int]:
        fd = self.open(flags)
        try:
            yield fd
        finally:
            os.close(fd)


class Bench:
    """The working directory of a scenario, its devices and results.

    Args:
        directory: for its files; empty.
        record: takes the name of a step and its result.
        made: is told the number of each device that is made.
    """

    def __init__(self, directory: str, record: Record, made: Callable[[int], None]) -> None:
        self.directory = directory
        self._record = record
        self._made = made
        self._numbers = itertools.count()
        self.control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)

    # --- results -----------------------------------------------------------------

    def step(self, name: str, action: Callable[..., T]) -> T | None:
        """Record what ``action`` returns, or the name of the errno that it raises."""
        try:
            value = action()
        except OSError as problem:
            self._record(name, errno.errorcode.get(problem.errno or 0, str(problem)))
            return None
        self._record(name, plain(value))
        return value

    def note(self, name: str, value: object) -> None:
        """Record ``value``."""
        self._record(name, plain(value))

    # --- devices and files -------------------------------------------------------

    def device(self, number: int = -1) -> Device:
        """Make a new device."""
        number = ioctl(self.control, uapi.LOOP_CTL_ADD, number)
        self._made(number)
        path = f"/dev/loop{number}"
        if not os.path.exists(path):  # a container without devtmpfs; loopfs always has the node
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(LOOP_MAJOR, number))
        return Device(number, os.path.realpath(path))

    def count(self) -> int:
        """Return a number that it has not returned before."""
        return next(self._numbers)

    def path(self) -> str:
        """Return an unused name in the directory."""
        return os.path.join(self.directory, f"f{self.count()}")

    def image(self, size: int = SIZE, fill: bytes = b"") -> str:
        """Make a new file of ``size`` bytes: repetitions of ``fill``, or a hole."""
        path = self.path()
        with open(path, "wb") as file:
            if fill:
                file.write((fill * (size // len(fill) + 1))[:size])
            file.truncate(size)
        return path

    def bind(self, fd: int, path: str, flags: int = os.O_RDWR) -> None:
        """Bind the file ``path`` by LOOP_SET_FD."""
        backing = os.open(path, flags | os.O_CLOEXEC)
        try:
            ioctl(fd, uapi.LOOP_SET_FD, backing)
        finally:
            os.close(backing)

    @contextmanager
    def bound(
        self, path: str | None = None, openings: int = os.O_RDWR, **fields: int | bytes
    ) -> Iterator[tuple[Device, int]]:
        """Make a new device, bind it by LOOP_CONFIGURE, and return it with a descriptor of it.

        Args:
            path: the image; a new one if None.
            openings: the flags that the device is opened with, in the end.
            fields: of struct loop_info64.
        """
        device = self.device()
        backing = os.open(path or self.image(), os.O_RDWR | os.O_CLOEXEC)
        with device.opened() as first:
            ioctl(first, uapi.LOOP_CONFIGURE, uapi.config(backing, **fields))
            os.close(backing)
            fd = device.open(openings)
        try:
            yield device, fd
        finally:
            os.close(fd)


def remove_all(numbers: list[int]) -> list[int]:
    """Unbind and remove devices, which may be bound to others; return those still in use."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    deadline = time.monotonic() + PATIENCE
    while numbers := [number for number in numbers if not _removed(control, number)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    os.close(control)
    return numbers


def _removed(control: int, number: int) -> bool:
    path = f"/dev/loop{number}"
    # If it is not bound or is being removed, there is nothing to unbind.
    with suppress(OSError), Device(number, path).opened(os.O_RDONLY) as fd:
        ioctl(fd, uapi.LOOP_CLR_FD)
    try:
        ioctl(control, uapi.LOOP_CTL_REMOVE, number)
    except OSError as problem:
        if problem.errno != errno.ENODEV:
            return False
    with suppress(FileNotFoundError):  # devtmpfs has already removed it
        os.unlink(path)
    return True


def at_the_edge(data: bytes, missing: int) -> int:
    """Return an address of ``data`` at which its last ``missing`` bytes are not mapped."""
    pages = mmap.mmap(-1, 8192)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    ctypes.memmove(start + 4096 - len(data) + missing, data, len(data) - missing)
    call("munmap", start + 4096, 4096)
    _kept.append(pages)
    return start + 4096 - len(data) + missing


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def status(fd: int) -> uapi.Info:
    """Make LOOP_GET_STATUS64."""
    return uapi.unpack_info64(ioctl_out(fd, uapi.LOOP_GET_STATUS64, uapi.INFO64_SIZE))


def flags_of(fd: int) -> object:
    return status(fd)["flags"]


def size_of(fd: int) -> int:
    return number_out(fd, uapi.BLKGETSIZE64, 8)


def aligned(size: int, fill: bytes = b"\0") -> mmap.mmap:
    """Return memory that is aligned for O_DIRECT."""
    memory = mmap.mmap(-1, max(size, 1))
    memory.write((fill * size)[:size])
    return memory


def plain(value: object) -> object:
    """Return ``value`` in a form for JSON; bytes become runs, "41*4096 00*512"."""
    if isinstance(value, bytes | bytearray | memoryview):
        runs = itertools.groupby(bytes(value))
        return " ".join(f"{byte:02x}*{len(list(run))}" for byte, run in runs)
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return value
