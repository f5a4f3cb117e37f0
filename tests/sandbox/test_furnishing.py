"""The files of /dev that process 1 serves at the start are those of the supervisor."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from loopfs.channel import Channel
from loopfs.driver.minors import Minors
from loopfs.filesystems.backing import facts
from loopfs.filesystems.blkid import read_table
from loopfs.filesystems.dev_layout import HIDDEN, NAME_VALID, files
from loopfs.filesystems.devtmpfs import DevFilesystem
from loopfs.filesystems.instances import Instances, Owner
from loopfs.process import Process
from loopfs.sandbox.furnishing import Served, serve_until_told
from loopfs.sandbox.supervisor import first_number
from loopfs.uapi import fuse
from tests.fuse.wire import PATIENCE, Kernel, Reply, served

MOUNTED_ON = ["null", "tty", "net/tun", "shm"]
TIMES = slice(24, 60)  # bytes of struct fuse_attr: when each of the two was started


class Furnished:
    """Process 1 at its work, and the child's end of the gate."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        self.socket, self.kernel = ours, Kernel(ours)
        self.gate, gate = Channel.pair()

        def serve() -> None:
            with theirs:
                serve_until_told(gate, [Served(theirs.fileno(), files(MOUNTED_ON), NAME_VALID)])
            gate.close()

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()

    def end(self) -> None:
        self.gate.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.socket.close()


@pytest.fixture
def furnished() -> Iterator[Furnished]:
    furnished = Furnished()
    yield furnished
    furnished.end()


@pytest.fixture
def later() -> Iterator[Kernel]:
    """The supervisor's /dev."""
    instances = Instances(Minors(8), lambda fd: facts(os.fstat(fd)), read_table)

    def make(fd: int) -> Callable[[], None]:
        owner = Owner.of(Process(os.getpid()))
        make = partial(DevFilesystem, MOUNTED_ON)
        filesystem = instances.add(os.dup(fd), 0xFFFF, owner, make=make)
        return lambda: instances.serve(filesystem)

    with served(make, os.getpid()) as kernel:
        yield kernel


def lookup(kernel: Kernel, parent: int, name: bytes) -> Reply:
    return kernel.ask(fuse.FUSE_LOOKUP, name + b"\0", parent)


def getattr_of(kernel: Kernel, nodeid: int) -> Reply:
    return kernel.ask(fuse.FUSE_GETATTR, fuse.GETATTR_IN.pack(0, 0, 0), nodeid)


def without_times(attr: bytes) -> bytes:
    changing = range(fuse.ATTR.size)[TIMES]
    return bytes(0 if index in changing else byte for index, byte in enumerate(attr))


def test_both_say_the_same_of_every_file(furnished: Furnished, later: Kernel) -> None:
    size = fuse.ENTRY_OUT.size
    for file in files(MOUNTED_ON):
        first, then = (lookup(each, file.parent, file.name) for each in (furnished.kernel, later))
        assert (first.code, then.code) == (0, 0), file
        assert first.data[:size] == then.data[:size], file
        assert int(fuse.ENTRY_OUT.unpack_from(first.data)[0]) == file.nodeid
        assert without_times(first.data[size:]) == without_times(then.data[size:]), file
    for nodeid in (fuse.FUSE_ROOT_ID, *(each.nodeid for each in files(MOUNTED_ON))):
        first, then = (getattr_of(each, nodeid) for each in (furnished.kernel, later))
        assert (first.code, then.code) == (0, 0), nodeid
        size = fuse.ATTR_OUT.size
        assert without_times(first.data[size:]) == without_times(then.data[size:]), nodeid


def test_what_it_is_not_to_answer(furnished: Furnished) -> None:
    kernel = furnished.kernel
    assert lookup(kernel, 1, b"loop-control") == Reply(errno.ENOENT, b"")
    assert lookup(kernel, 99, b"null") == Reply(errno.ENOENT, b"")
    assert getattr_of(kernel, 99) == Reply(errno.EIO, b"")
    assert kernel.ask(fuse.FUSE_OPENDIR, fuse.OPEN_IN.pack(0, 0)) == Reply(errno.EIO, b"")
    kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(1), 1)  # nobody waits for an answer
    assert lookup(kernel, 1, b"null").code == 0


def test_it_ends_on_request(furnished: Furnished) -> None:
    furnished.gate.send(b"ok")
    furnished.thread.join(PATIENCE)
    assert not furnished.thread.is_alive()


def test_what_is_mounted_on_is_a_link_to_a_node_of_ours() -> None:
    known = {file.nodeid: file for file in files(MOUNTED_ON)}
    assert len(known) == len(files(MOUNTED_ON))
    devices = {file.device: file for file in known.values() if file.device}
    assert set(devices) == {"null", "tty", "net/tun"}
    assert devices["null"].target == HIDDEN + b"/null"
    assert devices["net/tun"].target == b"../" + HIDDEN + b"/net-tun"
    assert known[devices["net/tun"].parent].name == b"net"
    assert all(stat.S_ISLNK(file.mode) for file in devices.values())


def test_numbers_begin_after_the_hosts_devices_that_are_mounted() -> None:
    """One that has gone meanwhile is still mounted; the sandbox must have none of its name."""
    assert first_number(["loop70000", "zram0", ""]) == 70001
    assert first_number() < 70000


def test_the_hosts_last_device_leaves_numbers() -> None:
    """losetup -f found no unused device while the host had a loop1048575."""
    assert first_number(["loop1048575"]) == first_number()
