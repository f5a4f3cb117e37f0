"""A session with hand-made requests: every opcode, refusals, and bugs of a filesystem."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator

import pytest

from loopfs.fuse.operations import Buffer, Entry, Operations, SetAttr
from loopfs.fuse.replies import MAX_WRITE
from loopfs.fuse.session import Request, Session
from loopfs.uapi import fuse
from loopfs.uapi.fuse import Attr
from tests.fuse.wire import (
    NOT_IMPLEMENTED,
    PID,
    Kernel,
    Reply,
    attr_of,
    connected,
    entries,
    refuse,
)
from tests.support.parts import wait_until
from tests.support.patience import scaled

KNOWN = 5
HANDLE = 77
HELD = 78  # a handle whose reads are answered later
U64 = struct.Struct("=Q")


class Recorder(Operations):
    """Notes what it is asked, and gives answers that can be told apart."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.changes: list[SetAttr] = []
        self.held: list[Request] = []
        self.forgotten: list[tuple[int, int]] = []
        self.requests: list[Request] = []

    def lookup(self, request: Request, parent: int, name: bytes) -> Entry | None:
        self.requests.append(request)
        self.asked.append((parent, name))
        if name != b"known":
            raise refuse(errno.ENOENT)
        return Entry(KNOWN, attr_of(50, size=4096))

    def getattr(self, nodeid: int) -> Attr:
        if nodeid == 666:
            raise ValueError("a bug")
        return attr_of(1, stat.S_IFDIR | 0o755) if nodeid == 1 else attr_of(50, size=4096)

    def forget(self, nodeid: int, nlookup: int) -> None:
        self.forgotten.append((nodeid, nlookup))

    def setattr(self, nodeid: int, changes: SetAttr) -> Attr:
        self.asked.append(nodeid)
        self.changes.append(changes)
        return attr_of(51)

    def readlink(self, nodeid: int) -> bytes:
        return b"target"

    def readdir(self, request: Request, nodeid: int, handle: int) -> list[tuple[bytes, int, int]]:
        return [(b"loop-control", 2, stat.S_IFCHR), (b"loop8", 11, stat.S_IFBLK)]

    def rename(
        self, request: Request, parent: int, name: bytes, to: int, to_name: bytes, flags: int
    ) -> None:
        self.asked.append((parent, name, to, to_name, flags))
        request.reply()

    def open(self, request: Request, nodeid: int, flags: int) -> tuple[int, int] | None:
        self.asked.append((nodeid, flags))
        return HANDLE, fuse.FOPEN_NOFLUSH

    def release(self, request: Request, handle: int) -> None:
        self.asked.append(("release", handle))
        request.reply()

    def read(
        self, request: Request, handle: int, offset: int, size: int, flags: int
    ) -> Buffer | None:
        self.asked.append((handle, offset, size))
        if handle == HELD:
            self.held.append(request)
            return None
        return memoryview(b"x" * size)

    def write(
        self, request: Request, handle: int, offset: int, data: memoryview, flags: int
    ) -> int | None:
        self.asked.append((handle, offset, bytes(data)))
        return len(data) - 1

    def fsync(self, request: Request, handle: int, datasync: bool) -> None:
        self.asked.append(("fsync", handle, datasync))
        request.reply()

    def fallocate(self, request: Request, handle: int, mode: int, offset: int, length: int) -> None:
        self.asked.append((handle, mode, offset, length))
        request.fail(errno.EOPNOTSUPP)

    def ioctl(
        self, request: Request, handle: int, cmd: int, arg: int, data: bytes, compat: bool
    ) -> None:
        self.asked.append((handle, cmd, arg, data, compat))
        request.reply_ioctl(-errno.ENXIO if cmd == 1 else 42)


@pytest.fixture
def filesystem() -> Recorder:
    return Recorder()


@pytest.fixture
def kernel(filesystem: Recorder) -> Iterator[Kernel]:
    with connected(filesystem) as kernel:
        yield kernel


def read_body(handle: int, offset: int, size: int) -> bytes:
    return fuse.READ_IN.pack(handle, offset, size, 0, 0, 0, 0)


# --- INIT ----------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [b"", bytes(48)], ids=["before 7.36", "with INIT_EXT"])
def test_init(kernel: Kernel, extra: bytes) -> None:
    everything = 0xFFFFFFFF
    reply = kernel.ask(fuse.FUSE_INIT, fuse.INIT_IN.pack(7, 41, 131072, everything) + extra)
    assert reply.code == 0
    assert len(reply.data) == 64
    major, minor, readahead, flags, _, _, max_write, _, max_pages, _, flags2 = fuse.INIT_OUT.unpack(
        reply.data
    )
    assert (major, minor) == (7, fuse.FUSE_KERNEL_MINOR_VERSION)
    assert readahead == 131072
    assert flags & fuse.FUSE_MAX_PAGES
    assert flags & fuse.FUSE_BIG_WRITES
    assert (max_write, max_pages) == (MAX_WRITE, MAX_WRITE // mmap.PAGESIZE)
    assert flags2 == 0


def test_init_takes_nothing_that_the_kernel_does_not_offer(kernel: Kernel) -> None:
    reply = kernel.ask(fuse.FUSE_INIT, fuse.INIT_IN.pack(7, 31, 4096, fuse.FUSE_BIG_WRITES))
    assert fuse.INIT_OUT.unpack(reply.data)[3] == fuse.FUSE_BIG_WRITES


def test_writes_are_not_buffered_in_the_kernel(kernel: Kernel) -> None:
    writeback_cache = 1 << 16
    reply = kernel.ask(fuse.FUSE_INIT, fuse.INIT_IN.pack(7, 41, 4096, 0xFFFFFFFF))
    assert not fuse.INIT_OUT.unpack(reply.data)[3] & writeback_cache


# --- names and attributes --------------------------------------------------------------


def test_lookup(kernel: Kernel, filesystem: Recorder) -> None:
    reply = kernel.ask(fuse.FUSE_LOOKUP, b"known\0")
    assert reply.code == 0
    nodeid, generation, name_valid, _, name_valid_ns, _ = fuse.ENTRY_OUT.unpack_from(reply.data)
    assert (nodeid, generation) == (KNOWN, 0)
    assert (name_valid, name_valid_ns) == (0, 0), "a name must be looked up each time"
    assert reply.data[fuse.ENTRY_OUT.size :] == attr_of(50, size=4096).pack()
    assert filesystem.asked == [(1, b"known")]
    (request,) = filesystem.requests
    assert (request.pid, request.nodeid) == (PID, 1)


def test_a_name_that_is_not_there(kernel: Kernel) -> None:
    assert kernel.ask(fuse.FUSE_LOOKUP, b"other\0") == Reply(errno.ENOENT, b"")


def test_getattr(kernel: Kernel) -> None:
    reply = kernel.ask(fuse.FUSE_GETATTR, fuse.GETATTR_IN.pack(0, 0, 0), KNOWN)
    assert reply.code == 0
    assert reply.data[fuse.ATTR_OUT.size :] == attr_of(50, size=4096).pack()


def setattr_body(valid: int) -> bytes:
    times = (6, 7, 8, 9, 10, 11)
    return fuse.SETATTR_IN.pack(valid, 0, 3, 4, 5, *times, 0o600, 0, 1001, 1002, 0)


NOTHING = SetAttr(None, None, None, None, None, None, False)
SECOND = 10**9


@pytest.mark.parametrize(
    ("valid", "changes"),
    [
        (0, NOTHING),
        (fuse.FATTR_MODE, NOTHING._replace(mode=0o600)),
        (fuse.FATTR_UID, NOTHING._replace(uid=1001)),
        (fuse.FATTR_GID, NOTHING._replace(gid=1002)),
        (fuse.FATTR_SIZE, NOTHING._replace(size=4)),
        (fuse.FATTR_SIZE | fuse.FATTR_FH, NOTHING._replace(size=4, by_handle=True)),
        (fuse.FATTR_ATIME, NOTHING._replace(atime=6 * SECOND + 9)),
        (fuse.FATTR_MTIME, NOTHING._replace(mtime=7 * SECOND + 10)),
        (fuse.FATTR_CTIME, NOTHING),
    ],
)
def test_setattr(kernel: Kernel, filesystem: Recorder, valid: int, changes: SetAttr) -> None:
    reply = kernel.ask(fuse.FUSE_SETATTR, setattr_body(valid), KNOWN)
    assert reply.code == 0
    assert reply.data[fuse.ATTR_OUT.size :] == attr_of(51).pack()
    assert (filesystem.asked, filesystem.changes) == ([KNOWN], [changes])


def test_setattr_to_now(kernel: Kernel, filesystem: Recorder) -> None:
    valid = fuse.FATTR_ATIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW
    kernel.ask(fuse.FUSE_SETATTR, setattr_body(valid), KNOWN)
    (changes,) = filesystem.changes
    assert changes.atime == changes.mtime
    assert changes.atime is not None
    assert changes.atime > 1_600_000_000 * SECOND


def test_readlink(kernel: Kernel) -> None:
    assert kernel.ask(fuse.FUSE_READLINK) == Reply(0, b"target")


def test_rename_of_either_kind(kernel: Kernel, filesystem: Recorder) -> None:
    names = b"from\0to\0"
    assert kernel.ask(fuse.FUSE_RENAME, fuse.RENAME_IN.pack(9) + names) == Reply(0, b"")
    assert kernel.ask(fuse.FUSE_RENAME2, fuse.RENAME2_IN.pack(9, 1) + names) == Reply(0, b"")
    assert filesystem.asked == [(1, b"from", 9, b"to", 0), (1, b"from", 9, b"to", 1)]


def test_nothing_is_made_by_mknod(kernel: Kernel) -> None:
    for kind, code in ((stat.S_IFREG, errno.EACCES), (stat.S_IFBLK, errno.EPERM)):
        body = fuse.MKNOD_IN.pack(kind | 0o600, 0, 0) + b"name\0"
        assert kernel.ask(fuse.FUSE_MKNOD, body).code == code


def test_statfs(kernel: Kernel) -> None:
    reply = kernel.ask(fuse.FUSE_STATFS)
    assert len(reply.data) == 80
    assert fuse.STATFS_OUT.unpack(reply.data)[5:8] == (4096, 255, 4096)


# --- directories -------------------------------------------------------------------------

ALL = [b".", b"..", b"loop-control", b"loop8"]


def test_opendir_and_releasedir(kernel: Kernel) -> None:
    assert len(kernel.ask(fuse.FUSE_OPENDIR, fuse.OPEN_IN.pack(0, 0)).data) == 16
    assert kernel.ask(fuse.FUSE_RELEASEDIR, fuse.RELEASE_IN.pack(0, 0, 0, 0)) == Reply(0, b"")


def test_readdir(kernel: Kernel) -> None:
    found = entries(kernel.ask(fuse.FUSE_READDIR, read_body(0, 0, 4096)).data)
    assert [entry.name for entry in found] == ALL
    assert [entry.offset for entry in found] == [1, 2, 3, 4]
    assert [(entry.ino, entry.kind) for entry in found[2:]] == [
        (2, stat.S_IFCHR),
        (11, stat.S_IFBLK),
    ]
    assert kernel.ask(fuse.FUSE_READDIR, read_body(0, 4, 4096)) == Reply(0, b"")
    assert kernel.ask(fuse.FUSE_READDIR, read_body(0, 99, 4096)) == Reply(0, b"")


@pytest.mark.parametrize("size", [40, 47, 48, 64, 71, 72, 104, 4096])
def test_readdir_in_small_pieces(kernel: Kernel, size: int) -> None:
    names: list[bytes] = []
    offset = 0
    while data := kernel.ask(fuse.FUSE_READDIR, read_body(0, offset, size)).data:
        assert len(data) <= size
        found = entries(data)
        names += [entry.name for entry in found]
        assert found[-1].offset > offset, "it would never end"
        offset = found[-1].offset
    assert names == ALL


def test_readdir_without_room(kernel: Kernel) -> None:
    assert kernel.ask(fuse.FUSE_READDIR, read_body(0, 0, 16)) == Reply(0, b"")


# --- files ---------------------------------------------------------------------------------


def test_open_and_release(kernel: Kernel, filesystem: Recorder) -> None:
    reply = kernel.ask(fuse.FUSE_OPEN, fuse.OPEN_IN.pack(os.O_RDWR, 0), KNOWN)
    assert fuse.OPEN_OUT.unpack(reply.data) == (HANDLE, fuse.FOPEN_NOFLUSH, 0)
    assert kernel.ask(fuse.FUSE_RELEASE, fuse.RELEASE_IN.pack(HANDLE, 0, 0, 0)) == Reply(0, b"")
    assert filesystem.asked == [(KNOWN, os.O_RDWR), ("release", HANDLE)]


@pytest.mark.parametrize("size", [0, 1, 4096, 65536])
def test_read(kernel: Kernel, filesystem: Recorder, size: int) -> None:
    reply = kernel.ask(fuse.FUSE_READ, read_body(HANDLE, 2**40, size), KNOWN)
    assert reply == Reply(0, b"x" * size)
    assert filesystem.asked == [(HANDLE, 2**40, size)]


def test_write(kernel: Kernel, filesystem: Recorder) -> None:
    data = os.urandom(65536)
    body = fuse.WRITE_IN.pack(HANDLE, 2**40, len(data), 0, 0, 0, 0) + data
    reply = kernel.ask(fuse.FUSE_WRITE, body, KNOWN)
    assert fuse.WRITE_OUT.unpack(reply.data) == (65535, 0)
    assert filesystem.asked == [(HANDLE, 2**40, data)]


def test_a_short_write_does_not_see_what_was_written_before(
    kernel: Kernel, filesystem: Recorder
) -> None:
    for data in (b"long one", b"short"):
        body = fuse.WRITE_IN.pack(HANDLE, 0, len(data), 0, 0, 0, 0) + data
        kernel.ask(fuse.FUSE_WRITE, body, KNOWN)
    assert filesystem.asked == [(HANDLE, 0, b"long one"), (HANDLE, 0, b"short")]


def test_fsync(kernel: Kernel, filesystem: Recorder) -> None:
    for flags in (0, 1):
        kernel.ask(fuse.FUSE_FSYNC, fuse.FSYNC_IN.pack(HANDLE, flags, 0), KNOWN)
    assert filesystem.asked == [("fsync", HANDLE, False), ("fsync", HANDLE, True)]


def test_fallocate(kernel: Kernel, filesystem: Recorder) -> None:
    body = fuse.FALLOCATE_IN.pack(HANDLE, 4096, 8192, 3, 0)
    assert kernel.ask(fuse.FUSE_FALLOCATE, body) == Reply(errno.EOPNOTSUPP, b"")
    assert filesystem.asked == [(HANDLE, 3, 4096, 8192)]


def test_ioctl(kernel: Kernel, filesystem: Recorder) -> None:
    body = fuse.IOCTL_IN.pack(HANDLE, 0, 0x4C05, 2**63 + 5, 3, 0) + b"abc"
    assert fuse.IOCTL_OUT.unpack(kernel.ask(fuse.FUSE_IOCTL, body).data) == (42, 0, 0, 0)
    body = fuse.IOCTL_IN.pack(HANDLE, fuse.FUSE_IOCTL_COMPAT, 1, 0, 0, 0)
    reply = kernel.ask(fuse.FUSE_IOCTL, body)
    assert reply.code == 0, "an ioctl's error is in its result"
    assert fuse.IOCTL_OUT.unpack(reply.data)[0] == -errno.ENXIO
    assert filesystem.asked == [
        (HANDLE, 0x4C05, 2**63 + 5, b"abc", False),
        (HANDLE, 1, 0, b"", True),
    ]


def test_ioctl_on_a_directory(kernel: Kernel, filesystem: Recorder) -> None:
    body = fuse.IOCTL_IN.pack(0, fuse.FUSE_IOCTL_DIR, 0x4C05, 0, 0, 0)
    assert kernel.ask(fuse.FUSE_IOCTL, body) == Reply(errno.ENOTTY, b"")
    assert filesystem.asked == []


# --- what is refused, and what is not answered -----------------------------------------------


@pytest.mark.parametrize("room", [0, 4096])
def test_there_are_no_extended_attributes(kernel: Kernel, room: int) -> None:
    data = b"" if room else fuse.GETXATTR_OUT.pack(0)
    assert kernel.ask(fuse.FUSE_LISTXATTR, fuse.GETXATTR_IN.pack(room)) == Reply(0, data)


@pytest.mark.parametrize(
    ("opcode", "code"),
    [
        (fuse.FUSE_CREATE, errno.EACCES),
        (fuse.FUSE_MKNOD, errno.EPERM),
        (fuse.FUSE_MKDIR, errno.EPERM),
        (fuse.FUSE_RMDIR, errno.EPERM),
        (fuse.FUSE_SYMLINK, errno.EPERM),
        (fuse.FUSE_LINK, errno.EPERM),
        (fuse.FUSE_UNLINK, errno.EPERM),
        (fuse.FUSE_LSEEK, errno.EINVAL),
        (fuse.FUSE_COPY_FILE_RANGE, errno.EINVAL),
    ],
)
def test_nothing_can_be_made_or_removed(kernel: Kernel, opcode: int, code: int) -> None:
    assert kernel.ask(opcode, bytes(64) + b"name\0") == Reply(code, b"")


@pytest.mark.parametrize("opcode", [0, 7, 33, 50, 99, 4096, 2**32 - 1, fuse.FUSE_POLL])
def test_an_unknown_request_is_not_implemented(kernel: Kernel, opcode: int) -> None:
    assert kernel.ask(opcode, bytes(100)) == NOT_IMPLEMENTED


def test_a_file_can_always_be_closed(kernel: Kernel) -> None:
    reply = kernel.ask(fuse.FUSE_FLUSH, bytes(24))
    assert reply.code in (0, errno.ENOSYS), "any other is what close(2) returns"


@pytest.mark.parametrize("opcode", [fuse.FUSE_FORGET, fuse.FUSE_BATCH_FORGET, fuse.FUSE_INTERRUPT])
def test_requests_without_an_answer(kernel: Kernel, opcode: int) -> None:
    kernel.send(opcode, bytes(24))
    # The next answer is the next request's; ask() sees to that.
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)).code == 0


def test_forgotten_nodes(kernel: Kernel, filesystem: Recorder) -> None:
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(3), nodeid=7)
    ones = [(8, 1), (2**63, 2**40), (9, 5)]
    body = fuse.BATCH_FORGET_IN.pack(2) + b"".join(fuse.FORGET_ONE.pack(*one) for one in ones)
    kernel.send(fuse.FUSE_BATCH_FORGET, body)  # of which the third is beyond the count
    kernel.send(fuse.FUSE_INTERRUPT, bytes(8))
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)).code == 0
    assert filesystem.forgotten == [(7, 3), *ones[:2]]


# --- answers in another order ------------------------------------------------------------------


def test_a_request_may_be_kept_and_answered_later(kernel: Kernel, filesystem: Recorder) -> None:
    held = kernel.send(fuse.FUSE_READ, read_body(HELD, 0, 10))
    assert kernel.ask(fuse.FUSE_READ, read_body(HANDLE, 0, 2)) == Reply(0, b"xx")
    (request,) = filesystem.held
    request.reply(b"late ", b"answer")
    assert kernel.receive() == (held, Reply(0, b"late answer"))


# --- bugs -------------------------------------------------------------------------------------


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is said to the person who runs loopfs, instead of on stderr."""
    said: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *what: said.append(what[1]))
    return said


def test_a_bug_fails_one_call_and_does_not_end_the_session(
    kernel: Kernel, complaints: list[object]
) -> None:
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), 666) == Reply(errno.EIO, b"")
    assert [str(problem) for problem in complaints] == ["a bug"]
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), KNOWN).code == 0


@pytest.mark.parametrize(
    "opcode", [fuse.FUSE_LOOKUP, fuse.FUSE_OPEN, fuse.FUSE_IOCTL, fuse.FUSE_RENAME, fuse.FUSE_INIT]
)
def test_a_request_that_is_cut_short_does_not_end_the_session(
    kernel: Kernel, complaints: list[object], opcode: int
) -> None:
    assert kernel.ask(opcode) == Reply(errno.EIO, b"")
    assert len(complaints) == 1
    assert kernel.ask(fuse.FUSE_LOOKUP, b"known\0").code == 0


def test_an_error_without_a_number_is_an_io_error() -> None:
    class Vague(Operations):
        def getattr(self, nodeid: int) -> Attr:
            raise OSError("something")

    with connected(Vague()) as kernel:
        assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)) == Reply(errno.EIO, b"")


# --- an empty filesystem refuses everything ---------------------------------------------------


@pytest.mark.parametrize(
    ("opcode", "body", "code"),
    [
        (fuse.FUSE_LOOKUP, b"a\0", errno.ENOENT),
        (fuse.FUSE_SETATTR, bytes(88), errno.EPERM),
        (fuse.FUSE_READLINK, b"", errno.EINVAL),
        (fuse.FUSE_OPEN, bytes(8), errno.EACCES),
        (fuse.FUSE_READ, bytes(40), errno.EIO),
        (fuse.FUSE_WRITE, bytes(40), errno.EIO),
        (fuse.FUSE_RENAME, bytes(8) + b"a\0b\0", errno.EPERM),
        (fuse.FUSE_FALLOCATE, bytes(32), errno.EOPNOTSUPP),
        (fuse.FUSE_IOCTL, bytes(32), errno.ENOTTY),
        (fuse.FUSE_RELEASE, bytes(24), 0),
        (fuse.FUSE_FSYNC, bytes(16), 0),
    ],
)
def test_defaults(opcode: int, body: bytes, code: int) -> None:
    with connected(Operations()) as kernel:
        assert kernel.ask(opcode, body) == Reply(code, b"")


# --- notifications ---------------------------------------------------------------------------


def test_notifications_have_no_number_and_a_code() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        session, kernel = Session(theirs.fileno(), Operations()), Kernel(ours)
        session.invalidate(KNOWN, 4096, 512)
        body = fuse.NOTIFY_INVAL_INODE_OUT.pack(KNOWN, 4096, 512)
        assert kernel.receive() == (0, Reply(fuse.FUSE_NOTIFY_INVAL_INODE, body))
        session.forget_name(1, b"name")
        body = fuse.NOTIFY_INVAL_ENTRY_OUT.pack(1, 4, 0) + b"name\0"
        assert kernel.receive() == (0, Reply(fuse.FUSE_NOTIFY_INVAL_ENTRY, body))
        session.grow(KNOWN, 8192)  # a byte that cannot be read: /dev/fuse has taken the size then
        with pytest.raises(BlockingIOError):
            ours.recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (OSError(524, "ENOTSUPP"), errno.EIO),  # which the kernel would not take
        (OSError(1000, "beyond all"), errno.EIO),
        (OSError(0, "none"), errno.EIO),
        (OSError("without one"), errno.EIO),
        (OSError(errno.ENXIO, ""), errno.ENXIO),
        (MemoryError(), errno.ENOMEM),
    ],
)
def test_an_errno_that_the_kernel_takes(
    kernel: Kernel,
    filesystem: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    code: int,
) -> None:
    def getattr(nodeid: int) -> Attr:
        raise problem

    monkeypatch.setattr(filesystem, "getattr", getattr)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)) == Reply(code, b"")


@pytest.mark.parametrize("opcode", [fuse.FUSE_READ, fuse.FUSE_IOCTL, fuse.FUSE_LOOKUP])
def test_a_request_that_is_cut(kernel: Kernel, complaints: list[object], opcode: int) -> None:
    assert kernel.ask(opcode, b"?").code in (0, errno.EIO, errno.ENOENT)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)).code == 0


def test_an_answer_that_the_kernel_does_not_take(
    kernel: Kernel, complaints: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets EIO in its place; so it does from the kernel where an answer is too long."""
    refused = [errno.EINVAL, errno.ENOMEM]
    writev = os.writev

    def refusing(fd: int, parts: tuple[Buffer, ...]) -> int:
        if len(parts) > 1 and refused:
            code = refused.pop(0)
            raise OSError(code, os.strerror(code))
        return writev(fd, parts)

    monkeypatch.setattr(os, "writev", refusing)
    for _ in range(2):
        assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)) == Reply(errno.EIO, b"")
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)).code == 0
    assert len(complaints) == 2


def test_nothing_can_be_written(
    kernel: Kernel, complaints: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(fd: int, parts: tuple[Buffer, ...]) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", refusing)
        kernel.send(fuse.FUSE_GETATTR, bytes(16))
        wait_until(lambda: len(complaints) == 2, "both have been tried")
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)).code == 0


def test_answering_twice(kernel: Kernel, filesystem: Recorder) -> None:
    """The kernel says ENOENT to the second, as to an answer for a caller that is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    request = Request(writer, 2, 1, PID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "writev", lambda *_: (_ for _ in ()).throw(FileNotFoundError(2, "")))
        request.reply()
        request.fail(errno.EIO)
    os.close(writer)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EINTR, errno.EAGAIN, errno.ENOMEM])
def test_a_read_that_fails_is_tried_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    failures = [OSError(code, os.strerror(code))] * 3
    readv = os.readv

    def failing(fd: int, buffers: list[bytearray]) -> int:
        if failures:
            raise failures.pop()
        return readv(fd, buffers)

    monkeypatch.setattr(os, "readv", failing)
    for _ in range(2):
        assert kernel.ask(fuse.FUSE_GETATTR, bytes(16)).code == 0
    assert not failures


def test_a_session_that_cannot_go_on_ends_its_connection(filesystem: Recorder) -> None:
    """Nobody waits for answers that will not come."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, pytest.MonkeyPatch.context() as patch:
        ours.settimeout(scaled(10))
        patch.setattr(os, "readv", lambda *_: (_ for _ in ()).throw(OSError(errno.EINVAL, "")))
        with pytest.raises(OSError, match="Errno"):
            Session(theirs.fileno(), filesystem).serve()
        assert ours.recv(1) == b""
