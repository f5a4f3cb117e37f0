"""An instance: one loopfs superblock with its control node, its devices and their limit.

Minor numbers are unique across all instances (patch 2/8), so the instances share one
:class:`~loopfs.driver.minors.Minors`. The names of the nodes, the inode numbers and the option
``max`` are those of loopfs.c.
"""

from __future__ import annotations

import errno

from loopfs.driver.event import Event, uevent
from loopfs.driver.loop import LoopDevice, State
from loopfs.driver.minors import MINORMASK, Minors, NumberSet
from loopfs.driver.ucounts import MAX_DEVICES, UserNamespace
from loopfs.errors import DriverError


class Instance:
    """A mount of type loop: its devices and the limit of their number.

    Args:
        minors: the numbers, shared with the other instances.
        max_devices: the mount option ``max``.
        owner: the user namespace; the devices count for it and its ancestors.
    """

    def __init__(
        self,
        minors: Minors,
        max_devices: int = MAX_DEVICES,
        owner: UserNamespace | None = None,
    ) -> None:
        self.minors = minors
        self.owner = owner or UserNamespace(0, None, MAX_DEVICES)
        self.max_devices = max_devices
        self.devices: dict[int, LoopDevice] = {}
        self.events: list[Event] = []
        self._unbound = NumberSet()
        self._renamed: dict[str, LoopDevice] = {}

    def take_events(self) -> list[Event]:
        """Return the events since the last call, and remove them from the list."""
        events = list(self.events)
        self.events.clear()
        return events

    # --- the control node's ioctls -------------------------------------------

    def ctl_add(self, number: int) -> int:
        """Create the device ``number``, or the next free one if it is negative (LOOP_CTL_ADD).

        Returns:
            the device's number.
        Raises:
            DriverError: EEXIST (an instance or the host uses the number), EINVAL (beyond the
                last minor number), ENOSPC (the instance has ``max`` devices, or a user namespace
                has reached its limit).
        """
        if number > MINORMASK:
            raise DriverError(errno.EINVAL, f"{number} is beyond the last minor number")
        if number >= 0 and self.minors.taken(number):
            raise DriverError(errno.EEXIST, f"loop{number} exists")
        if len(self.devices) >= self.max_devices:
            raise DriverError(errno.ENOSPC, f"the instance already has {self.max_devices} devices")
        if number < 0:
            number = self.minors.lowest_free()
        if f"loop{number}" in self._renamed:
            raise DriverError(errno.EEXIST, f"another device was renamed to loop{number}")
        self.owner.charge()
        self.minors.claim(number, self)
        device = LoopDevice(number, self.minors, self.events, self._unbound)
        self.devices[number] = device
        self.events.append(uevent("add", device))
        return number

    def ctl_remove(self, number: int) -> int:
        """Remove a device that is unbound and closed (LOOP_CTL_REMOVE).

        Raises:
            DriverError: EINVAL (negative number), ENODEV (no such device), EACCES (the device
                belongs to another instance or to the host, patch 2/8), EBUSY (bound or open).
        """
        if number < 0:
            raise DriverError(errno.EINVAL, "a device number cannot be negative")
        device = self.devices.get(number)
        if device is None:
            if self.minors.taken(number):
                raise DriverError(errno.EACCES, f"loop{number} does not belong to this instance")
            raise DriverError(errno.ENODEV, f"there is no loop{number}")
        self.remove_unused(device)
        return 0

    def ctl_get_free(self) -> int:
        """Return the lowest unbound device; create one if there is none (LOOP_CTL_GET_FREE).

        Raises:
            DriverError: ENOSPC, as :meth:`ctl_add`.
        """
        number = self._unbound.lowest()
        return self.ctl_add(-1) if number is None else number

    def detach_unused(self) -> None:
        """Detach each device at once or at its last close, when nobody is left to detach it."""
        for device in list(self.devices.values()):
            device.detach_when_unused()

    def shut_down(self) -> None:
        """Remove all devices together with the superblock."""
        for device in list(self.devices.values()):
            device.shut_down()
            self._remove(device)

    # --- the directory (patch 2/8) ---------------------------------------------

    def remove_unused(self, device: LoopDevice) -> None:
        """Remove the device, as unlink(2) of its node does.

        Raises:
            DriverError: EBUSY if it is bound or open.
        """
        if device.state is not State.Lo_unbound or device.open_count:
            raise DriverError(errno.EBUSY, f"{device.name} is bound or open")
        device.partitions.drop_all()
        self._remove(device)

    def rename(self, device: LoopDevice, name: str) -> None:
        """Change the name of a device's node; the device itself keeps its name."""
        self._forget_name(device)
        if name != device.name:
            self._renamed[name] = device

    def _forget_name(self, device: LoopDevice) -> None:
        self._renamed = {n: d for n, d in self._renamed.items() if d is not device}

    def _remove(self, device: LoopDevice) -> None:
        device.state = State.Lo_deleting
        del self.devices[device.number]
        self._unbound.discard(device.number)
        self._forget_name(device)
        self.minors.free(device.number)
        self.owner.uncharge()
        self.events.append(uevent("remove", device))
