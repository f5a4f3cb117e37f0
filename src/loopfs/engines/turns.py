"""Turns: only one mount of a device can be in progress, since it can have only one engine."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Hashable

_LOOK = 1.0  # seconds between checks whether the caller of a waiting thread still waits


class Turn:
    """The right to mount a device, until it is released."""

    def __init__(self, turns: Turns, device: Hashable) -> None:
        self._turns = turns
        self._device: Hashable | None = device

    def give_back(self) -> None:
        """Let the next mount of the device begin. A second call has no effect."""
        device, self._device = self._device, None
        if device is not None:
            self._turns.give_back(device)


class Turns:
    """The turns of all devices of a sandbox."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[Hashable] = set()

    def take(self, device: Hashable, wanted: Callable[[], bool]) -> Turn:
        """Wait for the turn of a device.

        Args:
            wanted: returns whether the caller still waits.
        Raises:
            OSError: EINTR if the caller does not wait any more.
        """
        with self._changed:
            while device in self._taken:
                self._changed.wait(_LOOK)
                if not wanted():
                    raise OSError(errno.EINTR, os.strerror(errno.EINTR))
            self._taken.add(device)
        return Turn(self, device)

    def give_back(self, device: Hashable) -> None:
        """Release the turn of a device."""
        with self._changed:
            self._taken.remove(device)
            self._changed.notify_all()
