"""A server of a whole filesystem, over a socket pair: the test is the kernel's end."""

from __future__ import annotations

import errno
import mmap
import os
import select
import stat
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from loopfs.fuse.connection import watch
from loopfs.fuse.replies import MAX_PAGES, MAX_WRITE
from loopfs.fuse.server import Server
from loopfs.fuse.tree import FACE, STAND_IN, Caller, Changes, Handle, Later, Space, Tree
from loopfs.uapi import fuse
from loopfs.uapi.fuse import Attr
from tests.fuse.wire import PATIENCE, PID, Kernel, Reply, attr_of, entries, refuse, served

DIR = stat.S_IFDIR | 0o755
MOST = 100  # bytes of a file: then there is no room


class Thing:
    """A node of a tree: a directory if it has ``children``."""

    def __init__(self, nodeid: int, children: dict[bytes, Thing] | None = None) -> None:
        self.nodeid = nodeid
        self.children = children
        self.data = bytearray()
        self.attributes: dict[bytes, bytes] = {}


class Small(Tree[Thing]):
    """A tree in memory, that keeps what it was told."""

    def __init__(self) -> None:
        self.top = Thing(1, {})
        self.told: list[object] = []
        self.opened: list[Handle[Thing]] = []
        self.changes: list[Changes] = []
        self.numbers = iter(range(10, 1000))
        self.go_on = threading.Event()
        self.stale: set[int] = set()
        self.valid = 3600
        self.opens = False

    def root(self) -> Thing:
        return self.top

    def known(self, node: Thing) -> None:
        self.told.append(("known", node.nodeid))

    def forgotten(self, node: Thing) -> None:
        self.told.append(("forgotten", node.nodeid))

    def is_stale(self, node: Thing, nodeid: int) -> bool:
        return nodeid in self.stale

    def destroy(self) -> None:
        self.told.append("destroyed")

    def getattr(self, node: Thing) -> Attr:
        mode = DIR if node.children is not None else stat.S_IFREG | 0o644
        return attr_of(node.nodeid, mode, len(node.data))

    def birth(self, node: Thing) -> int | None:
        return None

    def setattr(self, caller: Caller, node: Thing, changes: Changes) -> Later | None:
        self.changes.append(changes)
        if changes.mode == 0:
            return Later(lambda: None)
        return None

    def statfs(self) -> Space:
        return Space(1, 2, 3, 4, 5, 6, 7, 8)

    def _child(self, parent: Thing, name: bytes) -> Thing:
        assert parent.children is not None
        if name not in parent.children:
            raise refuse(errno.ENOENT)
        return parent.children[name]

    def _new(self, parent: Thing, name: bytes, *, is_dir: bool = False) -> tuple[Thing, int]:
        assert parent.children is not None
        thing = parent.children[name] = Thing(next(self.numbers), {} if is_dir else None)
        return thing, 5

    def lookup(self, parent: Thing, name: bytes) -> tuple[Thing, int]:
        return self._child(parent, name), self.valid

    def face(self, caller: Caller, node: Thing) -> int:
        return node.nodeid | FACE if self.opens else node.nodeid

    def attr_of_face(self, node: Thing, attr: Attr) -> Attr:
        return attr._replace(mode=stat.S_IFIFO | 0o600)

    def create(
        self, caller: Caller, parent: Thing, name: bytes, mode: int, flags: int
    ) -> tuple[tuple[Thing, int], Handle[Thing]]:
        self.told.append(("create", caller, name, mode, flags))
        found = self._new(parent, name)
        return found, Handle(found[0], fuse.FOPEN_KEEP_CACHE)

    def mknod(
        self, caller: Caller, parent: Thing, name: bytes, mode: int, rdev: int
    ) -> tuple[Thing, int]:
        self.told.append(("mknod", caller, name, mode, rdev))
        return self._new(parent, name)

    def mkdir(self, caller: Caller, parent: Thing, name: bytes, mode: int) -> tuple[Thing, int]:
        self.told.append(("mkdir", caller, name, mode))
        return self._new(parent, name, is_dir=True)

    def symlink(
        self, caller: Caller, parent: Thing, name: bytes, target: bytes
    ) -> tuple[Thing, int]:
        found = self._new(parent, name)
        found[0].data += target
        return found

    def readlink(self, node: Thing) -> bytes:
        return bytes(node.data)

    def link(self, caller: Caller, node: Thing, parent: Thing, name: bytes) -> tuple[Thing, int]:
        assert parent.children is not None
        parent.children[name] = node
        return node, 5

    def tmpfile(
        self, caller: Caller, parent: Thing, mode: int, flags: int
    ) -> tuple[tuple[Thing, int], Handle[Thing]]:
        thing = Thing(next(self.numbers))
        return (thing, 0), Handle(thing)

    def unlink(self, caller: Caller, parent: Thing, name: bytes) -> None:
        self._child(parent, name)
        assert parent.children is not None
        del parent.children[name]

    rmdir = unlink

    def rename(
        self, caller: Caller, parent: Thing, name: bytes, to: Thing, to_name: bytes, flags: int
    ) -> None:
        self.told.append(("rename", name, to.nodeid, to_name, flags))

    def getxattr(self, node: Thing, name: bytes) -> bytes:
        if name not in node.attributes:
            raise refuse(errno.ENODATA)
        return node.attributes[name]

    def setxattr(self, caller: Caller, node: Thing, name: bytes, value: bytes, flags: int) -> None:
        self.told.append(("setxattr", flags))
        node.attributes[name] = value

    def removexattr(self, caller: Caller, node: Thing, name: bytes) -> None:
        del node.attributes[name]

    def listxattr(self, node: Thing) -> list[bytes]:
        return list(node.attributes)

    def open(self, caller: Caller, node: Thing, flags: int) -> Handle[Thing]:
        self.opened.append(Handle(node, fuse.FOPEN_KEEP_CACHE))
        return self.opened[-1]

    def opendir(self, caller: Caller, node: Thing) -> Handle[Thing]:
        self.opened.append(Handle(node))
        return self.opened[-1]

    def entries(
        self, handle: Handle[Thing], place: int
    ) -> Iterator[tuple[int, bytes, int, int, Thing | None]]:
        assert handle.node.children is not None
        for n, (name, child) in enumerate(list(handle.node.children.items())):
            if n >= place:
                yield n + 1, name, child.nodeid, 8, child

    def release(self, handle: Handle[Thing]) -> None:
        self.told.append(("release", handle.node.nodeid))

    def read(self, handle: Handle[Thing], offset: int, size: int) -> bytes:
        return bytes(handle.node.data[offset : offset + size])

    def write(self, handle: Handle[Thing], offset: int, data: memoryview) -> int:
        data = data[: MOST - offset]
        handle.node.data[offset : offset + len(data)] = data
        return len(data)

    def fsync(self, handle: Handle[Thing], datasync: bool) -> Later | None:
        def work() -> None:
            if not self.go_on.wait(PATIENCE):
                raise refuse(errno.ETIMEDOUT)
            if datasync:
                raise refuse(errno.EIO)

        return Later(work)

    def lseek(self, handle: Handle[Thing], offset: int, whence: int) -> int:
        return offset + whence

    def ioctl(
        self, caller: Caller, handle: Handle[Thing], cmd: int, arg: int, data: bytes, compat: bool
    ) -> tuple[int, bytes]:
        if cmd == 1:
            raise ValueError("a bug")
        return 7, data + b"out" + bytes(100)


@pytest.fixture
def tree() -> Small:
    return Small()


@pytest.fixture
def kernel(tree: Small) -> Iterator[Kernel]:
    with served(lambda fd: Server(fd, tree).serve) as kernel:
        yield kernel
    assert tree.told[-1] == "destroyed"


def entry(reply: Reply) -> tuple[int, int]:
    """Node id and seconds of an entry."""
    assert reply.code == 0
    nodeid, _, valid, *_ = fuse.ENTRY_OUT.unpack_from(reply.data)
    return nodeid, valid


def create(kernel: Kernel, name: bytes) -> tuple[int, int]:
    """Node id and handle of a new file."""
    reply = kernel.ask(
        fuse.FUSE_CREATE, fuse.CREATE_IN.pack(os.O_RDWR, 0o644, 0o22, 0) + name + b"\0"
    )
    nodeid, _ = entry(reply)
    fh, flags, _ = fuse.OPEN_OUT.unpack_from(reply.data, fuse.ENTRY_OUT.size + fuse.ATTR.size)
    assert flags == fuse.FOPEN_KEEP_CACHE
    return nodeid, fh


def test_init(kernel: Kernel) -> None:
    offered = fuse.FUSE_DO_READDIRPLUS | fuse.FUSE_WRITEBACK_CACHE | fuse.FUSE_MAX_PAGES
    reply = kernel.ask(fuse.FUSE_INIT, fuse.INIT_IN.pack(7, 40, 1 << 17, offered))
    _, _, readahead, flags, *_ = fuse.INIT_OUT.unpack(reply.data)
    assert readahead == 1 << 17
    assert flags == fuse.FUSE_DO_READDIRPLUS | fuse.FUSE_MAX_PAGES
    assert fuse.INIT_OUT.unpack(reply.data)[6] == MAX_WRITE == MAX_PAGES * mmap.PAGESIZE


def test_lookups_are_counted(kernel: Kernel, tree: Small) -> None:
    made, _ = create(kernel, b"file")
    for _ in range(2):
        assert entry(kernel.ask(fuse.FUSE_LOOKUP, b"file\0")) == (made, 3600)
    assert tree.told.count(("known", made)) == 1
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(2), made)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), made).code == 0
    batch = (
        fuse.BATCH_FORGET_IN.pack(2) + fuse.FORGET_ONE.pack(made, 1) + fuse.FORGET_ONE.pack(99, 1)
    )
    kernel.send(fuse.FUSE_BATCH_FORGET, batch)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), made).code == errno.ESTALE
    assert ("forgotten", made) in tree.told
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(100), 1)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), 1).code == 0, "the root stays"


def test_what_is_forgotten_though_unknown(kernel: Kernel) -> None:
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(1), 777)
    kernel.send(fuse.FUSE_BATCH_FORGET, b"")  # nobody waits for an answer, not even to this
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), 1).code == 0


def mode_of(reply: Reply) -> int:
    mode: int = fuse.ATTR.unpack_from(reply.data, len(reply.data) - fuse.ATTR.size)[9]
    return mode


def test_another_face(kernel: Kernel, tree: Small) -> None:
    """A name that is not remembered may be answered with another node id of the same node."""
    made, _ = create(kernel, b"file")
    tree.opens = True
    assert entry(kernel.ask(fuse.FUSE_LOOKUP, b"file\0")) == (made, 3600)
    tree.valid = 0
    reply = kernel.ask(fuse.FUSE_LOOKUP, b"file\0")
    assert entry(reply) == (made | FACE, 0)
    assert mode_of(reply) == stat.S_IFIFO | 0o600
    assert fuse.ENTRY_OUT.unpack_from(reply.data)[3] == 0, "its attributes are not remembered"
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(2), made)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), made).code == errno.ESTALE
    assert mode_of(kernel.ask(fuse.FUSE_GETATTR, bytes(16), made | FACE)) == stat.S_IFIFO | 0o600
    seen = kernel.ask(fuse.FUSE_STATX, fuse.STATX_IN.pack(0, 0, 0, 0, 0xFFF), made | FACE)
    assert stat.S_IFIFO | 0o600 in fuse.STATX_OUT.unpack(seen.data)
    tree.opens = False
    assert entry(kernel.ask(fuse.FUSE_LOOKUP, b"file\0")) == (made, 0)
    assert tree.told.count(("known", made)) == 3


def test_what_is_made_is_of_another_kind(kernel: Kernel, tree: Small) -> None:
    """The kernel is answered with what it has asked for, and forgets it."""
    request = fuse.MKNOD_IN.pack(stat.S_IFIFO | 0o600, 0, 0) + b"file\0"
    reply = kernel.ask(fuse.FUSE_MKNOD, request)
    nodeid, valid = entry(reply)
    assert (nodeid >= STAND_IN, valid, mode_of(reply)) == (True, 0, stat.S_IFIFO | 0o644)
    assert ("known", nodeid) not in tree.told
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), nodeid).code == errno.ESTALE
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(1), nodeid)
    found, _ = entry(kernel.ask(fuse.FUSE_LOOKUP, b"file\0"))
    assert found < FACE


def test_a_stale_node(kernel: Kernel, tree: Small) -> None:
    made, fh = create(kernel, b"file")
    tree.stale.add(made)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), made).code == errno.ESTALE
    by_handle = fuse.GETATTR_IN.pack(fuse.FUSE_GETATTR_FH, 0, fh)
    assert kernel.ask(fuse.FUSE_GETATTR, by_handle, made).code == 0


def test_making_names(kernel: Kernel, tree: Small) -> None:
    create(kernel, b"one")
    caller = Caller(0, 0, PID, umask=0o22)
    assert ("create", caller, b"one", 0o644, os.O_RDWR) in tree.told
    _, valid = entry(kernel.ask(fuse.FUSE_MKNOD, fuse.MKNOD_IN.pack(0o100600, 3, 0) + b"two\0"))
    assert valid == 5
    directory, _ = entry(kernel.ask(fuse.FUSE_MKDIR, fuse.MKDIR_IN.pack(0o755, 0o77) + b"dir\0"))
    link, _ = entry(kernel.ask(fuse.FUSE_SYMLINK, b"link\0target\0", directory))
    assert kernel.ask(fuse.FUSE_READLINK, b"", link) == Reply(0, b"target")
    hard = kernel.ask(fuse.FUSE_LINK, fuse.LINK_IN.pack(link) + b"hard\0", directory)
    assert entry(hard) == (link, 5)
    tmp = kernel.ask(fuse.FUSE_TMPFILE, fuse.CREATE_IN.pack(os.O_RDWR, 0o600, 0, 0) + b"/\0", 1)
    assert entry(tmp)[1] == 0
    body = fuse.RENAME2_IN.pack(directory, 2) + b"one\0uno\0"
    assert kernel.ask(fuse.FUSE_RENAME2, body) == Reply(0, b"")
    assert tree.told[-1] == ("rename", b"one", directory, b"uno", 2)
    assert kernel.ask(fuse.FUSE_RENAME, fuse.RENAME_IN.pack(1) + b"a\0b\0") == Reply(0, b"")
    assert kernel.ask(fuse.FUSE_UNLINK, b"one\0") == Reply(0, b"")
    assert kernel.ask(fuse.FUSE_RMDIR, b"dir\0") == Reply(0, b"")
    assert kernel.ask(fuse.FUSE_UNLINK, b"one\0").code == errno.ENOENT


def test_extended_attributes(kernel: Kernel, tree: Small) -> None:
    node, _ = create(kernel, b"file")
    body = fuse.SETXATTR_IN.pack(5, 1) + b"user.x\0" + b"value"
    assert kernel.ask(fuse.FUSE_SETXATTR, body, node) == Reply(0, b"")
    assert tree.told[-1] == ("setxattr", 1)

    def get(room: int) -> Reply:
        return kernel.ask(fuse.FUSE_GETXATTR, fuse.GETXATTR_IN.pack(room) + b"user.x\0", node)

    assert get(0) == Reply(0, fuse.GETXATTR_OUT.pack(5))
    assert get(5) == Reply(0, b"value")
    assert get(4).code == errno.ERANGE
    listed = kernel.ask(fuse.FUSE_LISTXATTR, fuse.GETXATTR_IN.pack(100), node)
    assert listed == Reply(0, b"user.x\0")
    assert kernel.ask(fuse.FUSE_REMOVEXATTR, b"user.x\0", node) == Reply(0, b"")
    assert get(0).code == errno.ENODATA


def test_a_tree_without_extended_attributes_is_asked_no_more() -> None:
    class Plain(Small):
        getxattr = Tree.getxattr

    with served(lambda fd: Server(fd, Plain()).serve) as kernel:
        body = fuse.GETXATTR_IN.pack(0) + b"user.x\0"
        assert kernel.ask(fuse.FUSE_GETXATTR, body).code == errno.ENOSYS


def test_open_files(kernel: Kernel, tree: Small) -> None:
    node, fh = create(kernel, b"file")
    body = fuse.WRITE_IN.pack(fh, 0, 4, 0, 0, 0, 0) + b"data"
    assert kernel.ask(fuse.FUSE_WRITE, body, node).data == fuse.WRITE_OUT.pack(4, 0)
    opened = kernel.ask(fuse.FUSE_OPEN, fuse.OPEN_IN.pack(os.O_RDONLY, 0), node)
    other, *_ = fuse.OPEN_OUT.unpack(opened.data)
    assert other != fh
    assert kernel.ask(fuse.FUSE_READ, fuse.READ_IN.pack(other, 1, 9, 0, 0, 0, 0)).data == b"ata"
    seek = kernel.ask(fuse.FUSE_LSEEK, fuse.LSEEK_IN.pack(fh, 5, 4, 0))
    assert seek.data == fuse.LSEEK_OUT.pack(9)
    for handle in (fh, other):
        assert kernel.ask(fuse.FUSE_RELEASE, fuse.RELEASE_IN.pack(handle, 0, 0, 0)) == Reply(0, b"")
    assert tree.told[-1] == ("release", node)


def test_o_noatime(kernel: Kernel, tree: Small) -> None:
    node, _ = create(kernel, b"file")
    for opcode, nodeid in ((fuse.FUSE_OPEN, node), (fuse.FUSE_OPENDIR, 1)):
        for flags in (os.O_NOATIME, 0):
            kernel.ask(opcode, fuse.OPEN_IN.pack(flags, 0), nodeid)
    assert [handle.noatime for handle in tree.opened] == [True, False, True, False]


def test_what_has_no_room(kernel: Kernel) -> None:
    """A program hears how much of its write was stored; of a mapping's pages, that some was not."""
    node, fh = create(kernel, b"file")
    body = fuse.WRITE_IN.pack(fh, 98, 4, 0, 0, 0, 0) + b"data"
    assert kernel.ask(fuse.FUSE_WRITE, body, node).data == fuse.WRITE_OUT.pack(2, 0)
    body = fuse.WRITE_IN.pack(fh, 98, 4, fuse.FUSE_WRITE_CACHE, 0, 0, 0) + b"data"
    assert kernel.ask(fuse.FUSE_WRITE, body, node).code == errno.ENOSPC


def test_setattr(kernel: Kernel, tree: Small) -> None:
    node, fh = create(kernel, b"file")
    fields = [fuse.FATTR_SIZE | fuse.FATTR_FH | fuse.FATTR_MTIME_NOW, 0, fh, 9, *[0] * 12]
    assert kernel.ask(fuse.FUSE_SETATTR, fuse.SETATTR_IN.pack(*fields), node).code == 0
    (changes,) = tree.changes
    assert changes.size == 9 and changes.mode is None and changes.mtime
    assert isinstance(changes.handle, Handle) and changes.handle.node.nodeid == node
    fields = [fuse.FATTR_MODE, *[0] * 15]  # which takes long
    assert kernel.ask(fuse.FUSE_SETATTR, fuse.SETATTR_IN.pack(*fields), node).code == 0


def test_readdir_and_readdirplus(kernel: Kernel, tree: Small) -> None:
    for n in range(20):
        create(kernel, b"name%d" % n)
    opened = kernel.ask(fuse.FUSE_OPENDIR, fuse.OPEN_IN.pack(0, 0))
    fh, *_ = fuse.OPEN_OUT.unpack(opened.data)
    names, place = [], 0
    while page := kernel.ask(fuse.FUSE_READDIR, fuse.READ_IN.pack(fh, place, 200, 0, 0, 0, 0)).data:
        assert len(page) <= 200
        found = entries(page)
        names += [one.name for one in found]
        place = found[-1].offset
    assert names == [b"name%d" % n for n in range(20)]
    head = fuse.ENTRY_OUT.size + fuse.ATTR.size
    page = kernel.ask(fuse.FUSE_READDIRPLUS, fuse.READ_IN.pack(fh, 0, 400, 0, 0, 0, 0)).data
    assert 0 < len(page) <= 400
    nodeid, *_ = fuse.ENTRY_OUT.unpack_from(page)
    assert [one.name for one in entries(page[head : head + 32])] == [b"name0"]
    # Only what was sent counts as looked up.
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(1), nodeid)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), nodeid).code == 0
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(1), nodeid)
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), nodeid).code == errno.ESTALE
    assert kernel.ask(fuse.FUSE_RELEASEDIR, fuse.RELEASE_IN.pack(fh, 0, 0, 0)) == Reply(0, b"")


def test_others_are_answered_while_an_fsync_waits(kernel: Kernel, tree: Small) -> None:
    node, fh = create(kernel, b"file")
    waiting = [
        kernel.send(fuse.FUSE_FSYNC, fuse.FSYNC_IN.pack(fh, flag, 0), node) for flag in (0, 1, 0)
    ]
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), node).code == 0
    tree.go_on.set()
    answers = dict(kernel.receive() for _ in waiting)
    assert [answers[unique].code for unique in waiting] == [0, errno.EIO, 0]


def test_ioctl(kernel: Kernel) -> None:
    node, fh = create(kernel, b"file")
    reply = kernel.ask(fuse.FUSE_IOCTL, fuse.IOCTL_IN.pack(fh, 0, 2, 0, 2, 5) + b"in", node)
    assert reply == Reply(0, fuse.IOCTL_OUT.pack(7, 0, 0, 0) + b"inout")


def test_a_bug_is_one_callers_error(kernel: Kernel, capsys: pytest.CaptureFixture[str]) -> None:
    node, fh = create(kernel, b"file")
    body = fuse.IOCTL_IN.pack(fh, 0, 1, 0, 0, 0)
    assert kernel.ask(fuse.FUSE_IOCTL, body, node).code == errno.EIO
    assert kernel.ask(fuse.FUSE_READ, fuse.READ_IN.pack(999, 0, 1, 0, 0, 0, 0)).code == errno.EIO
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), node).code == 0
    assert "a bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    "opcode", [fuse.FUSE_FLUSH, fuse.FUSE_ACCESS, fuse.FUSE_COPY_FILE_RANGE, 999]
)
def test_what_the_kernel_does_by_itself(kernel: Kernel, opcode: int) -> None:
    assert kernel.ask(opcode, bytes(64)).code == errno.ENOSYS


def test_interrupts_are_not_answered(kernel: Kernel) -> None:
    kernel.send(fuse.FUSE_INTERRUPT, struct.pack("=Q", 3))
    assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), 1).code == 0


def test_statfs(kernel: Kernel) -> None:
    assert fuse.STATFS_OUT.unpack(kernel.ask(fuse.FUSE_STATFS).data)[:8] == (1, 2, 3, 4, 5, 6, 7, 8)


def test_notifications(kernel: Kernel, tree: Small) -> None:
    kernel.ask(fuse.FUSE_GETATTR, bytes(16), 1)
    tree.server.attributes_changed(5)
    assert kernel.receive() == (
        0,
        Reply(fuse.FUSE_NOTIFY_INVAL_INODE, struct.pack("=Qqq", 5, -1, 0)),
    )
    tree.server.drop_pages(6, 10, 20)
    assert kernel.receive()[1].data == struct.pack("=Qqq", 6, 10, 20)
    tree.server.forget_name(1, b"name")
    code, data = kernel.receive()[1]
    assert (code, data) == (fuse.FUSE_NOTIFY_INVAL_ENTRY, struct.pack("=QII", 1, 4, 0) + b"name\0")


def test_watching_a_descriptor() -> None:
    """It waits until there is something to read, and no longer."""
    reading, writing = os.pipe()
    try:
        wait, done = watch(reading), threading.Event()
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)

        def wait_for_it() -> None:
            wait()
            done.set()

        thread = threading.Thread(target=wait_for_it, daemon=True)
        thread.start()
        assert not done.wait(0.05)
        os.write(writing, b"a")
        assert done.wait(PATIENCE)
        thread.join()
    finally:
        os.close(reading)
        os.close(writing)


def test_a_descriptor_that_does_not_block(tree: Small) -> None:
    """What is to be done when nothing waits, is; and then what came meanwhile is answered."""
    idle = threading.Event()

    def make(fd: int) -> Callable[[], None]:
        os.set_blocking(fd, False)
        poller = select.poll()
        poller.register(fd, select.POLLIN)

        def wait() -> None:
            idle.set()
            poller.poll(PATIENCE * 1000)

        return Server(fd, tree, wait).serve

    with served(make) as kernel:
        assert idle.wait(PATIENCE)
        assert kernel.ask(fuse.FUSE_GETATTR, bytes(16), 1).code == 0
