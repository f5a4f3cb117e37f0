"""Two instances that share numbers, under random calls, against a model of their rules.

The model says for each call whether it is refused and with which errno, and what state each
device is in; it knows nothing of the driver's code.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loopfs.driver.bdev import Opener
from loopfs.driver.event import Uevent
from loopfs.driver.instance import Instance
from loopfs.driver.ioctl import control_ioctl, ioctl
from loopfs.driver.loop import LoopDevice
from loopfs.driver.minors import Minors
from loopfs.errors import DriverError
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_READ_ONLY,
    LOOP_CLR_FD,
    LOOP_CONFIGURE,
    LOOP_CTL_ADD,
    LOOP_CTL_GET_FREE,
    LOOP_CTL_REMOVE,
    LOOP_GET_STATUS64,
    LOOP_SET_STATUS64,
    LoopConfig,
    LoopInfo64,
)
from tests.driver.fakes import FakeBacking, FakeCaller
from tests.support.rounds import rounds

FIRST = 4  # of the numbers that are handed out
HOST = frozenset({5})
NUMBERS = range(9)
MOST = 3
FILE = 8192


@dataclass
class Opened:
    write: bool
    exclusive: bool
    real: Opener


@dataclass
class Disk:
    """A device, as the rules have it."""

    owner: int
    state: str = "unbound"
    autoclear: bool = False
    read_only: bool = False
    freed_for: int | None = None  # whose umount has freed it
    capacity: int = 0
    file: FakeBacking | None = None
    openers: list[Opened] = field(default_factory=list)

    def free(self) -> None:
        self.state, self.autoclear = "unbound", False
        self.capacity, self.file = 0, None


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.minors = Minors(FIRST, HOST)
        self.instances = [Instance(self.minors, MOST), Instance(self.minors)]
        self.most = [MOST, 2**20]
        self.alive = [True, True]
        self.disks: dict[int, Disk] = {}
        self.files: list[FakeBacking] = []
        self.left_open: list[tuple[LoopDevice, Opener]] = []
        self.listed: list[list[LoopDevice]] = [[], []]

    # --- helpers -------------------------------------------------------------------

    def attempt(self, expected: int, call: Callable[[], int]) -> int | None:
        """Make a call that shall fail with ``expected``, or shall not if that is 0."""
        try:
            result = call()
        except DriverError as problem:
            if problem.code != expected:
                raise
            return None
        assert expected == 0, f"not refused with {errno.errorcode[expected]}"
        return result

    def control(self, which: int, expected: int, cmd: int, arg: int) -> int | None:
        return self.attempt(expected, lambda: control_ioctl(self.instances[which], cmd, arg))

    def own(self, which: int) -> dict[int, Disk]:
        return {n: disk for n, disk in self.disks.items() if disk.owner == which}

    def lowest_free(self) -> int:
        return next(n for n in range(FIRST, 100) if n not in self.disks and n not in HOST)

    def device(self, number: int) -> LoopDevice:
        return self.instances[self.disks[number].owner].devices[number]

    def add(self, which: int, number: int) -> None:
        full = len(self.own(which)) >= self.most[which]
        taken = number in self.disks or number in HOST
        expected = errno.EEXIST if taken else errno.ENOSPC if full else 0
        chosen = number if number >= 0 else self.lowest_free()
        if self.control(which, expected, LOOP_CTL_ADD, number) is not None:
            assert chosen not in self.disks
            self.disks[chosen] = Disk(which)

    def pick(self, data: st.DataObject, disks: dict[int, Disk]) -> int:
        return int(data.draw(st.sampled_from(sorted(disks)), label="device"))

    # --- the control node ------------------------------------------------------------

    @initialize()
    def something_is_there(self) -> None:
        self.add(0, -1)
        self.add(1, -1)

    @rule(which=st.integers(0, 1), number=st.sampled_from([-1, *NUMBERS]))
    def ctl_add(self, which: int, number: int) -> None:
        if self.alive[which]:
            self.add(which, number)

    @rule(which=st.integers(0, 1), number=st.sampled_from([-1, *NUMBERS]))
    def ctl_remove(self, which: int, number: int) -> None:
        if not self.alive[which]:
            return
        disk = self.disks.get(number)
        if number < 0:
            expected = errno.EINVAL
        elif disk is None:
            expected = errno.EACCES if number in HOST else errno.ENODEV
        elif disk.owner != which:
            expected = errno.EACCES
        else:
            expected = errno.EBUSY if disk.openers or disk.state != "unbound" else 0
        if self.control(which, expected, LOOP_CTL_REMOVE, number) is not None:
            del self.disks[number]

    @rule(which=st.integers(0, 1))
    def ctl_get_free(self, which: int) -> None:
        if not self.alive[which]:
            return
        own = self.own(which)
        unbound = [n for n, disk in own.items() if disk.state == "unbound"]
        full = len(own) >= self.most[which]
        expected = errno.ENOSPC if not unbound and full else 0
        wanted = min(unbound, default=self.lowest_free())
        number = self.control(which, expected, LOOP_CTL_GET_FREE, 0)
        if number is not None:
            assert number == wanted
            self.disks.setdefault(number, Disk(which))

    @rule(most=st.integers(0, 4))
    def remount(self, most: int) -> None:
        self.most[0] = self.instances[0].max_devices = most

    # --- a device ----------------------------------------------------------------------

    @precondition(lambda self: self.disks)
    @rule(data=st.data(), write=st.booleans(), exclusive=st.booleans())
    def open(self, data: st.DataObject, write: bool, exclusive: bool) -> None:
        number = self.pick(data, self.disks)
        disk, device = self.disks[number], self.device(number)
        claimed = any(opened.exclusive for opened in disk.openers)
        if exclusive and claimed:
            expected = errno.EBUSY
        elif disk.state == "rundown":
            expected = errno.ENXIO
        else:
            expected = 0
        made: list[Opener] = []

        def call() -> int:
            made.append(device.open(write=write, exclusive=exclusive))
            return 0

        if self.attempt(expected, call) is not None:
            disk.openers.append(Opened(write, exclusive, made[0]))

    def opened(self) -> dict[int, Disk]:
        return {n: disk for n, disk in self.disks.items() if disk.openers}

    @precondition(lambda self: self.opened())
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        number = self.pick(data, self.opened())
        disk = self.disks[number]
        gone = disk.openers.pop(data.draw(st.integers(0, len(disk.openers) - 1), label="opener"))
        self.device(number).release(gone.real)
        last = not disk.openers
        if last and (disk.state == "rundown" or (disk.state == "bound" and disk.autoclear)):
            disk.free()

    def through(self, data: st.DataObject) -> tuple[Disk, LoopDevice, Opened]:
        number = self.pick(data, self.opened())
        disk = self.disks[number]
        opened: Opened = data.draw(st.sampled_from(disk.openers), label="opener")
        return disk, self.device(number), opened

    @precondition(lambda self: self.opened())
    @rule(
        data=st.data(),
        writable=st.booleans(),
        flags=st.sampled_from([0, LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY, 5, 2]),
        offset=st.sampled_from([0, 512, 4096, FILE, 2**63]),
        sizelimit=st.sampled_from([0, 1024, 2 * FILE]),
    )
    def configure(
        self, data: st.DataObject, writable: bool, flags: int, offset: int, sizelimit: int
    ) -> None:
        disk, device, opened = self.through(data)
        claimed = any(other.exclusive for other in disk.openers)
        if disk.state != "unbound" or (claimed and not opened.exclusive):
            expected = errno.EBUSY
        elif flags == 2:
            expected = errno.EINVAL
        else:
            expected = errno.EOVERFLOW if offset == 2**63 else 0
        file, caller = FakeBacking(FILE, writable=writable), FakeCaller()
        self.files.append(file)
        info = LoopInfo64(offset=offset, sizelimit=sizelimit, flags=flags)
        argument = caller.put(LoopConfig(caller.open_file(file), 0, info).pack())
        call = lambda: ioctl(device, opened.real, caller, LOOP_CONFIGURE, argument)  # noqa: E731
        if self.attempt(expected, call) is not None:
            disk.state, disk.file, disk.freed_for = "bound", file, None
            disk.autoclear = bool(flags & LO_FLAGS_AUTOCLEAR)
            disk.read_only = not (writable and opened.write) or bool(flags & LO_FLAGS_READ_ONLY)
            disk.capacity = shown(offset, sizelimit)

    @precondition(lambda self: self.disks)
    @rule(data=st.data(), process=st.integers(1, 2))
    def umounted(self, data: st.DataObject, process: int) -> None:
        number = self.pick(data, self.disks)
        self.device(number).freed_by_umount(process)
        if self.disks[number].state != "bound" or self.disks[number].autoclear:
            self.disks[number].freed_for = process

    @precondition(lambda self: self.opened())
    @rule(data=st.data(), process=st.integers(1, 2))
    def clr_fd(self, data: st.DataObject, process: int) -> None:
        disk, device, opened = self.through(data)
        freed = disk.state == "unbound" and disk.freed_for == process
        expected = 0 if freed or disk.state == "bound" else errno.ENXIO
        caller = FakeCaller(process=process)
        call = lambda: ioctl(device, opened.real, caller, LOOP_CLR_FD, 0)  # noqa: E731
        if freed:
            disk.freed_for = None
            self.attempt(expected, call)
        elif self.attempt(expected, call) is not None:
            disk.autoclear = True
            if len(disk.openers) == 1:
                disk.state = "rundown"

    @precondition(lambda self: self.opened())
    @rule(
        data=st.data(),
        capable=st.booleans(),
        autoclear=st.booleans(),
        offset=st.sampled_from([0, 512, FILE]),
    )
    def set_status(self, data: st.DataObject, capable: bool, autoclear: bool, offset: int) -> None:
        disk, device, opened = self.through(data)
        if not (opened.write or capable):
            expected = errno.EPERM
        else:
            expected = 0 if disk.state == "bound" else errno.ENXIO
        caller = FakeCaller(capable=capable)
        info = LoopInfo64(offset=offset, flags=LO_FLAGS_AUTOCLEAR * autoclear | LO_FLAGS_READ_ONLY)
        argument = caller.put(info.pack())
        call = lambda: ioctl(device, opened.real, caller, LOOP_SET_STATUS64, argument)  # noqa: E731
        if self.attempt(expected, call) is not None:
            disk.autoclear = autoclear
            disk.capacity = shown(offset, 0)

    @precondition(lambda self: self.opened())
    @rule(data=st.data())
    def get_status(self, data: st.DataObject) -> None:
        disk, device, opened = self.through(data)
        caller = FakeCaller()
        expected = 0 if disk.state == "bound" else errno.ENXIO
        call = lambda: ioctl(  # noqa: E731
            device, opened.real, caller, LOOP_GET_STATUS64, caller.BASE
        )
        if self.attempt(expected, call) is not None:
            info = LoopInfo64.unpack(bytes(caller.memory))
            assert disk.file is not None
            assert info.inode == disk.file.identity.ino
            assert bool(info.flags & LO_FLAGS_AUTOCLEAR) == disk.autoclear
            assert bool(info.flags & LO_FLAGS_READ_ONLY) == disk.read_only

    # --- the end of an instance ------------------------------------------------------------

    @precondition(lambda self: all(self.alive))
    @rule(which=st.integers(0, 1))
    def shut_down(self, which: int) -> None:
        own = self.own(which)
        real = {number: self.device(number) for number in own}
        self.instances[which].shut_down()
        self.alive[which] = False
        for number, disk in own.items():
            self.left_open += [(real[number], opened.real) for opened in disk.openers]
            del self.disks[number]

    @precondition(lambda self: self.left_open)
    @rule()
    def close_what_is_left(self) -> None:
        device, opener = self.left_open.pop()
        device.release(opener)

    # --- what holds at all times -----------------------------------------------------------

    @invariant()
    def devices_are_those_of_the_model(self) -> None:
        for which, instance in enumerate(self.instances):
            own = self.own(which)
            assert instance.devices.keys() == own.keys()
            for number, disk in own.items():
                device = instance.devices[number]
                assert device.number == number
                assert device.state.name == f"Lo_{disk.state}"
                assert device.openers == {opened.real for opened in disk.openers}
                assert (device.capacity, device.read_only) == (disk.capacity, disk.read_only)
                assert device.backing is disk.file
                assert self.minors.owner(number) is instance

    @invariant()
    def numbers_belong_to_one(self) -> None:
        for number in NUMBERS:
            assert self.minors.taken(number) == (number in self.disks or number in HOST)
            if number not in self.disks:
                assert self.minors.owner(number) is None

    @invariant()
    def a_file_is_closed_once_and_not_while_it_is_held(self) -> None:
        held = [disk.file for disk in self.disks.values() if disk.file]
        for file in self.files:
            assert file.closed == (0 if any(file is other for other in held) else 1)

    @invariant()
    def events_tell_which_devices_there_are(self) -> None:
        for which, instance in enumerate(self.instances):
            listed = self.listed[which]
            for event in instance.take_events():
                if not isinstance(event, Uevent) or event.device is not event.device.disk:
                    continue
                if event.action == "add":
                    assert event.device not in listed
                    listed.append(event.device.disk)
                elif event.action == "remove":
                    listed.remove(event.device.disk)
            assert {device.number: device for device in listed} == instance.devices


def shown(offset: int, sizelimit: int) -> int:
    """Bytes that a device shows of a file of ``FILE`` bytes."""
    rest = max(0, FILE - offset)
    return min(rest, sizelimit) if sizelimit else rest


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=rounds(60, 200), stateful_step_count=40, deadline=None)
