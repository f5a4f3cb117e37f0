"""The choice of the engine for each filesystem type."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from loopfs.engines.embedded.engine import EMBEDDED
from loopfs.engines.engine import Engine, NoEngine
from loopfs.engines.ext4 import EXT4
from loopfs.engines.iso9660 import ISO9660
from loopfs.engines.programs import PROGRAMS
from loopfs.engines.udf import UDF
from loopfs.engines.vfat import VFAT
from loopfs.settings import SettingsError

DENY = "deny"
KERNEL = "kernel"

# If several engines serve a type, the first that is installed is used.
ENGINES = (EXT4, ISO9660, UDF, *PROGRAMS, VFAT, EMBEDDED)
BY_NAME = {engine.name: engine for engine in ENGINES}
TYPES = frozenset(fstype for engine in ENGINES for fstype in engine.types)


class Policy:
    """The engines chosen in the settings; for other types the first engine that is installed.

    Args:
        choices: an engine's name, "deny" or "kernel" for each filesystem type.
    Raises:
        SettingsError: there is no such engine, it does not serve the type, or is not allowed.
    """

    def __init__(self, choices: Mapping[str, str]) -> None:
        for fstype, name in choices.items():
            if name == DENY:
                continue
            if name == KERNEL:
                if not _is_root():
                    raise SettingsError(f"only root can choose the engine kernel for {fstype}")
                continue
            engine = BY_NAME.get(name)
            if engine is None:
                known = ", ".join((*BY_NAME, KERNEL, DENY))
                raise SettingsError(f"there is no engine '{name}'; the engines are {known}")
            if fstype not in engine.types:
                served = ", ".join(sorted(engine.types))
                raise SettingsError(f"the engine {name} does not mount {fstype}, only {served}")
        self._choices = dict(choices)

    def leaves_to_kernel(self, fstype: str) -> bool:
        return self._choices.get(fstype) == KERNEL

    def choose(self, fstype: str) -> Engine:
        """Return the engine for a type.

        Raises:
            NoEngine: EPERM if the policy denies the type, ENODEV if no engine is installed.
        """
        choice = self._choices.get(fstype)
        if choice == DENY:
            raise NoEngine(errno.EPERM, "the policy denies it")
        candidates = [BY_NAME[choice]] if choice else [e for e in ENGINES if fstype in e.types]
        reasons = []
        for engine in candidates:
            reason = engine.missing(fstype)
            if reason is None:
                return engine
            reasons.append(reason)
        raise NoEngine(errno.ENODEV, " or ".join(reasons) or "no engine serves it")

    def after(self, engine: Engine, fstype: str) -> Engine | None:
        """Return the engine for a filesystem with a feature that ``engine`` does not support."""
        if fstype in self._choices:
            return None
        others = ENGINES[ENGINES.index(engine) + 1 :]
        usable = (other for other in others if fstype in other.types and not other.missing(fstype))
        return next(usable, None)


def _is_root() -> bool:
    """Return whether we are root of the machine, not only of a user namespace."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return os.geteuid() == 0 and file.read().split() == ["0", "0", str(2**32 - 1)]
