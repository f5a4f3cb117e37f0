"""The images with their devices, and the model of them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path

from loopfs import syscalls
from loopfs.uapi.loop import (
    LO_FLAGS_PARTSCAN,
    LOOP_CLR_FD,
    LOOP_CONFIGURE,
    LOOP_CTL_GET_FREE,
    LoopConfig,
    LoopInfo64,
)
from tests.bytes import images
from tests.bytes.images import BOOT_BLOCK, Layout
from tests.bytes.model import Fault, Image, Range, View
from tests.support.kernel import new_loop_device

# Lengths of transfers in bytes; the supervisor makes the longest through mappings.
LENGTHS = (1, 7, 512, 513, 1024, 4096, 5000, 16384, 70000, 150000)

NONE, MAY, MUST = range(3)  # whether a sync must not, may or must fail with EBUSY


class Node:
    """A device node, with up to two open descriptors, the first of them with a mapping."""

    def __init__(self, disk: Disk, view: View, path: str) -> None:
        self.disk = disk
        self.view = view
        self.path = path
        self.fds: list[int | None] = [None, None]
        self.mapping: mmap.mmap | None = None  # of the first
        self.refusals = [NONE, NONE]  # the result of fsync(2) of each, after refused stores
        self.untold = False  # not reported yet: the kernel reports it to the next opener
        self.had_refusals = False

    @property
    def is_open(self) -> bool:
        return self.view.open

    @property
    def usable(self) -> int:
        """The number of bytes that can be accessed by the mapping."""
        return min(len(self.mapping), self.view.size) if self.mapping else 0

    def any_fd(self, number: int) -> int:
        """Return one of the open descriptors."""
        some = [fd for fd in self.fds if fd is not None]
        return some[number % len(some)]

    def open(self, slot: int) -> None:
        first = not self.is_open
        fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        self.fds[slot] = fd
        self.refusals[slot] = MAY if self.untold else NONE
        self.view.open = True
        if first:
            self.view.dropped()
        if slot == 0:
            self.mapping = mmap.mmap(fd, self.view.size)

    def close(self, slot: int) -> None:
        fd = self.fds[slot]
        assert fd is not None
        self.fds[slot] = None
        if slot == 0 and self.mapping:
            self.mapping.close()
            self.mapping = None
            if self.had_refusals:  # the kernel reports it as EIO (fuse_vma_close)
                self.untold = True
                self.refusals = [max(refusal, MAY) for refusal in self.refusals]
        os.close(fd)
        self.refusals[slot] = NONE
        self.view.open = any(fd is not None for fd in self.fds)

    def close_all(self) -> None:
        for slot, fd in enumerate(self.fds):
            if fd is not None:
                self.close(slot)

    def refuse(self) -> None:
        """Record a dirty page that must not be written."""
        self.untold = self.had_refusals = True
        self.refusals = [NONE if fd is None else MUST for fd in self.fds]

    def told(self, slot: int, answer: int, what: str) -> None:
        """Check the result of fsync(2) or msync(2): EBUSY if a store was refused. Raises Fault."""
        refusal = self.refusals[slot]
        if answer not in (0, errno.EBUSY, errno.EIO) or (answer and not refusal):
            raise Fault(f"{what} of {self.view.name}: {os.strerror(answer)}")
        if not answer and refusal == MUST:
            raise Fault(f"{what} of {self.view.name} does not report a refused store")
        self.refusals[slot] = NONE
        self.untold = self.untold and not answer

    def told_of_one_page(self, answer: int) -> None:
        """As :meth:`told`, for an msync(2) of one page: others may be dirty, not reported yet."""
        self.told(0, answer, "msync")
        self.refusals[0] = MAY
        self.untold = True

    def mapped(self, offset: int, length: int) -> bytes:
        assert self.mapping
        return self.mapping[offset : offset + length]


class Filesystem:
    """The ext4 in an image; ``mounted`` is "ro", "rw" or empty."""

    def __init__(self, image: Image, layout: Layout, place: Path) -> None:
        self.image = image
        self.layout = layout
        self.place = place
        self.mounted = ""
        self.file: View | None = None
        self.fd = -1  # of the file
        self.mapping: mmap.mmap | None = None
        self.small: dict[str, bytes] = {}  # its other files

    def close(self) -> None:
        """Close the file and its mapping."""
        if self.mapping:
            self.mapping.close()
            self.mapping = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @property
    def used(self) -> Range:
        """The range that only the filesystem may write while it is mounted for writing."""
        return Range(self.layout.extent.begin + BOOT_BLOCK, self.layout.extent.end)

    @property
    def path(self) -> str:
        """The filesystem as an argument of e2fsck(8)."""
        return f"{self.image.name}?offset={self.layout.extent.begin}"


class Disk:
    """An image and its nodes."""

    def __init__(self, path: Path, layout: Layout | None, *, table: bool, native: bool) -> None:
        self.native = native
        self.image = Image(path.name, path.read_bytes())
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.nodes: list[Node] = []
        self.filesystem = (
            Filesystem(self.image, layout, path.with_suffix(".mnt")) if layout else None
        )
        self.begin = images.TABLE.end if table else 0

    @property
    def free(self) -> list[Range]:
        """The ranges that may be written while nothing is mounted."""
        end = len(self.image.content)
        if self.filesystem is None:
            return [Range(0, end)]
        used = self.filesystem.used
        return [Range(self.begin, used.begin), self.filesystem.layout.data, Range(used.end, end)]

    @property
    def guarded(self) -> Range:
        """The range that cannot be written while an engine writes; on the kernel's devices, that
        the steps must not write."""
        filesystem = self.filesystem
        writes = ("rw", "ro") if self.native else ("rw",)
        return filesystem.used if filesystem and filesystem.mounted in writes else Range(0, 0)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, length, offset)

    def check(self, around: Range | None = None) -> None:
        """Check that the image, or the surroundings of a part of it, agrees with the model."""
        end = len(self.image.content)
        here = (around or Range(0, end)) & Range(0, end)
        wide = Range(max(here.begin - 600, 0), min(here.end + 600, end))
        self.image.check(wide.begin, self.read(wide.begin, len(wide)))
        if around is None and os.fstat(self.fd).st_size != end:
            raise Fault(f"{self.image.name} has {os.fstat(self.fd).st_size} bytes, not {end}")

    def touching(self, node: Node) -> list[Node]:
        """Return the node itself, and those of its disk or partitions."""
        return [other for other in self.nodes if other.view.extent & node.view.extent]


class World:
    """The images, devices and filesystems of the steps.

    Args:
        native: use the kernel's driver, as root. Here it reads no partition tables, so partitions
            are devices of their own with an offset and a limit.
    """

    def __init__(self, native: bool) -> None:
        self.native = native
        self.clean_up = ExitStack()
        here = Path.cwd()
        parted, plain, raw = (here / f"{name}.img" for name in ("parted", "plain", "raw"))
        self.parted = Disk(parted, images.make_parted(parted), table=True, native=native)
        self.plain = Disk(plain, images.make_plain(plain), table=False, native=native)
        images.make_raw(raw)
        self.raw = Disk(raw, None, table=False, native=native)
        self.disks = [self.parted, self.plain, self.raw]
        self.filesystems = [disk.filesystem for disk in self.disks if disk.filesystem]
        for filesystem in self.filesystems:
            filesystem.place.mkdir()
        for disk in self.disks:
            self._attach(disk)
        self.nodes = [node for disk in self.disks for node in disk.nodes]
        self.raw_limit = 0  # of the raw device, in bytes; none if 0

    def _attach(self, disk: Disk) -> None:
        whole = Range(0, len(disk.image.content))
        parts = {"": whole}
        if disk is self.parted:
            parts |= {"p1": images.FIRST, "p2": images.SECOND}
        path = ""
        if not self.native:
            path = free_device()
            flags = LO_FLAGS_PARTSCAN if disk is self.parted else 0
            bind(path, disk.fd, LoopInfo64(flags=flags))
        for suffix, part in parts.items():
            if self.native:
                path = self.clean_up.enter_context(new_loop_device())
                limit = len(part) if suffix else 0
                bind(path, disk.fd, LoopInfo64(offset=part.begin, sizelimit=limit))
            name = disk.image.name.removesuffix(".img") + suffix
            view = View(disk.image, name, part.begin, len(part), by_blocks=self.native)
            disk.nodes.append(Node(disk, view, path if self.native else path + suffix))

    def mount_node(self, filesystem: Filesystem) -> Node:
        """Return the node of the device with exactly this filesystem."""
        disk = self.disk_of(filesystem)
        return disk.nodes[1] if disk is self.parted else disk.nodes[0]

    def disk_of(self, filesystem: Filesystem) -> Disk:
        return next(disk for disk in self.disks if disk.filesystem is filesystem)

    def spare_device(self) -> AbstractContextManager[str]:
        """Return the path of a device that is not bound."""
        return new_loop_device() if self.native else nullcontext(free_device())

    def release(self) -> None:
        """Unmount and close everything, in any state: outside of a sandbox it is not automatic."""
        for filesystem in self.filesystems:
            with suppress(OSError):
                filesystem.close()
            if filesystem.mounted:
                with suppress(OSError):
                    syscalls.umount2(str(filesystem.place), 0)
        for node in self.nodes:
            with suppress(OSError):
                node.close_all()

    def check_all(self) -> None:
        for disk in self.disks:
            disk.check()


def free_device() -> str:
    """Return the path of an unbound device of the instance."""
    control = os.open("/dev/loopfs/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        return f"/dev/loopfs/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
    finally:
        os.close(control)


def bind(path: str, fd: int, info: LoopInfo64, mode: int = os.O_RDWR) -> None:
    """Bind a device by LOOP_CONFIGURE, and close it."""
    device = os.open(path, mode | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, LOOP_CONFIGURE, LoopConfig(fd, 0, info).pack())
    finally:
        os.close(device)


def detach(path: str) -> None:
    device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, LOOP_CLR_FD)
    finally:
        os.close(device)


# --- ranges of a step ----------------------------------------------------------------


def some_length(number: int) -> int:
    return LENGTHS[number % len(LENGTHS)]


def place_in(
    parts: list[Range], which: int, where: int, length: int, unit: int = 1
) -> Range | None:
    """Choose a part of one of some ranges, often at an end of it.

    Args:
        which, where: random numbers.
        length: wanted; the result may be shorter.
        unit: begin and end are multiples of it.
    """
    fitting = [Range(-(-part.begin // unit) * unit, part.end // unit * unit) for part in parts]
    fitting = [part for part in fitting if len(part)]
    if not fitting:
        return None
    part = fitting[which % len(fitting)]
    length = min(max(length // unit, 1) * unit, len(part))
    last = part.end - length
    choices = (
        part.begin,
        last,
        part.begin + (where >> 2) % ((last - part.begin) // unit + 1) * unit,
    )
    begin = choices[min(where % 4, 2)]
    return Range(begin, begin + length)


def ours(node: Node, parts: list[Range]) -> list[Range]:
    """Return the parts of an image that a node shows, in offsets of the node."""
    shown = [part & node.view.extent for part in parts]
    return [part.moved(-node.view.start) for part in shown if len(part)]


def without(parts: list[Range], gone: Range) -> list[Range]:
    """Return ranges without another one."""
    if not len(gone):
        return parts
    pieces = []
    for part in parts:
        pieces += [
            Range(part.begin, min(part.end, gone.begin)),
            Range(max(part.begin, gone.end), part.end),
        ]
    return [piece for piece in pieces if len(piece)]
