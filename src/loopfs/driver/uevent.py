"""The contents of a uevent, and uevents that are synthesized (lib/kobject_uevent.c)."""

from __future__ import annotations

import errno

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.event import Uevent, uevent
from loopfs.driver.partition import Partition
from loopfs.errors import DriverError

DEVICES = "/devices/virtual/block"  # the directory of the disks, below /sys
ACTIONS = frozenset({"add", "remove", "change", "move", "online", "offline", "bind", "unbind"})
_UUID = [8, 4, 4, 4, 12]  # number of hexadecimal digits in each group
_HEXADECIMAL = frozenset("0123456789abcdefABCDEF")


def place(device: BlockDevice) -> str:
    """Return the path of a device's directory, relative to that of all disks."""
    return device.name if device is device.disk else f"{device.disk.name}/{device.name}"


def variables(device: BlockDevice, diskseq: int) -> list[str]:
    """Return the variables in every uevent of a device (dev_uevent, disk_uevent, part_uevent)."""
    words = [
        f"MAJOR={device.major}",
        f"MINOR={device.minor}",
        f"DEVNAME={device.name}",
        f"DEVTYPE={'partition' if isinstance(device, Partition) else 'disk'}",
        f"DISKSEQ={diskseq}",
    ]
    if isinstance(device, Partition):
        words.append(f"PARTN={device.number}")
        words += [f"PARTNAME={device.label}"] if device.label else []
    return words


def message(event: Uevent) -> list[str]:
    """Return the strings of a netlink(7) uevent message except SEQNUM, which the kernel adds."""
    path = f"{DEVICES}/{place(event.device)}"
    head = [f"{event.action}@{path}", f"ACTION={event.action}", f"DEVPATH={path}"]
    about = variables(event.device, event.diskseq)
    return [*head, "SUBSYSTEM=block", *event.environment, *about]


def synthesize(device: BlockDevice, text: str) -> None:
    """Send the uevent that was requested through the attribute uevent (kobject_synth_uevent).

    Args:
        text: ``ACTION [UUID [KEY=VALUE]...]``, see Documentation/ABI/testing/sysfs-uevent.
    Raises:
        DriverError: EINVAL if the text is not in this format.
    """
    action, *words = (text[:-1] if text.endswith(("\n", "\0")) else text).split(" ")
    if action not in ACTIONS:
        raise DriverError(errno.EINVAL, f"'{action}' is not a uevent action")
    if not words:
        device.tell(uevent(action, device, "SYNTH_UUID=0"))
        return
    number, *arguments = words
    if not _is_uuid(number) or not all(map(_is_argument, arguments)):
        raise DriverError(errno.EINVAL, "after the action: a UUID, then KEY=VALUE")
    environment = [f"SYNTH_UUID={number}", *(f"SYNTH_ARG_{each}" for each in arguments)]
    device.tell(uevent(action, device, *environment))


def _is_uuid(word: str) -> bool:
    groups = word.split("-")
    return [len(group) for group in groups] == _UUID and _HEXADECIMAL.issuperset("".join(groups))


def _is_argument(word: str) -> bool:
    key, _, value = word.partition("=")
    return all(part.isascii() and part.isalnum() for part in (key, value))
