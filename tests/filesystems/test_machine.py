"""Instances that come and go, their devices and names, under random calls, against a model of what
a directory of devices must keep true. (tests/driver/test_machine.py has the devices' states.)"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loopfs.driver.minors import Minors
from loopfs.filesystems.backing import facts
from loopfs.filesystems.blkid import read_table
from loopfs.filesystems.instances import Instances
from loopfs.uapi import fuse
from loopfs.uapi.loop import (
    LOOP_CLR_FD,
    LOOP_CTL_ADD,
    LOOP_CTL_GET_FREE,
    LOOP_CTL_REMOVE,
    LoopInfo64,
)
from tests.filesystems.conftest import Mounted, configure, names
from tests.fuse.wire import served
from tests.support.rounds import rounds

FIRST, HOST = 4, frozenset({6})
CONTROL = b"loop-control"
NUMBERS = (-1, -1, 2, *range(FIRST, 8))
NAMES = (CONTROL, b"disk", b"loop5p1", *(b"loop%d" % n for n in range(FIRST, 8)))
MOST = 3  # instances
NOREPLACE, EXCHANGE = 1, 2


@dataclass
class Disk:
    """A device, as the rules have it."""

    number: int
    bound: bool = False
    autoclear: bool = False
    handles: list[int] = field(default_factory=list)

    @property
    def busy(self) -> bool:
        return self.bound or bool(self.handles)


@dataclass
class Directory:
    """An instance, as the rules have it."""

    mounted: Mounted
    stack: ExitStack
    most: int = 2**20
    disks: dict[bytes, Disk] = field(default_factory=dict)  # by name
    links: set[str] = field(default_factory=set)

    def named(self, number: int) -> bytes | None:
        return next((name for name, disk in self.disks.items() if disk.number == number), None)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.image = Path(tempfile.mkstemp()[1])
        self.image.write_bytes(bytes(8192))
        self.instances = Instances(Minors(FIRST, HOST), lambda fd: facts(os.fstat(fd)), read_table)
        self.there: list[Directory] = []
        self.numbers = iter(range(1, 10**6))  # st_dev of each

    def teardown(self) -> None:
        for directory in self.there:
            directory.stack.close()
        self.image.unlink()

    # --- instances -----------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        self.mount_another()

    @precondition(lambda self: len(self.there) < MOST)
    @rule()
    def mount(self) -> None:
        self.mount_another()

    def mount_another(self) -> None:
        mounted, stack = Mounted(self.instances, next(self.numbers)), ExitStack()
        mounted.kernel = stack.enter_context(served(mounted.make, os.getpid()))
        self.there.append(Directory(mounted, stack))

    @precondition(lambda self: len(self.there) > 1 and any(map(_closed, self.there)))
    @rule(data=st.data())
    def umount(self, data: st.DataObject) -> None:
        directory = data.draw(st.sampled_from([d for d in self.there if _closed(d)]))
        directory.stack.close()
        self.there.remove(directory)
        assert directory.mounted.filesystem.instance.devices == {}

    @rule(data=st.data(), most=st.integers(0, 5))
    def remount(self, data: st.DataObject, most: int) -> None:
        directory = self.pick(data)
        directory.most = directory.mounted.filesystem.instance.max_devices = most

    def pick(self, data: st.DataObject) -> Directory:
        return data.draw(st.sampled_from(self.there))

    # --- the control node ----------------------------------------------------------

    def taken(self) -> dict[int, Directory | None]:
        own = {disk.number: d for d in self.there for disk in d.disks.values()}
        return dict.fromkeys(HOST) | own

    def expect_add(self, directory: Directory, number: int) -> int:
        """The answer to LOOP_CTL_ADD, and the device that it makes."""
        taken = self.taken()
        if number in taken:
            return -errno.EEXIST
        if len(directory.disks) >= directory.most:
            return -errno.ENOSPC
        chosen = number if number >= 0 else min(set(range(FIRST, 99)) - taken.keys())
        name = b"loop%d" % chosen
        if name in directory.disks:  # another's new name
            return -errno.EEXIST
        directory.disks[name] = Disk(chosen)
        directory.links.add(name.decode())
        return chosen

    @rule(data=st.data(), number=st.sampled_from(NUMBERS))
    def ctl_add(self, data: st.DataObject, number: int) -> None:
        directory = self.pick(data)
        expected = self.expect_add(directory, number)
        assert directory.mounted.control(LOOP_CTL_ADD, number) == expected

    @rule(data=st.data())
    def ctl_get_free(self, data: st.DataObject) -> None:
        directory = self.pick(data)
        unbound = [disk.number for disk in directory.disks.values() if not disk.bound]
        expected = min(unbound) if unbound else self.expect_add(directory, -1)
        assert directory.mounted.control(LOOP_CTL_GET_FREE) == expected

    @rule(data=st.data(), number=st.sampled_from(NUMBERS))
    def ctl_remove(self, data: st.DataObject, number: int) -> None:
        directory = self.pick(data)
        name = directory.named(number)
        if number < 0:
            expected = errno.EINVAL
        elif name is None:
            expected = errno.EACCES if number in self.taken() else errno.ENODEV
        else:
            expected = self.expect_removed(directory, name)
        assert directory.mounted.control(LOOP_CTL_REMOVE, number) == -expected

    def expect_removed(self, directory: Directory, name: bytes) -> int:
        if directory.disks[name].busy:
            return errno.EBUSY
        del directory.disks[name]
        directory.links.discard(name.decode())
        return 0

    # --- names ---------------------------------------------------------------------

    @staticmethod
    def names(directory: Directory) -> st.SearchStrategy[bytes]:
        """Those that there are, more often than others."""
        return st.sampled_from(sorted(directory.disks) * 3 + list(NAMES))

    @rule(data=st.data())
    def unlink(self, data: st.DataObject) -> None:
        directory = self.pick(data)
        name = data.draw(self.names(directory))
        if name in directory.disks:
            expected = self.expect_removed(directory, name)
        else:
            expected = errno.EPERM if name == CONTROL else errno.ENOENT
        assert directory.mounted.kernel.ask(fuse.FUSE_UNLINK, name + b"\0").code == expected

    @rule(data=st.data(), flags=st.sampled_from([0, 0, EXCHANGE, NOREPLACE, 4]))
    def rename(self, data: st.DataObject, flags: int) -> None:
        directory = self.pick(data)
        name, to = (data.draw(self.names(directory)) for _ in range(2))
        there = to in directory.disks or to == CONTROL
        if flags == NOREPLACE and there:
            return  # the kernel does not ask
        expected = self.expect_renamed(directory, name, to, flags)
        body = fuse.RENAME2_IN.pack(1, flags) + name + b"\0" + to + b"\0"
        assert directory.mounted.kernel.ask(fuse.FUSE_RENAME2, body).code == expected

    def expect_renamed(self, directory: Directory, name: bytes, to: bytes, flags: int) -> int:
        disks = directory.disks
        if name != CONTROL and name not in disks:
            return errno.ENOENT
        if CONTROL in (name, to):
            return errno.EPERM
        if flags == 4:
            return errno.EINVAL
        if flags == EXCHANGE:
            if to not in disks:
                return errno.ENOENT
            disks[name], disks[to] = disks[to], disks[name]
        elif to == b"loop5p1":
            return errno.EPERM
        elif to != name:
            if to in disks and (code := self.expect_removed(directory, to)):
                return code
            disks[to] = disks.pop(name)
        own = {name for name, disk in disks.items() if name == b"loop%d" % disk.number}
        directory.links = {name.decode() for name in own}
        return 0

    # --- devices -------------------------------------------------------------------

    def all(self) -> Iterator[tuple[Directory, bytes]]:
        for directory in self.there:
            for name in directory.disks:
                yield directory, name

    def device(self, data: st.DataObject) -> tuple[Mounted, bytes, Disk]:
        directory, name = data.draw(st.sampled_from(list(self.all())))
        return directory.mounted, name, directory.disks[name]

    @precondition(lambda self: any(self.all()))
    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        mounted, name, disk = self.device(data)
        disk.handles.append(mounted.handle(name))

    @precondition(lambda self: any(directory.disks[name].handles for directory, name in self.all()))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        open_ones = [(d, name) for d, name in self.all() if d.disks[name].handles]
        directory, name = data.draw(st.sampled_from(open_ones))
        disk = directory.disks[name]
        directory.mounted.close(disk.handles.pop())
        self.expect_closed(disk)

    @precondition(lambda self: any(self.all()))
    @rule(data=st.data())
    def bind(self, data: st.DataObject) -> None:
        mounted, name, disk = self.device(data)
        handle = mounted.handle(name)
        expected = -errno.EBUSY if disk.bound else 0
        assert configure(mounted, handle, self.image, LoopInfo64()) == expected
        disk.bound = True
        mounted.close(handle)
        self.expect_closed(disk)

    @precondition(lambda self: any(self.all()))
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        mounted, name, disk = self.device(data)
        handle = mounted.handle(name)
        assert mounted.ioctl(handle, LOOP_CLR_FD) == (0 if disk.bound else -errno.ENXIO)
        disk.autoclear = disk.bound
        mounted.close(handle)
        self.expect_closed(disk)

    def expect_closed(self, disk: Disk) -> None:
        if disk.autoclear and not disk.handles:
            disk.bound = disk.autoclear = False

    # --- what holds at all times -----------------------------------------------------

    @invariant()
    def what_is_listed_is_what_there_is(self) -> None:
        for directory in self.there:
            filesystem = directory.mounted.filesystem
            assert sorted(names(directory.mounted)) == sorted([CONTROL, *directory.disks])
            numbers = {disk.number for disk in directory.disks.values()}
            assert filesystem.instance.devices.keys() == numbers
            for name, disk in directory.disks.items():
                node = filesystem.nodes.by_name[name]
                assert node.ino == disk.number + 3
                assert node.device is filesystem.instance.devices[disk.number]
                assert filesystem.nodes.of_inode(node.ino) is node
                assert node.device.open_count == len(disk.handles)
            assert len(filesystem.nodes.by_id) == 3 + 2 * len(numbers)

    @invariant()
    def no_device_is_of_two_instances(self) -> None:
        everything = [disk.number for d in self.there for disk in d.disks.values()]
        assert len(everything) == len(set(everything))
        assert self.instances.devices.keys() == set(everything)

    @invariant()
    def links_lead_to_devices_of_that_name(self) -> None:
        for directory in self.there:
            links = set()
            for action, name in directory.mounted.told:
                if action == "add":
                    assert name not in links
                    links.add(name)
                else:
                    links.remove(name)
            assert links == directory.links


def _closed(directory: Directory) -> bool:
    return not any(disk.handles for disk in directory.disks.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=rounds(40, 150), stateful_step_count=50, deadline=None)
