"""The attributes of a loop disk in sysfs."""

from __future__ import annotations

from loopfs.driver.loop import LoopDevice
from loopfs.driver.sysfs import Attribute, Directory, Item, disk
from loopfs.uapi.loop import LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY
from tests.driver.fakes import FakeBacking, bind, new_device, new_instance


def shown(device: LoopDevice, path: str) -> str:
    item: Item = disk(device)
    for name in path.split("/"):
        assert isinstance(item, Directory)
        item = item[name]
    assert isinstance(item, Attribute)
    return item.show()


def test_a_disk_has_its_number_and_name() -> None:
    instance = new_instance()
    device = instance.devices[instance.ctl_add(300)]
    assert shown(device, "dev") == "7:300"
    assert "DEVNAME=loop300" in shown(device, "uevent").splitlines()
    assert shown(device, "diskseq") == str(device.diskseq)


def test_only_a_bound_device_has_the_directory_loop() -> None:
    device = new_device()
    assert "loop" not in disk(device)
    opener, backing = bind(
        device, FakeBacking(1 << 20), offset=512, sizelimit=1024, flags=LO_FLAGS_AUTOCLEAR
    )
    assert shown(device, "loop/backing_file") == backing.path
    assert [shown(device, f"loop/{n}") for n in ("offset", "sizelimit")] == ["512", "1024"]
    flags = [shown(device, f"loop/{n}") for n in ("autoclear", "partscan", "dio")]
    assert flags == ["1", "0", "0"]
    device.clr_fd()
    device.release(opener)
    assert "loop" not in disk(device)


def test_size_is_in_sectors_and_follows_the_device() -> None:
    device = new_device()
    entries = disk(device)
    size = entries["size"]
    assert isinstance(size, Attribute)
    assert size.show() == "0"
    bind(device, FakeBacking(5000), block_size=4096, flags=LO_FLAGS_READ_ONLY)
    assert size.show() == "9"
    assert shown(device, "ro") == "1"
    assert shown(device, "queue/logical_block_size") == "4096"


def test_an_attribute_kept_from_before_the_detach_shows_no_file() -> None:
    device = new_device()
    opener, _ = bind(device)
    loop = disk(device)["loop"]
    assert isinstance(loop, Directory)
    path = loop["backing_file"]
    assert isinstance(path, Attribute)
    device.clr_fd()
    device.release(opener)
    assert path.show() == ""
