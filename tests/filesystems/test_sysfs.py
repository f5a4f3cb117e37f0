"""The directories of /sys: lookups of the kernel, and names of arbitrary bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopfs.driver.partition import Found
from loopfs.filesystems.dev_layout import hosts_devices
from loopfs.filesystems.sysfs import SysfsDirectory
from loopfs.text import to_str
from loopfs.uapi import fuse, loop
from loopfs.uapi.loop import LoopInfo64
from tests.filesystems.conftest import FIRST, Mounted, configure
from tests.fuse.wire import Kernel, connected
from tests.support.skip import need

NAME = b"caf\xe9 caf\xc3\xa9\n\xff"  # Latin-1, UTF-8, a newline, and what is neither


class View:
    """One of the directories, as the kernel uses it."""

    def __init__(self, directory: SysfsDirectory, kernel: Kernel) -> None:
        self.directory = directory
        self.kernel = kernel

    def lookup(self, path: str) -> list[int]:
        """The node ids on the way."""
        ids, nodeid = [], fuse.FUSE_ROOT_ID
        for name in path.split("/"):
            reply = self.kernel.ask(fuse.FUSE_LOOKUP, name.encode() + b"\0", nodeid)
            assert reply.code == 0, os.strerror(reply.code)
            nodeid = fuse.ENTRY_OUT.unpack_from(reply.data)[0]
            ids.append(nodeid)
        return ids

    def read(self, path: str) -> bytes:
        nodeid = self.lookup(path)[-1]
        reply = self.kernel.ask(fuse.FUSE_OPEN, fuse.OPEN_IN.pack(os.O_RDONLY, 0), nodeid)
        handle = fuse.OPEN_OUT.unpack(reply.data)[0]
        body = fuse.READ_IN.pack(handle, 0, 4096, 0, 0, 0, 0)
        return self.kernel.ask(fuse.FUSE_READ, body, nodeid).data

    def forget(self, nodeid: int, times: int) -> None:
        self.kernel.send(fuse.FUSE_FORGET, fuse.FORGET_IN.pack(times), nodeid)

    def size(self) -> int:
        """Of all that it keeps."""
        self.kernel.ask(fuse.FUSE_GETATTR, bytes(16))  # what was sent before has been read
        return sum(len(kept) for kept in vars(self.directory).values() if isinstance(kept, dict))


@pytest.fixture
def disks(mounted: Mounted) -> Iterator[View]:
    """The directory of disks."""
    directory = SysfsDirectory("devices/virtual/block", mounted.instances)
    with connected(directory) as kernel:
        yield View(directory, kernel)


def test_what_is_looked_up_is_kept_until_the_kernel_forgets_it(
    mounted: Mounted, disks: View
) -> None:
    before = disks.size()
    for number in range(FIRST, FIRST + 50):
        assert mounted.control(loop.LOOP_CTL_ADD, number) == number
        paths = [f"loop{number}/{path}" for path in ("queue/rotational", "dev", "subsystem", "dev")]
        ids = [nodeid for path in paths for nodeid in disks.lookup(path)]
        assert disks.size() >= before + 5, "nothing was kept"
        assert mounted.control(loop.LOOP_CTL_REMOVE, number) == 0
        for nodeid in set(ids):  # as it does when it is told that the device is gone
            disks.forget(nodeid, ids.count(nodeid))
        assert disks.size() == before


def test_a_node_that_is_looked_up_again_is_the_same(mounted: Mounted, disks: View) -> None:
    mounted.control(loop.LOOP_CTL_ADD, FIRST)
    ids = disks.lookup(f"loop{FIRST}/dev")
    assert disks.lookup(f"loop{FIRST}/dev") == ids
    disks.forget(ids[1], 1)
    assert disks.lookup(f"loop{FIRST}/dev") == ids
    disks.forget(ids[1], 2)
    disk, dev = disks.lookup(f"loop{FIRST}/dev")
    assert disk == ids[0]
    assert dev not in ids, "an id is never used again"


def test_names_of_any_bytes(mounted: Mounted, disks: View, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), NAME)
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    number = mounted.control(loop.LOOP_CTL_GET_FREE)
    handle = mounted.handle(b"loop%d" % number)
    assert configure(mounted, handle, Path(os.fsdecode(path)), LoopInfo64()) == 0
    device = mounted.instances.devices[number]
    device.partitions.add(Found(1, 4096, 4096, to_str(NAME)))
    assert disks.read(f"loop{number}/loop/backing_file") == path + b"\n"
    uevent = disks.read(f"loop{number}/loop{number}p1/uevent")
    assert uevent.endswith(b"\nPARTN=1\nPARTNAME=" + NAME + b"\n")


@pytest.mark.may_skip
def test_what_is_mounted_on_is_known_before(mounted: Mounted, hosts_loops: None) -> None:
    """Process 1 has answered for it while it was mounted on."""
    names = [name for name in os.listdir("/sys/devices/virtual/block") if name.isalnum()][:2]
    need(len(names) == 2, "the host has not two virtual block devices")
    directory = SysfsDirectory(
        "devices/virtual/block", mounted.instances, mounted_on=[names[1], "gone"]
    )
    with connected(directory) as kernel:
        view = View(directory, kernel)
        (first, _) = hosts_devices([names[1], "gone"])
        assert view.lookup(names[1]) == [first.nodeid] != view.lookup(names[0])
        before = view.size()
        view.forget(first.nodeid, 2)
        assert view.size() < before
        assert view.lookup(names[1]) != [first.nodeid], "an id is never used again"
        reply = kernel.ask(fuse.FUSE_LOOKUP, b"gone\0", fuse.FUSE_ROOT_ID)
        assert os.strerror(reply.code) == "No such file or directory"
        view.forget(first.nodeid + 1, 1)


def test_what_never_is_there_is_remembered(mounted: Mounted, disks: View) -> None:
    """Of what is within a device's own directory: lsblk looks for "start" everywhere."""
    mounted.control(loop.LOOP_CTL_ADD, FIRST)
    (disk,) = disks.lookup(f"loop{FIRST}")
    assert disks.lookup(f"loop{FIRST}/start") == [disk, 0]
    assert disks.lookup(f"loop{FIRST}/queue/start")[-1] == 0
    for name in (b"loop", b"loop%dp1" % FIRST):  # which come and go
        assert disks.kernel.ask(fuse.FUSE_LOOKUP, name + b"\0", disk).data == b""
