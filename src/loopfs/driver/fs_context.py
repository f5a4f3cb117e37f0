"""A filesystem context: the parameters that fsopen(2), fspick(2) and mount(2) collect.

The phases and errors are those of struct fs_context (fs/fsopen.c). When a context has created its
superblock, the kernel takes over the context; a context of an existing superblock can be reused.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum

from loopfs.driver.ucounts import MAX_DEVICES
from loopfs.errors import DriverError
from loopfs.uapi import mount as uapi

UINT_MAX = 2**32 - 1

# Parameters that set or clear a flag of the superblock (common_set_sb_flag, common_clear_sb_flag).
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
    """The phases of enum fs_context_phase that are used here."""

    CREATE_PARAMS = 0
    RECONF_PARAMS = 4
    FAILED = 6


class Parameters:
    """The parameters of a filesystem type besides the source and the superblock's flags."""

    def parse(self, key: str, value: str | None) -> None:
        """Set a parameter; ``value`` is None if it is not a string.

        Raises:
            OSError: EINVAL if the parameter or its value is unknown.
        """
        raise NotImplementedError


class ShownParameters(Parameters):
    """The parameters shown in mountinfo, which mount(8) passes back when it remounts.

    Args:
        shown: each parameter as "key" or "key=value"; setting one has no effect.
    """

    def __init__(self, shown: frozenset[str]) -> None:
        self._shown = shown

    def parse(self, key: str, value: str | None) -> None:
        if (key if value is None else f"{key}={value}") not in self._shown:
            raise DriverError(errno.EINVAL, "fuse: No changes allowed in reconfigure")


class LoopParameters(Parameters):
    """The parameters of type loop.

    ``max`` is the limit of devices, or None if it was not given. ``links`` (not in the posted
    series) keeps links to the nodes beside the mount point; it is meant for a new mount.

    (In the posted series a remount without ``max`` removes the limit.)

    Args:
        others: takes the parameters that are not those of type loop.
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
    """A filesystem context.

    Args:
        fstype: the filesystem's type.
        parameters: creates the object that takes the parameters of that type.
        phase: CREATE_PARAMS, or RECONF_PARAMS for an existing superblock.
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
        self.sb_flags_mask = 0  # the flags that were given, set or cleared
        self.parameters = self._new_parameters()

    # --- parameters ----------------------------------------------------------------

    def set(self, key: str, value: str | None) -> None:
        """Set a parameter (fsconfig(2)); ``value`` is None if it is not a string.

        Raises:
            OSError: EBUSY if the context has failed; EINVAL for a bad parameter.
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
        """Set the parameters in the data argument of mount(2) (generic_parse_monolithic)."""
        for option in filter(None, data.split(",")):
            key, equals, value = option.partition("=")
            if key:
                self.set(key, value if equals else None)

    # --- commands ------------------------------------------------------------------

    def check_phase(self, phase: Phase) -> None:
        """Check that the context is in the phase a command requires. Raises DriverError EBUSY."""
        if self.phase is not phase:
            raise DriverError(errno.EBUSY)

    def fail(self) -> None:
        """Mark the context as failed, after which it cannot be used."""
        self.phase = Phase.FAILED

    def clean(self) -> None:
        """Discard all parameters, after the superblock has been reconfigured."""
        self._begin(Phase.RECONF_PARAMS)


def parse_uint(text: str) -> int | None:
    """Convert text to a number as kstrtouint() with base 0 does; return None if it is not one."""
    digits = text.removesuffix("\n").removeprefix("+").lower()
    if digits.startswith("0x"):
        base, digits = 16, digits[2:]
    else:
        base = 8 if digits.startswith("0") else 10
    if not digits or not set(digits) <= set("0123456789abcdef"[:base]):
        return None
    number = int(digits, base)
    return number if number <= UINT_MAX else None
