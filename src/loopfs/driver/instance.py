"""An instance: one loopfs superblock with its control node, devices and limit.

Minor numbers are global over all instances (patch 2/8), so instances share their
:class:`~loopfs.driver.minors.Minors`. The node names, inode numbers and the ``max`` option
are loopfs.c's.
"""

from __future__ import annotations

import errno

from loopfs.driver.event import Event, uevent
from loopfs.driver.loop import LoopDevice, State
from loopfs.driver.minors import MINORMASK, Minors, NumberSet
from loopfs.driver.ucounts import MAX_DEVICES, UserNamespace
from loopfs.errors import DriverError


class Instance:
    """One mount of type loop: its devices and how many it may have.

    Args:
        minors: the numbers it shares with the other instances.
        max_devices: the mount option ``max``.
        owner: the user namespace that its devices count for, with those around that.
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
        """What the world must do since the last call."""
        events = list(self.events)
        self.events.clear()
        return events

    # --- the control node's ioctls -------------------------------------------

    def ctl_add(self, number: int) -> int:
        """LOOP_CTL_ADD: make the device ``number``, or the next free one if negative.

        Returns:
            the device's number.
        Raises:
            DriverError: EEXIST (the number is in use by an instance), EINVAL (beyond
                the last minor), ENOSPC (the instance has ``max`` devices, or a user
                namespace what it may have).
        """
        if number > MINORMASK:
            raise DriverError(errno.EINVAL, f"{number} is beyond the last minor number")
        if number >= 0 and self.minors.taken(number):
            raise DriverError(errno.EEXIST, f"loop{number} exists")
        if len(self.devices) >= self.max_devices:
            raise DriverError(errno.ENOSPC, f"the instance has its {self.max_devices} devices")
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
        """LOOP_CTL_REMOVE: remove a device that is unbound and closed.

        Raises:
            DriverError: EINVAL (negative), ENODEV (no such device), EACCES (it is of
                another instance or the host's, patch 2/8), EBUSY (bound or open).
        """
        if number < 0:
            raise DriverError(errno.EINVAL, "a device number is not negative")
        device = self.devices.get(number)
        if device is None:
            if self.minors.taken(number):
                raise DriverError(errno.EACCES, f"loop{number} is not of this instance")
            raise DriverError(errno.ENODEV, f"there is no loop{number}")
        self.remove_unused(device)
        return 0

    def ctl_get_free(self) -> int:
        """LOOP_CTL_GET_FREE: the lowest unbound device, made if there is none.

        Raises:
            DriverError: ENOSPC.
        """
        number = self._unbound.lowest()
        return self.ctl_add(-1) if number is None else number

    def detach_unused(self) -> None:
        """Nobody is left to detach the devices: each is detached when it is not open."""
        for device in list(self.devices.values()):
            device.detach_when_unused()

    def shut_down(self) -> None:
        """The superblock goes away: every device with it."""
        for device in list(self.devices.values()):
            device.shut_down()
            self._remove(device)

    # --- its directory (patch 2/8) ---------------------------------------------

    def remove_unused(self, device: LoopDevice) -> None:
        """unlink(2) of the node: remove the device.

        Raises:
            DriverError: EBUSY when it is bound or open.
        """
        if device.state is not State.Lo_unbound or device.open_count:
            raise DriverError(errno.EBUSY, f"{device.name} is bound or open")
        device.partitions.drop_all()
        self._remove(device)

    def rename(self, device: LoopDevice, name: str) -> None:
        """Give its node another name; nothing else changes."""
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
