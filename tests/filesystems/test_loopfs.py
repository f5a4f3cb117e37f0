"""An instance as a filesystem: nodes, opening, data, ioctls."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.filesystems import faces
from loopfs.process import Process
from loopfs.uapi import block, fuse, loop
from loopfs.uapi.falloc import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from loopfs.uapi.fuse import encode_dev
from loopfs.uapi.loop import LO_FLAGS_AUTOCLEAR, LO_FLAGS_PARTSCAN, LoopConfig, LoopInfo64
from loopfs.uapi.syscalls import abis
from tests.filesystems.conftest import FIRST, SIZE, Mounted, configure, names
from tests.fuse.wire import PATIENCE, Reply, entries, served

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


# --- nodes ---------------------------------------------------------------------------------


def test_devices_come_and_go(mounted: Mounted) -> None:
    assert names(mounted) == [b"loop-control"]
    assert mounted.control(loop.LOOP_CTL_GET_FREE) == FIRST
    assert mounted.control(loop.LOOP_CTL_ADD, 300) == 300
    assert names(mounted) == [b"loop-control", b"loop8", b"loop300"]
    assert mounted.control(loop.LOOP_CTL_REMOVE, 8) == 0
    assert names(mounted) == [b"loop-control", b"loop300"]
    assert mounted.told == [("add", "loop8"), ("add", "loop300"), ("remove", "loop8")]


@pytest.mark.parametrize(
    ("cmd", "arg", "code"),
    [
        (loop.LOOP_CTL_ADD, 2**20, errno.EINVAL),
        (loop.LOOP_CTL_REMOVE, 5, errno.ENODEV),
        (loop.LOOP_CTL_REMOVE, -1, errno.EINVAL),
        (loop.LOOP_CTL_REMOVE, 2**32 - 1, errno.EINVAL),  # an int, as in the kernel
        (loop.LOOP_SET_FD, 0, errno.ENOSYS),
    ],
)
def test_control_ioctls_that_are_refused(mounted: Mounted, cmd: int, arg: int, code: int) -> None:
    assert mounted.control(cmd, arg) == -code
    assert mounted.told == []


def test_a_lookup_that_is_no_open_finds_the_special_face(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 9)
    reply = mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop9\0")
    nodeid = fuse.ENTRY_OUT.unpack_from(reply.data)[0]
    attr = fuse.ATTR.unpack_from(reply.data, fuse.ENTRY_OUT.size)
    assert nodeid == mounted.filesystem.nodes.by_name[b"loop9"].special
    assert (attr[0], attr[9], attr[13]) == (12, stat.S_IFBLK | 0o600, encode_dev(7, 9))
    assert mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop8\0").code == errno.ENOENT
    assert mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop9\0", nodeid).code == errno.ENOENT


def test_a_caller_whose_memory_never_comes_waits_alone(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """openat2(2): O_EXCL is in memory; so is O_PATH, for which no lookup may wait."""
    mounted.control(loop.LOOP_CTL_ADD, 9)
    reading, comes = threading.Event(), threading.Event()
    number = abis()[0].numbers["openat2"]

    def read(process: Process, address: int, size: int) -> bytes:
        reading.set()
        assert comes.wait(PATIENCE)
        return struct.pack("=Q", os.O_RDWR | os.O_EXCL)

    with monkeypatch.context() as patch:
        patch.setattr(Process, "current_syscall", lambda process: (number, [0] * 6))
        patch.setattr(Process, "read", read)
        reply = mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop9\0")
        assert fuse.ENTRY_OUT.unpack_from(reply.data)[0] == mounted.node(b"loop9")
        body = fuse.OPEN_IN.pack(os.O_RDWR, 0)
        waits = mounted.kernel.send(fuse.FUSE_OPEN, body, mounted.node(b"loop9"))
        assert reading.wait(PATIENCE)
        patch.setattr(Process, "current_syscall", lambda process: None)
        other = mounted.handle(b"loop9")
        mounted.close(other)
        comes.set()
        answered, reply = mounted.kernel.receive()
    assert (answered, reply.code) == (waits, 0)
    device = mounted.filesystem.nodes.by_name[b"loop9"].device
    assert device is not None
    assert device.held, "O_EXCL was seen"
    mounted.close(fuse.OPEN_OUT.unpack(reply.data)[0])


def test_a_path_descriptor_is_in_use_until_it_is_forgotten(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not mounted.instances.in_use()
    nodeid = mounted.node(b"loop-control")
    with monkeypatch.context() as patch:
        patch.setattr(faces, "purpose", lambda process: faces.OPEN)
        mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop-control\0")
        assert not mounted.instances.in_use()
        patch.setattr(faces, "purpose", lambda process: faces.HOLD)
        mounted.kernel.ask(fuse.FUSE_LOOKUP, b"loop-control\0")
    assert mounted.instances.in_use()
    for _ in range(2):
        assert mounted.instances.in_use()
        mounted.kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(1), nodeid)
        mounted.kernel.ask(fuse.FUSE_GETATTR, bytes(16))
    assert not mounted.instances.in_use()


def test_a_directory_that_changes_while_it_is_read(mounted: Mounted) -> None:
    """Nothing that stays is missed or seen twice."""
    for number in range(10, 40):
        mounted.control(loop.LOOP_CTL_ADD, number)
    seen: list[bytes] = []
    offset = 0
    while True:
        body = fuse.READ_IN.pack(0, offset, 200, 0, 0, 0, 0)
        found = entries(mounted.kernel.ask(fuse.FUSE_READDIR, body).data)
        if not found:
            break
        seen += [entry.name for entry in found]
        offset = found[-1].offset
        for number in (10, 11, 25, 26):  # when they are gone, for nothing
            mounted.control(loop.LOOP_CTL_REMOVE, number)
    assert seen[3:] == [b"loop%d" % n for n in range(10, 40) if n not in (25, 26)]


def test_a_device_that_is_gone_cannot_be_opened(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    node = mounted.node(b"loop8")
    mounted.control(loop.LOOP_CTL_REMOVE, 8)
    body = fuse.OPEN_IN.pack(os.O_RDWR, 0)
    assert mounted.kernel.ask(fuse.FUSE_OPEN, body, node) == Reply(errno.ENXIO, b"")


def test_the_control_node_has_no_data(mounted: Mounted) -> None:
    handle = mounted.handle(b"loop-control")
    assert mounted.read(handle, 0, 512).code == errno.EINVAL
    assert mounted.write(handle, 0, b"x") == -errno.EINVAL
    mounted.close(handle)


# --- data --------------------------------------------------------------------------------


def test_reads_and_writes_land_in_the_image(mounted: Mounted, bound: int, image: Path) -> None:
    before = image.read_bytes()
    assert mounted.read(bound, 0, 4096) == Reply(0, before[512 : 512 + 4096])
    assert mounted.write(bound, 1000, b"written") == 7
    expected = before[:1512] + b"written" + before[1519:]
    assert image.read_bytes() == expected
    assert mounted.read(bound, 1000, 7) == Reply(0, b"written")


def test_a_large_read(mounted: Mounted, bound: int, image: Path) -> None:
    before = image.read_bytes()
    size = 128 << 10
    assert mounted.read(bound, 4096, size) == Reply(0, before[4608 : 4608 + size])
    assert mounted.write(bound, 8192, b"in between") == 10
    again = mounted.read(bound, 4096, size)
    assert again == Reply(0, image.read_bytes()[4608 : 4608 + size])
    assert again.data[4096:4106] == b"in between"
    assert len(mounted.read(bound, SIZE - 70000, 70000).data) == 70000 - 512


def test_the_end_of_the_device(mounted: Mounted, bound: int, image: Path) -> None:
    end = SIZE - 512
    before = image.read_bytes()
    assert mounted.read(bound, end - 10, 4096) == Reply(0, before[-10:])
    assert mounted.read(bound, end, 4096) == Reply(0, b"")
    assert mounted.read(bound, 2**62, 4096) == Reply(0, b"")
    assert mounted.write(bound, end - 2, b"1234") == 2
    assert mounted.write(bound, end, b"1234") == -errno.ENOSPC
    assert image.read_bytes() == before[:-2] + b"12"


def test_an_unbound_device_is_empty(mounted: Mounted) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    assert mounted.read(handle, 0, 512) == Reply(0, b"")
    assert mounted.write(handle, 0, bytes(512)) == -errno.ENOSPC
    mounted.close(handle)


def test_an_image_that_shrinks_gives_errors_and_no_stale_data(
    mounted: Mounted, bound: int, image: Path
) -> None:
    os.truncate(image, 4096)
    assert mounted.read(bound, 0, 512).code == 0
    assert mounted.read(bound, 8192, 512).code == errno.EIO
    assert mounted.read(bound, 0, 512).code == 0


def test_sync_reaches_the_image(mounted: Mounted, bound: int) -> None:
    for flags in (0, 1):
        body = fuse.FSYNC_IN.pack(bound, flags, 0)
        assert mounted.kernel.ask(fuse.FUSE_FSYNC, body) == Reply(0, b"")


@pytest.mark.parametrize("mode", [PUNCH, FALLOC_FL_ZERO_RANGE])
def test_fallocate_makes_zeroes(mounted: Mounted, bound: int, image: Path, mode: int) -> None:
    before = image.read_bytes()
    assert mounted.fallocate(bound, mode, 4096, 8192) == 0
    assert image.read_bytes() == before[:4608] + bytes(8192) + before[4608 + 8192 :]


@pytest.mark.parametrize(
    ("mode", "offset", "length", "code"),
    [
        (0, 0, 512, errno.EOPNOTSUPP),
        (FALLOC_FL_KEEP_SIZE, 0, 512, errno.EOPNOTSUPP),
        (FALLOC_FL_PUNCH_HOLE, 0, 512, errno.EOPNOTSUPP),
        (FALLOC_FL_ZERO_RANGE, 1, 512, errno.EINVAL),
        (PUNCH, 0, 100, errno.EINVAL),
        (PUNCH, SIZE, 512, errno.EINVAL),
        (FALLOC_FL_ZERO_RANGE, 0, SIZE, errno.EINVAL),
    ],
)
def test_fallocate_refused(
    mounted: Mounted, bound: int, image: Path, mode: int, offset: int, length: int, code: int
) -> None:
    before = image.read_bytes()
    assert mounted.fallocate(bound, mode, offset, length) == code
    assert image.read_bytes() == before


@pytest.mark.parametrize("cmd", [block.BLKZEROOUT, block.BLKDISCARD])
def test_zeroes_by_ioctl(mounted: Mounted, bound: int, image: Path, cmd: int) -> None:
    before = image.read_bytes()
    argument = ctypes.create_string_buffer(block.RANGE.pack(4096, 8192), 16)
    assert mounted.ioctl(bound, cmd, ctypes.addressof(argument)) == 0
    assert image.read_bytes() == before[:4608] + bytes(8192) + before[4608 + 8192 :]


def test_what_changes_a_device_changes_the_times_of_its_node(
    mounted: Mounted, bound: int, image: Path
) -> None:
    node = mounted.filesystem.nodes.by_name[b"loop8"]
    argument = ctypes.create_string_buffer(block.RANGE.pack(4096, 8192), 16)
    other = os.open(image, os.O_RDWR)

    def unbind() -> int:
        nonlocal bound
        result = mounted.ioctl(bound, loop.LOOP_CLR_FD)
        mounted.close(bound)
        bound = mounted.handle(b"loop8")
        return result

    changes: dict[str, Callable[[], int]] = {
        "write": lambda: mounted.write(bound, 0, b"1234") - 4,
        "fallocate": lambda: mounted.fallocate(bound, PUNCH, 0, 512),
        "discard": lambda: mounted.ioctl(bound, block.BLKDISCARD, ctypes.addressof(argument)),
        "unbind": unbind,
        "bind": lambda: mounted.ioctl(bound, loop.LOOP_SET_FD, other),
    }
    for what, change in changes.items():
        before = node.times
        assert mounted.read(bound, 0, 512).code in (0, errno.EIO)
        assert node.times == before
        assert change() == 0, what
        atime, mtime, ctime = node.times
        assert (atime, mtime > before[1], ctime > before[2]) == (before[0], True, True), what
    os.close(other)


# --- binding -------------------------------------------------------------------------------


def test_status_is_written_into_the_callers_memory(
    mounted: Mounted, bound: int, image: Path
) -> None:
    buffer = ctypes.create_string_buffer(loop.LOOP_INFO64_SIZE)
    assert mounted.ioctl(bound, loop.LOOP_GET_STATUS64, ctypes.addressof(buffer)) == 0
    info = LoopInfo64.unpack(buffer.raw)
    st = image.stat()
    assert (info.device, info.inode, info.number, info.offset) == (st.st_dev, st.st_ino, 8, 512)
    assert mounted.ioctl(bound, loop.LOOP_GET_STATUS64, 8) == -errno.EFAULT


def test_the_callers_descriptor_may_be_closed_afterwards(
    mounted: Mounted, bound: int, image: Path
) -> None:
    image.unlink()
    assert mounted.read(bound, 0, 512).code == 0


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda path: os.open(path.parent, os.O_RDONLY), errno.EINVAL),
        (lambda path: os.pipe2(os.O_CLOEXEC)[0], errno.EINVAL),
        (lambda path: os.open("/dev/null", os.O_RDWR), errno.EINVAL),
        (lambda path: os.open(path, os.O_PATH), errno.EBADF),
        (lambda path: 9999, errno.EBADF),
        (lambda path: -1, errno.EBADF),
    ],
    ids=["directory", "pipe", "character device", "O_PATH", "closed", "negative"],
)
def test_files_that_are_refused(
    mounted: Mounted, image: Path, make: Callable[[Path], int], code: int
) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    fd = make(image)
    try:
        assert mounted.ioctl(handle, loop.LOOP_SET_FD, fd) == -code
    finally:
        if 0 <= fd < 9999:
            os.close(fd)
    assert mounted.read(handle, 0, 512) == Reply(0, b"")
    mounted.close(handle)


def test_a_read_only_image_makes_a_read_only_device(mounted: Mounted, image: Path) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    assert configure(mounted, handle, image, LoopInfo64(), flags=os.O_RDONLY) == 0
    writer = mounted.handle(b"loop8")
    assert mounted.write(writer, 0, bytes(512)) == -errno.EPERM
    mounted.close(writer)
    assert mounted.open(b"loop8", os.O_RDONLY).code == 0


def test_a_file_opened_for_appending_is_written_where_it_should_be(
    mounted: Mounted, image: Path
) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    flags = os.O_RDWR | os.O_APPEND
    assert configure(mounted, handle, image, LoopInfo64(), flags=flags) == 0
    assert mounted.write(handle, 0, b"first") == 5
    assert image.read_bytes()[:5] == b"first"
    assert image.stat().st_size == SIZE


def test_the_last_close_frees_the_image(mounted: Mounted, image: Path) -> None:
    mounted.control(loop.LOOP_CTL_ADD, 8)
    handle = mounted.handle(b"loop8")
    info = LoopInfo64(flags=LO_FLAGS_AUTOCLEAR)
    assert configure(mounted, handle, image, info) == 0
    assert holders(image) == 1
    mounted.close(handle)
    assert holders(image) == 0
    assert mounted.control(loop.LOOP_CTL_GET_FREE) == 8


def test_the_end_of_the_mount_frees_everything(image: Path) -> None:
    mounted = Mounted()
    with served(mounted.make, os.getpid()) as mounted.kernel:
        mounted.control(loop.LOOP_CTL_ADD, 8)
        configure(mounted, mounted.handle(b"loop8"), image, LoopInfo64())
        assert holders(image) == 1
    assert mounted.told[-1] == ("remove", "loop8")
    assert holders(image) == 0


def holders(image: Path) -> int:
    """How many of our descriptors are of the image."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}") == str(image)
        except FileNotFoundError:
            continue  # the directory's own
    return found


# --- what a program may set ------------------------------------------------------------------


def setattr_body(valid: int, mode: int = 0, size: int = 0) -> bytes:
    return fuse.SETATTR_IN.pack(valid, 0, 0, size, *[0] * 7, mode, 0, 0, 0, 0)


def test_permissions_are_kept(mounted: Mounted) -> None:
    special = mounted.filesystem.nodes.by_name[b"loop-control"].special
    reply = mounted.kernel.ask(fuse.FUSE_SETATTR, setattr_body(fuse.FATTR_MODE, 0o20640), special)
    assert fuse.ATTR.unpack_from(reply.data, fuse.ATTR_OUT.size)[9] == stat.S_IFCHR | 0o640


def test_a_device_is_not_truncated(mounted: Mounted, bound: int, image: Path) -> None:
    data = mounted.node(b"loop8")
    opened_with_o_trunc = setattr_body(fuse.FATTR_SIZE)
    reply = mounted.kernel.ask(fuse.FUSE_SETATTR, opened_with_o_trunc, data)
    assert fuse.ATTR.unpack_from(reply.data, fuse.ATTR_OUT.size)[1] == SIZE - 512
    ftruncate = setattr_body(fuse.FATTR_SIZE | fuse.FATTR_FH)
    assert mounted.kernel.ask(fuse.FUSE_SETATTR, ftruncate, data) == Reply(errno.EINVAL, b"")
    assert image.stat().st_size == SIZE


# --- nobody waits for another's caller or file -----------------------------------------------


@pytest.mark.parametrize("waits", ["file", "memory", "table"])
def test_a_call_that_waits_delays_no_other(
    mounted: Mounted, bound: int, image: Path, monkeypatch: pytest.MonkeyPatch, waits: str
) -> None:
    """A call that waits for a file's server, a caller's memory or a table's reader, and others of
    the same instance meanwhile."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> bytes:
        begun.set()
        assert go_on.wait(10)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    mounted.control(loop.LOOP_CTL_ADD, 9)
    other = mounted.handle(b"loop9")
    if waits == "file":
        monkeypatch.setattr(mounted.filesystem, "backing", wait)
    elif waits == "memory":
        monkeypatch.setattr(Process, "read", wait)
    else:
        monkeypatch.setattr(mounted.filesystem, "_read_table", wait)
    fd = os.open(image, os.O_RDWR)
    data = LoopConfig(fd=fd, info=LoopInfo64(flags=LO_FLAGS_PARTSCAN)).pack()
    argument = ctypes.create_string_buffer(data, len(data))
    body = fuse.IOCTL_IN.pack(other, 0, loop.LOOP_CONFIGURE, ctypes.addressof(argument), 0, 0)
    waiting = mounted.kernel.send(fuse.FUSE_IOCTL, body)
    assert begun.wait(10)
    status = ctypes.create_string_buffer(loop.LOOP_INFO64_SIZE)
    assert mounted.ioctl(bound, loop.LOOP_GET_STATUS64, ctypes.addressof(status)) == 0
    assert mounted.control(loop.LOOP_CTL_ADD, 10) == 10
    mounted.close(mounted.handle(b"loop10"))
    go_on.set()
    while (answer := mounted.kernel.receive())[0] == 0:
        continue
    # A table that cannot be read does not undo what was bound.
    result = (
        Reply(0, fuse.IOCTL_OUT.pack(0, 0, 0, 0)) if waits == "table" else Reply(errno.EIO, b"")
    )
    assert answer == (waiting, result)
    os.close(fd)
