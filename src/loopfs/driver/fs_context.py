"""A filesystem context: what fsopen(2), fspick(2) and mount(2) collect before they act.

Phases and refusals are those of struct fs_context (fs/fsopen.c). A context that has made its
superblock is the kernel's from then on; one of a superblock that is there can be used again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum

from loopfs.driver.ucounts import MAX_DEVICES
from loopfs.errors import DriverError
from loopfs.uapi import mount as uapi

UINT_MAX = 2**32 - 1

# Flags of the superblock as parameters (common_set_sb_flag, common_clear_sb_flag).
_SET = {
    "dirsync": uapi.MS_DIRSYNC,
    "lazytime": uapi.MS_LAZYTIME,
    "mand": uapi.MS_MANDLOCK,
    "ro": uapi.MS_RDONLY,
    "sync": uapi.MS_SYNCHRONOUS,
}
_CLEARED = {
    "async": uapi.MS_SYNCHRONOUS,
    "nolazytime": uapi.MS_LAZYTIME,
    "nomand": uapi.MS_MANDLOCK,
    "rw": uapi.MS_RDONLY,
}


class Phase(Enum):
    """enum fs_context_phase, as far as it is seen here."""

    CREATE_PARAMS = 0
    RECONF_PARAMS = 4
    FAILED = 6


class Parameters:
    """What a filesystem type takes besides the source and the superblock's flags."""

    def parse(self, key: str, value: str | None) -> None:
        """Take a parameter; ``value`` is None when it is no string.

        Raises:
            OSError: EINVAL.
        """
        raise NotImplementedError


class ShownParameters(Parameters):
    """Those that mountinfo shows, which mount(8) gives back when it remounts.

    Args:
        shown: "key" or "key=value" of each; they change nothing.
    """

    def __init__(self, shown: frozenset[str]) -> None:
        self._shown = shown

    def parse(self, key: str, value: str | None) -> None:
        if (key if value is None else f"{key}={value}") not in self._shown:
            raise DriverError(errno.EINVAL, "fuse: No changes allowed in reconfigure")


class LoopParameters(Parameters):
    """Those of type loop: ``max``, the most devices; None when it was not given. ``links``:
    beside the mount point, links to its nodes are kept (ours alone; for a new mount).

    (The posted series forgets the limit at a remount that does not give it.)

    Args:
        others: what takes the parameters that are not loop's.
    """

    def __init__(self, others: Parameters | None = None) -> None:
        self.max: int | None = None
        self.links = False
        self._others = others

    def parse(self, key: str, value: str | None) -> None:
        if key != "max" and self._others is not None:
            self._others.parse(key, value)
            return
        if key == "links" and value is None:
            self.links = True
            return
        if key != "max":
            raise DriverError(errno.EINVAL, f"loop: Unknown parameter '{key}'")
        number = None if value is None else parse_uint(value)
        if number is None or number > MAX_DEVICES:
            raise DriverError(errno.EINVAL, "loop: Bad value for 'max'")
        self.max = number


class FsContext:
    """One context.

    Args:
        fstype: the filesystem's type.
        parameters: makes what takes the parameters of that type.
        phase: CREATE_PARAMS, or RECONF_PARAMS for a superblock that is there.
    """

    def __init__(
        self, fstype: str, parameters: Callable[[], Parameters], phase: Phase = Phase.CREATE_PARAMS
    ) -> None:
        self.fstype = fstype
        self._new_parameters = parameters
        self._begin(phase)

    def _begin(self, phase: Phase) -> None:
        self.phase = phase
        self.source: str | None = None
        self.sb_flags = 0
        self.sb_flags_mask = 0  # those that were given, set or cleared
        self.parameters = self._new_parameters()

    # --- parameters ----------------------------------------------------------------

    def set(self, key: str, value: str | None) -> None:
        """fsconfig(2) with a parameter; ``value`` is None when it is no string.

        Raises:
            OSError: EBUSY in another phase; EINVAL.
        """
        if self.phase is Phase.FAILED:
            raise DriverError(errno.EBUSY)
        if flag := _SET.get(key):
            self.sb_flags |= flag
            self.sb_flags_mask |= flag
        elif flag := _CLEARED.get(key):
            self.sb_flags &= ~flag
            self.sb_flags_mask |= flag
        elif key == "source":
            self._set_source(value)
        else:
            self.parameters.parse(key, value)

    def _set_source(self, value: str | None) -> None:
        if value is None:
            raise DriverError(errno.EINVAL, f"{self.fstype}: Non-string source")
        if self.source is not None:
            raise DriverError(errno.EINVAL, f"{self.fstype}: Multiple sources")
        self.source = value

    def set_all(self, data: str) -> None:
        """The data argument of mount(2) (generic_parse_monolithic)."""
        for option in filter(None, data.split(",")):
            key, equals, value = option.partition("=")
            if key:
                self.set(key, value if equals else None)

    # --- commands ------------------------------------------------------------------

    def check_phase(self, phase: Phase) -> None:
        """What a command asks: CREATE_PARAMS or RECONF_PARAMS. Raises DriverError EBUSY."""
        if self.phase is not phase:
            raise DriverError(errno.EBUSY)

    def fail(self) -> None:
        """A command has failed: nothing more can be done with the context."""
        self.phase = Phase.FAILED

    def clean(self) -> None:
        """A superblock was reconfigured: the next parameters begin anew."""
        self._begin(Phase.RECONF_PARAMS)


def parse_uint(text: str) -> int | None:
    """A number as kstrtouint with base 0 reads it; None if it is none."""
    digits = text.removesuffix("\n").removeprefix("+").lower()
    if digits.startswith("0x"):
        base, digits = 16, digits[2:]
    else:
        base = 8 if digits.startswith("0") else 10
    if not digits or not set(digits) <= set("0123456789abcdef"[:base]):
        return None
    number = int(digits, base)
    return number if number <= UINT_MAX else None
