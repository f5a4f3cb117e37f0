"""Which engine mounts which filesystem type."""

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

# Of several for a type the first that is installed is taken.
ENGINES = (EXT4, ISO9660, UDF, *PROGRAMS, VFAT, EMBEDDED)
BY_NAME = {engine.name: engine for engine in ENGINES}
TYPES = frozenset(fstype for engine in ENGINES for fstype in engine.types)


class Policy:
    """What a person has chosen; for other types the first engine that is installed.

    Args:
        choices: an engine's name, "deny" or "kernel" for a filesystem type.
    Raises:
        SettingsError: there is no such engine, it does not serve the type, or may not.
    """

    def __init__(self, choices: Mapping[str, str]) -> None:
        for fstype, name in choices.items():
            if name == DENY:
                continue
            if name == KERNEL:
                if not _is_root():
                    raise SettingsError(f"only root may have the kernel mount {fstype}")
                continue
            engine = BY_NAME.get(name)
            if engine is None:
                known = ", ".join((*BY_NAME, KERNEL, DENY))
                raise SettingsError(f"there is no engine '{name}'; there are {known}")
            if fstype not in engine.types:
                served = ", ".join(sorted(engine.types))
                raise SettingsError(f"the engine {name} does not mount {fstype} but {served}")
        self._choices = dict(choices)

    def leaves_to_kernel(self, fstype: str) -> bool:
        return self._choices.get(fstype) == KERNEL

    def choose(self, fstype: str) -> Engine:
        """The engine for a type.

        Raises:
            NoEngine: EPERM where the policy denies it, ENODEV where nothing is installed.
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
        """The engine for a filesystem that has a feature which ``engine`` does not support."""
        if fstype in self._choices:
            return None
        others = ENGINES[ENGINES.index(engine) + 1 :]
        usable = (other for other in others if fstype in other.types and not other.missing(fstype))
        return next(usable, None)


def _is_root() -> bool:
    """Root of the machine, not of a user namespace."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return os.geteuid() == 0 and file.read().split() == ["0", "0", str(2**32 - 1)]
