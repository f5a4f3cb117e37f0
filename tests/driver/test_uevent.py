"""The contents of uevents; those of the kernel were recorded on Linux 6.18."""

from __future__ import annotations

import errno

import pytest

from loopfs.driver.event import Uevent, uevent
from loopfs.driver.instance import Instance
from loopfs.driver.partition import Found
from loopfs.driver.uevent import message, synthesize
from loopfs.errors import DriverError
from tests.driver.fakes import bind, new_device, new_instance

UUID = "12345678-1234-1234-1234-123456789abC"


def told(instance: Instance) -> list[Uevent]:
    return [event for event in instance.take_events() if isinstance(event, Uevent)]


def test_what_a_disk_says() -> None:
    device = new_device(new_instance())
    assert message(uevent("change", device, "RESIZE=1")) == [
        f"change@/devices/virtual/block/{device.name}",
        "ACTION=change",
        f"DEVPATH=/devices/virtual/block/{device.name}",
        "SUBSYSTEM=block",
        "RESIZE=1",
        "MAJOR=7",
        f"MINOR={device.number}",
        f"DEVNAME={device.name}",
        "DEVTYPE=disk",
        f"DISKSEQ={device.diskseq}",
    ]


def test_what_a_partition_says() -> None:
    instance = new_instance()
    device = new_device(instance)
    bind(device)
    device.partitions.scanned([Found(3, 4096, 4096, "root")])
    words = message(told(instance)[-1])
    path = f"/devices/virtual/block/{device.name}/{device.name}p3"
    assert words[:4] == [f"add@{path}", "ACTION=add", f"DEVPATH={path}", "SUBSYSTEM=block"]
    assert words[-4:] == [
        "DEVTYPE=partition",
        f"DISKSEQ={device.diskseq}",
        "PARTN=3",
        "PARTNAME=root",
    ]


def test_a_table_is_announced_before_its_partitions_and_only_if_it_exists() -> None:
    instance = new_instance()
    device = new_device(instance)
    bind(device)
    instance.take_events()
    device.partitions.scanned([])
    assert told(instance) == []
    device.partitions.scanned([Found(1, 4096, 4096), Found(2, 8192, 4096)])
    assert [(e.action, e.device.name) for e in told(instance)] == [
        ("change", device.name),
        ("add", f"{device.name}p1"),
        ("add", f"{device.name}p2"),
    ]


def test_a_removed_medium_is_announced_with_its_own_number() -> None:
    instance = new_instance()
    device = new_device(instance)
    opener, _ = bind(device)
    bound = device.diskseq
    instance.take_events()
    device.clr_fd()
    device.release(opener)
    assert [(e.environment, e.diskseq) for e in told(instance)] == [
        ((), bound),
        (("DISK_MEDIA_CHANGE=1",), bound),
    ]
    assert device.diskseq > bound


@pytest.mark.parametrize(
    ("text", "action", "environment"),
    [
        ("add", "add", ("SYNTH_UUID=0",)),
        ("change\n", "change", ("SYNTH_UUID=0",)),
        ("offline\0", "offline", ("SYNTH_UUID=0",)),
        (f"bind {UUID}", "bind", (f"SYNTH_UUID={UUID}",)),
        (
            f"remove {UUID} A=1 b=xYz\n",
            "remove",
            (f"SYNTH_UUID={UUID}", "SYNTH_ARG_A=1", "SYNTH_ARG_b=xYz"),
        ),
    ],
)
def test_what_can_be_written(text: str, action: str, environment: tuple[str, ...]) -> None:
    instance = new_instance()
    device = new_device(instance)
    instance.take_events()
    synthesize(device, text)
    assert told(instance) == [uevent(action, device, *environment)]
    assert instance.devices == {device.number: device}, "a synthetic remove removes nothing"


@pytest.mark.parametrize(
    "text",
    ["", "\n", "changes", "CHANGE", " change", "change ", "change 0", f"change {UUID[:-1]}g"]
    + [f"change {UUID} {bad}" for bad in ("A", "A=", "=1", "A=1=2", "A=é", "A_B=1", "A=1 ")],
)
def test_what_cannot_be_written(text: str) -> None:
    instance = new_instance()
    device = new_device(instance)
    instance.take_events()
    with pytest.raises(DriverError) as problem:
        synthesize(device, text)
    assert problem.value.code == errno.EINVAL
    assert instance.take_events() == []
