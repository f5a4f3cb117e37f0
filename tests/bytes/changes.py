"""Steps that change the contents of a device: ioctls and fallocate(2)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path

from loopfs import syscalls
from loopfs.uapi.block import (
    BLKBSZGET,
    BLKBSZSET,
    BLKDISCARD,
    BLKFLSBUF,
    BLKGETSIZE64,
    BLKRRPART,
    BLKZEROOUT,
    RANGE,
)
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from loopfs.uapi.loop import (
    LO_FLAGS_READ_ONLY,
    LOOP_CHANGE_FD,
    LOOP_CLR_FD,
    LOOP_SET_BLOCK_SIZE,
    LOOP_SET_CAPACITY,
    LOOP_SET_STATUS64,
    LoopInfo64,
)
from tests.bytes.images import RAW_SIZE, SECTOR, numbered
from tests.bytes.model import Fault, View, compare
from tests.bytes.steps import Step, action
from tests.bytes.transfers import node_of, refusal, said, span, writable
from tests.bytes.world import Node, World, bind, detach

Zero = Callable[[int, int, int], None]  # a descriptor, offset, length


def _fallocate(mode: int) -> Zero:
    return lambda fd, offset, length: syscalls.fallocate(
        fd, mode | FALLOC_FL_KEEP_SIZE, offset, length
    )


def _ioctl(command: int) -> Zero:
    def call(fd: int, offset: int, length: int) -> None:
        fcntl.ioctl(fd, command, RANGE.pack(offset, length))

    return call


ZEROES: dict[str, Zero] = {
    "BLKZEROOUT": _ioctl(BLKZEROOUT),
    "BLKDISCARD": _ioctl(BLKDISCARD),
    "FALLOC_FL_PUNCH_HOLE": _fallocate(FALLOC_FL_PUNCH_HOLE),
    "FALLOC_FL_ZERO_RANGE": _fallocate(FALLOC_FL_ZERO_RANGE),
}


@action(6)
def zero(world: World, step: Step) -> str | None:
    """Zero a range: when the call returns, zeroes are in the image, also where pages were dirty."""
    a, b, _, _ = step.numbers
    node = node_of(world, a)
    part = writable(world, node, step, SECTOR) if node else None
    if node is None or part is None:
        return None
    if world.native and node.disk.guarded:
        return None  # EBUSY for all of a device that is mounted
    name = list(ZEROES)[(b >> 8) % len(ZEROES)]
    fd = node.any_fd(b)
    answer = refusal(lambda: ZEROES[name](fd, *span(part)))
    if answer == errno.EIO and any(node.refusals) and name.startswith("FALLOC"):
        answer = refusal(lambda: ZEROES[name](fd, *span(part)))  # it had been told of other pages
    if answer:
        raise Fault(f"{said(node, part, name)}: {os.strerror(answer)}")
    node.view.written(part.begin, bytes(len(part)))
    node.disk.check(part.moved(node.view.start))
    return said(node, part, name)


@action(5)
def flush_buffers(world: World, step: Step) -> str | None:
    a, b, _, _ = step.numbers
    node = node_of(world, a)
    if node is None or (world.native and node.disk.guarded):
        return None  # there it is the filesystem's sync, which does nothing for a read-only one
    fcntl.ioctl(node.any_fd(b), BLKFLSBUF)
    _flushed_and_dropped(world, node, "BLKFLSBUF")
    return f"BLKFLSBUF {node.view.name}"


@action(2)
def set_soft_block_size(world: World, step: Step) -> str | None:
    a, b, c, _ = step.numbers
    if (node := node_of(world, a)) is None:
        return None
    fd = node.any_fd(b)
    now = struct.unpack("Q", fcntl.ioctl(fd, BLKBSZGET, bytes(8)))[0] & 0xFFFFFFFF
    size = 512 << c % 4
    if size == now:
        return None
    answer = refusal(lambda: fcntl.ioctl(fd, BLKBSZSET, struct.pack("Q", size)))
    filesystem = node.disk.filesystem
    if answer == errno.EBUSY and filesystem and filesystem.mounted:
        return f"BLKBSZSET {node.view.name} {size}: EBUSY"
    if answer:
        raise Fault(f"BLKBSZSET {size} of {node.view.name}: {os.strerror(answer)}")
    _flushed_and_dropped(world, node, "BLKBSZSET")
    return f"BLKBSZSET {node.view.name} {size}"


def _flushed_and_dropped(world: World, node: Node, why: str) -> None:
    node.view.flushed(node.disk.read, why)
    if not world.native or node.mapping is None:  # the kernel does not drop mapped pages
        node.view.dropped()
        found = os.pread(node.any_fd(0), min(node.view.size, 8192), 0)
        node.view.check(0, found, f"read after {why}")


@action(1)
def read_table(world: World, step: Step) -> str | None:
    """BLKRRPART: EBUSY while a partition is open, or mounted."""
    disk = world.parted
    node = disk.nodes[0]
    if world.native or not node.is_open:
        return None
    busy = any(part.is_open for part in disk.nodes[1:])
    busy = busy or bool(disk.filesystem and disk.filesystem.mounted)
    answer = refusal(lambda: fcntl.ioctl(node.any_fd(step.numbers[0]), BLKRRPART))
    if answer != (errno.EBUSY if busy else 0):
        raise Fault(f"BLKRRPART: {os.strerror(answer)}, {'busy' if busy else 'not busy'}")
    if not busy:
        node.view.flushed(disk.read, "BLKRRPART")
    return f"BLKRRPART {'busy' if busy else ''}"


# --- the device without a filesystem ---------------------------------------------------


@action(3)
def set_status(world: World, step: Step) -> str | None:
    """Set another offset and limit: dirty data is written to its old location before."""
    _, b, c, d = step.numbers
    node = world.raw.nodes[0]
    if not node.is_open or (world.native and node.mapping):
        return None
    offset = b % 300 * SECTOR
    limit = (c % 1024 + 1024) * SECTOR if d % 2 else 0
    info = LoopInfo64(offset=offset, sizelimit=limit)
    fcntl.ioctl(node.any_fd(d >> 1), LOOP_SET_STATUS64, info.pack())
    node.view.flushed(world.raw.read, "LOOP_SET_STATUS64")
    world.raw_limit = limit
    node.view.moved(offset, _raw_size(world, offset))
    _check_size(node)
    return f"LOOP_SET_STATUS64 {offset} {limit}"


@action(3)
def set_capacity(world: World, step: Step) -> str | None:
    """Grow the image, or shrink it if no node is open."""
    _, b, c, _ = step.numbers
    disk = world.raw
    node, image = disk.nodes[0], disk.image
    now = len(image.content)
    size = now + (b % 40 + 1) * SECTOR
    if not node.is_open or size > RAW_SIZE << 1:
        if node.is_open:
            return None
        size = RAW_SIZE - c % 64 * SECTOR
    fd = node.any_fd(b) if node.is_open else os.open(node.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if world.native:
            os.fsync(fd)  # there the call leaves pages as they are
        os.ftruncate(disk.fd, size)
        image.resized(size)
        fcntl.ioctl(fd, LOOP_SET_CAPACITY)
    finally:
        if not node.is_open:
            os.close(fd)
    node.view.flushed(disk.read, "LOOP_SET_CAPACITY")
    node.view.size = _raw_size(world, node.view.start)
    if node.is_open:
        _check_size(node)
    return f"LOOP_SET_CAPACITY, {size} bytes"


@action(1)
def set_block_size(world: World, step: Step) -> str | None:
    """Set blocks of 4 KiB and reset it: meanwhile the device's last block is incomplete."""
    node = world.raw.nodes[0]
    if not node.is_open or (world.native and node.mapping):
        return None
    fd = node.any_fd(step.numbers[0])
    fcntl.ioctl(fd, LOOP_SET_BLOCK_SIZE, 4096)
    node.view.flushed(world.raw.read, "LOOP_SET_BLOCK_SIZE")
    fcntl.ioctl(fd, LOOP_SET_BLOCK_SIZE, 512)
    node.view.dropped()
    return "LOOP_SET_BLOCK_SIZE"


@action(2)
def clear_fd(world: World, step: Step) -> str | None:
    """Detach: with one opener the device has no data from then on. Then bind it again."""
    disk = world.raw
    node = disk.nodes[0]
    if not node.is_open:
        return None
    fd = node.any_fd(step.numbers[0])
    if world.native:
        os.fsync(fd)  # there it is lost with LOOP_CLR_FD
    fcntl.ioctl(fd, LOOP_CLR_FD)
    node.view.flushed(disk.read, "LOOP_CLR_FD")
    node.close_all()
    bind(node.path, disk.fd, LoopInfo64())
    world.raw_limit = 0
    node.view.moved(0, _raw_size(world, 0))
    return "LOOP_CLR_FD"


@action(1)
def change_fd(world: World, step: Step) -> str | None:
    """Change the file of a read-only device: the first file is no longer visible."""
    _, _, c, _ = step.numbers
    image = world.raw.image
    size = len(image.content)
    other = Path("other.img")
    content = numbered(0, size, step.turn + 1000)
    other.write_bytes(content)
    with world.spare_device() as path, open("raw.img", "rb") as one, other.open("rb") as two:
        bind(path, one.fileno(), LoopInfo64(flags=LO_FLAGS_READ_ONLY), os.O_RDONLY)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            view = View(image, "the read-only device", 0, size)
            view.check(0, os.pread(fd, size, 0))
            mapping = None if world.native else mmap.mmap(fd, size, prot=mmap.PROT_READ)
            if mapping:
                view.check(0, mapping[:], "load")
            fcntl.ioctl(fd, LOOP_CHANGE_FD, two.fileno())
            at = c % (size - 5000)
            compare("read after LOOP_CHANGE_FD", at, os.pread(fd, 5000, at), content[at:][:5000])
            if mapping:
                compare("load after LOOP_CHANGE_FD", 0, mapping[:], content)
                mapping.close()
        finally:
            image.views.remove(view)
            os.close(fd)
            detach(path)
    return "LOOP_CHANGE_FD"


def _raw_size(world: World, offset: int) -> int:
    size = (len(world.raw.image.content) - offset) // SECTOR * SECTOR
    return min(size, world.raw_limit) if world.raw_limit else size


def _check_size(node: Node) -> None:
    size = struct.unpack("Q", fcntl.ioctl(node.any_fd(0), BLKGETSIZE64, bytes(8)))[0]
    if size != node.view.size:
        raise Fault(f"BLKGETSIZE64 is {size}, not {node.view.size}")
