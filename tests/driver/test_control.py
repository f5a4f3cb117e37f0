"""The control node and the numbers: patch 2/8, and loop_control_ioctl of the running kernels."""

from __future__ import annotations

import errno

import pytest

from loopfs.driver.event import Uevent, uevent
from loopfs.driver.instance import Instance
from loopfs.driver.ioctl import control_ioctl
from loopfs.driver.loop import State
from loopfs.driver.minors import MINORMASK, Minors, longest_gap
from loopfs.errors import DriverError
from loopfs.uapi.loop import (
    LOOP_CTL_ADD,
    LOOP_CTL_GET_FREE,
    LOOP_CTL_REMOVE,
    LOOP_SET_FD,
    LoopConfig,
)
from tests.driver.fakes import FakeBacking, bind, closings, new_device, new_instance, state_of


def add(instance: Instance, number: int = -1) -> int:
    return control_ioctl(instance, LOOP_CTL_ADD, number)


def remove(instance: Instance, number: int) -> int:
    return control_ioctl(instance, LOOP_CTL_REMOVE, number)


def get_free(instance: Instance) -> int:
    return control_ioctl(instance, LOOP_CTL_GET_FREE, 0)


def refused(instance: Instance, cmd: int, number: int) -> int:
    before = dict(instance.devices)
    with pytest.raises(DriverError) as problem:
        control_ioctl(instance, cmd, number)
    assert instance.devices == before
    return problem.value.code


# --- LOOP_CTL_ADD ----------------------------------------------------------------


def test_a_new_instance_has_no_devices() -> None:
    instance = new_instance()
    assert instance.devices == {}
    assert instance.take_events() == []


def test_add_makes_the_device_that_is_asked_for() -> None:
    instance = new_instance()
    assert add(instance, 42) == 42
    assert instance.devices[42].name == "loop42"
    assert instance.devices[42].state is State.Lo_unbound


def test_add_takes_the_lowest_free_number_if_none_is_asked_for() -> None:
    instance = new_instance()
    add(instance, 1)
    assert [add(instance), add(instance), add(instance)] == [0, 2, 3]


def test_add_of_a_device_of_the_instance_is_refused() -> None:
    instance = new_instance()
    add(instance, 5)
    assert refused(instance, LOOP_CTL_ADD, 5) == errno.EEXIST


def test_the_last_minor_number_can_be_had_and_none_beyond() -> None:
    instance = new_instance()
    assert add(instance, MINORMASK) == MINORMASK == 0xFFFFF
    assert refused(instance, LOOP_CTL_ADD, MINORMASK + 1) == errno.EINVAL


def test_all_numbers_in_use() -> None:
    instance = new_instance(Minors(first=MINORMASK))
    assert add(instance) == MINORMASK
    assert refused(instance, LOOP_CTL_ADD, -1) == errno.ENOSPC


# --- max -------------------------------------------------------------------------


def test_an_instance_has_max_devices_at_most() -> None:
    instance = new_instance(most=2)
    add(instance)
    add(instance)
    assert refused(instance, LOOP_CTL_ADD, -1) == errno.ENOSPC
    assert refused(instance, LOOP_CTL_ADD, 77) == errno.ENOSPC


def test_a_removed_device_makes_room_below_max() -> None:
    instance = new_instance(most=1)
    number = add(instance)
    remove(instance, number)
    assert add(instance) == number


def test_max_can_be_changed_while_devices_are_there() -> None:
    instance = new_instance(most=1)
    add(instance)
    instance.max_devices = 2
    add(instance)
    instance.max_devices = 0  # those that are there stay
    assert len(instance.devices) == 2
    assert refused(instance, LOOP_CTL_ADD, -1) == errno.ENOSPC


def test_max_is_an_instances_own() -> None:
    minors = Minors()
    small, large = new_instance(minors, most=1), new_instance(minors)
    add(small)
    assert [add(large), add(large)] == [1, 2]
    assert refused(small, LOOP_CTL_ADD, -1) == errno.ENOSPC


def test_a_refused_device_takes_no_number() -> None:
    minors = Minors()
    full, other = new_instance(minors, most=0), new_instance(minors)
    refused(full, LOOP_CTL_ADD, 3)
    assert add(other, 3) == 3


# --- LOOP_CTL_GET_FREE -------------------------------------------------------------


def test_get_free_finds_the_lowest_unbound_device() -> None:
    instance = new_instance()
    for number in (9, 3, 6):
        add(instance, number)
    bind(instance.devices[3])
    assert get_free(instance) == 6
    assert len(instance.devices) == 3


def test_get_free_finds_an_open_device_too() -> None:
    instance = new_instance()
    device = new_device(instance)
    device.open(write=True)
    assert get_free(instance) == device.number


def test_get_free_makes_a_device_if_none_is_unbound() -> None:
    instance = new_instance()
    assert get_free(instance) == 0
    bind(instance.devices[0])
    assert get_free(instance) == 1
    assert get_free(instance) == 1


def test_get_free_in_a_full_instance() -> None:
    instance = new_instance(most=1)
    device = new_device(instance)
    assert get_free(instance) == device.number
    bind(device)
    assert refused(instance, LOOP_CTL_GET_FREE, 0) == errno.ENOSPC


def test_a_device_that_is_being_detached_is_not_free() -> None:
    instance = new_instance()
    device = new_device(instance)
    bind(device)
    device.clr_fd()
    assert state_of(device) is State.Lo_rundown
    assert get_free(instance) != device.number


# --- LOOP_CTL_REMOVE -----------------------------------------------------------------


def test_a_removed_device_is_gone_and_its_number_free() -> None:
    instance = new_instance()
    device = new_device(instance)
    assert remove(instance, device.number) == 0
    assert instance.devices == {}
    assert state_of(device) is State.Lo_deleting
    with pytest.raises(DriverError) as problem:
        device.open(write=False)
    assert problem.value.code == errno.ENXIO
    assert add(instance) == device.number


def test_a_device_that_is_not_there_cannot_be_removed() -> None:
    assert refused(new_instance(), LOOP_CTL_REMOVE, 3) == errno.ENODEV


def test_a_negative_number_cannot_be_removed() -> None:
    instance = new_instance()
    add(instance)
    assert refused(instance, LOOP_CTL_REMOVE, -1) == errno.EINVAL


def test_an_open_device_cannot_be_removed() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener = device.open(write=False)
    assert refused(instance, LOOP_CTL_REMOVE, device.number) == errno.EBUSY
    device.release(opener)
    assert remove(instance, device.number) == 0


def test_a_bound_device_cannot_be_removed() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, backing = bind(device)
    device.release(opener)
    assert refused(instance, LOOP_CTL_REMOVE, device.number) == errno.EBUSY
    assert state_of(device) is State.Lo_bound
    assert closings(backing) == [0]


def test_a_device_in_rundown_cannot_be_removed() -> None:
    instance = new_instance()
    device = new_device(instance)
    bind(device)
    device.clr_fd()
    assert refused(instance, LOOP_CTL_REMOVE, device.number) == errno.EBUSY


def test_an_unknown_command_is_not_implemented() -> None:
    for cmd in (LOOP_SET_FD, 0x4C83, 0):
        assert refused(new_instance(), cmd, 0) == errno.ENOSYS


# --- several instances -----------------------------------------------------------------


def test_numbers_are_global_over_instances() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    assert [add(first), add(second), add(first), add(second)] == [0, 1, 2, 3]
    assert refused(second, LOOP_CTL_ADD, 0) == errno.EEXIST


def test_another_instances_device_cannot_be_removed() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    number = add(first)
    assert refused(second, LOOP_CTL_REMOVE, number) == errno.EACCES
    assert number in first.devices


def test_get_free_gives_no_other_instances_device() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    assert get_free(first) == 0
    assert get_free(second) == 1
    assert get_free(first) == 0


def test_a_number_is_given_to_the_next_instance_that_requests_one() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    number = add(first)
    assert minors.owner(number) is first
    remove(first, number)
    assert minors.owner(number) is None
    assert add(second) == number
    assert minors.owner(number) is second


def test_ours_begin_after_the_hosts() -> None:
    instance = new_instance(Minors(first=8))
    assert [add(instance), get_free(instance), add(instance)] == [8, 8, 9]


def test_the_hosts_devices_belong_to_nobody() -> None:
    instance = new_instance(Minors(first=8, host=frozenset({0, 3, 9})))
    assert refused(instance, LOOP_CTL_ADD, 3) == errno.EEXIST
    assert refused(instance, LOOP_CTL_REMOVE, 3) == errno.EACCES
    assert [add(instance), add(instance)] == [8, 10]


def test_a_number_below_the_first_can_be_asked_for_but_is_not_handed_out() -> None:
    instance = new_instance(Minors(first=8))
    assert add(instance, 2) == 2
    remove(instance, 2)
    assert add(instance) == 8


# --- events ------------------------------------------------------------------------------


def test_adding_and_removing_send_events() -> None:
    instance = new_instance()
    device = new_device(instance)
    assert instance.take_events() == [uevent("add", device)]
    remove(instance, device.number)
    assert instance.take_events() == [uevent("remove", device)]
    assert instance.take_events() == []


def test_events_are_an_instances_own() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    add(first)
    assert second.take_events() == []
    assert len(first.take_events()) == 1


def test_each_disk_has_a_sequence_number_of_its_own() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    device = new_device(first)
    seen = [device.diskseq, new_device(second).diskseq]
    remove(first, device.number)
    again = new_device(first)
    assert again.number == device.number
    seen.append(again.diskseq)
    assert seen == sorted(set(seen))


# --- the end of an instance ----------------------------------------------------------------


def test_shutdown_frees_backing_files_whatever_the_state() -> None:
    instance = new_instance()
    bound, open_bound, detached = (new_device(instance) for _ in range(3))
    opener, first = bind(bound)
    bound.release(opener)
    held, second = bind(open_bound)
    closing, third = bind(detached)
    detached.clr_fd()
    instance.shut_down()
    assert closings(first, second, third) == [1, 1, 1]
    assert instance.devices == {}
    # The kernel lets go of open files afterwards.
    open_bound.release(held)
    detached.release(closing)
    assert closings(first, second, third) == [1, 1, 1]
    assert open_bound.state is detached.state is State.Lo_deleting


def test_shutdown_gives_the_numbers_back() -> None:
    minors = Minors()
    first, second = new_instance(minors), new_instance(minors)
    add(first)
    add(first)
    kept = add(second)
    first.take_events()
    first.shut_down()
    assert [event.action for event in first.take_events() if isinstance(event, Uevent)] == [
        "remove",
        "remove",
    ]
    assert list(second.devices) == [kept]
    assert [add(second), add(second)] == [0, 1]


def test_nothing_is_read_from_a_device_of_an_instance_that_is_gone() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, _ = bind(device)
    instance.shut_down()
    assert device.extent(0, 512) is None
    with pytest.raises(DriverError) as problem:
        device.configure(opener, FakeBacking(), LoopConfig())
    assert problem.value.code == errno.EBUSY


def test_shutdown_of_an_instance_whose_devices_are_stacked() -> None:
    instance = new_instance()
    lower, upper = new_device(instance), new_device(instance)
    _, file = bind(lower)
    _, node = bind(upper, FakeBacking(node_of=lower))
    instance.shut_down()
    assert closings(file, node) == [1, 1]


# --- nobody is left ----------------------------------------------------------------


def test_devices_are_detached_as_soon_as_they_are_not_open() -> None:
    instance = new_instance()
    free, bound, open_bound, detached = (new_device(instance) for _ in range(4))
    opener, first = bind(bound)
    bound.release(opener)
    held, second = bind(open_bound)
    closing, third = bind(detached)
    detached.clr_fd()
    instance.detach_unused()
    assert closings(first, second, third) == [1, 0, 0]
    open_bound.release(held)
    detached.release(closing)
    assert closings(first, second, third) == [1, 1, 1]
    assert {device.state for device in (free, bound, open_bound, detached)} == {State.Lo_unbound}


@pytest.mark.parametrize(
    ("taken", "first"),
    [((), 0), (range(8), 8), ((3, 40), 41), ((*range(8), MINORMASK), 8), ((MINORMASK - 1,), 0)],
)
def test_the_longest_gap(taken: tuple[int, ...], first: int) -> None:
    assert longest_gap(taken) == first
