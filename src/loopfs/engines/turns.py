"""Whose turn it is to mount a device: two engines cannot have it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Hashable

_LOOK = 1.0  # seconds, after which a waiting thread checks whether its caller still waits


class Turn:
    """The right to mount one device, until it is given back."""

    def __init__(self, turns: Turns, device: Hashable) -> None:
        self._turns = turns
        self._device: Hashable | None = device

    def give_back(self) -> None:
        """Let the next one mount the device. Nothing happens the second time."""
        device, self._device = self._device, None
        if device is not None:
            self._turns.give_back(device)


class Turns:
    """Those of all devices of a sandbox."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: set[Hashable] = set()

    def take(self, device: Hashable, wanted: Callable[[], bool]) -> Turn:
        """Wait for the turn of a device.

        Args:
            wanted: the caller still waits.
        Raises:
            OSError: EINTR: it does not any more.
        """
        with self._changed:
            while device in self._taken:
                self._changed.wait(_LOOK)
                if not wanted():
                    raise OSError(errno.EINTR, os.strerror(errno.EINTR))
            self._taken.add(device)
        return Turn(self, device)

    def give_back(self, device: Hashable) -> None:
        """The turn is over."""
        with self._changed:
            self._taken.remove(device)
            self._changed.notify_all()
