"""The settings of a sandbox, from the command line and from the user's configuration file.

The file is $XDG_CONFIG_HOME/loopfs/config.toml (by default in ~/.config)::

    [engines]
    btrfs = "embedded"
    xfs = "deny"

    [devices]
    max = 64
    reserve = 16
"""

from __future__ import annotations

import errno
import os

from loopfs.errors import LoopfsError
from loopfs.lean import Mapping, NamedTuple

MINORMASK = (1 << 20) - 1  # the highest number of a device (linux/kdev_t.h)
MAX_DEVICES = MINORMASK + 1


class SettingsError(LoopfsError):
    """An error in the settings; the sentence is shown to the person."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EINVAL, sentence)


class Settings(NamedTuple):
    """The settings of one sandbox.

    Args:
        bare: it starts without an instance.
        engines: the engine that mounts a filesystem type, or "deny", by type.
        number_from: the number of the first loop device; None: after the host's.
        log: the path of a file in which each trapped call is recorded.
        verbose: which of these calls are shown on standard error: 0 none, 1 mounts, 2 all.
        max_devices: the largest number of devices of its user namespace and the inner ones
            together; None: no limit.
        reserve_devices: how many of these only its own instances can have; None: a quarter.
    """

    bare: bool = False
    engines: Mapping[str, str] = {}  # noqa: RUF012 - a field of a tuple; never modified
    number_from: int | None = None
    log: str | None = None
    verbose: int = 0
    max_devices: int | None = None
    reserve_devices: int | None = None

    def devices(self) -> tuple[int, int | None]:
        """Return the limit and the reserve of devices."""
        most = MAX_DEVICES if self.max_devices is None else self.max_devices
        return most, self.reserve_devices

    def for_the_outer_one(self) -> str | None:
        """Return a chosen option that a sandbox inside another one cannot have; None if none is."""
        chosen = {
            "--engine": bool(self.engines),
            "--number-from": self.number_from is not None,
            "--log": self.log is not None,
            "-v": bool(self.verbose),
            "--max-devices": self.max_devices is not None,
            "--reserve-devices": self.reserve_devices is not None,
        }
        return next((option for option, is_chosen in chosen.items() if is_chosen), None)

    def checked(self) -> Settings:
        """Check the engines and return the settings. Raises SettingsError for an unknown engine."""
        if self.engines:  # the import takes time at the start
            from loopfs.engines.policy import Policy

            Policy(self.engines)
        return self


def default_path(environment: Mapping[str, str]) -> str:
    """Return the path of the file that is read if none is named."""
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    return f"{home}/loopfs/config.toml"


def read(path: str, *, required: bool) -> Settings:
    """Read the settings of a file.

    Args:
        required: the file must exist.
    Raises:
        SettingsError: it cannot be read, is not TOML, or has an unknown key or value.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - the import below is only needed with a file
    except (FileNotFoundError, NotADirectoryError, PermissionError) as problem:
        if not required:  # a file that is not accessible belongs to another user
            return Settings()
        raise SettingsError(f"{path} cannot be read: {problem.strerror}") from None
    except OSError as problem:
        raise SettingsError(f"{path} cannot be read: {problem.strerror}") from None
    import tomllib

    with file:
        try:
            table = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
            raise SettingsError(f"{path} is not TOML: {problem}") from None
        except OSError as problem:
            raise SettingsError(f"{path} cannot be read: {problem.strerror}") from None
    return _of_table(path, table)


def _of_table(path: str, table: dict[str, object]) -> Settings:
    engines, devices = table.pop("engines", {}), table.pop("devices", {})
    if table:
        raise SettingsError(f"{path} has '{next(iter(table))}', which is not a table of this file")
    if not isinstance(engines, dict) or not all(isinstance(e, str) for e in engines.values()):
        raise SettingsError(f"{path}: [engines] must name an engine for each filesystem type")
    if not isinstance(devices, dict) or not all(map(_is_count, devices.values())):
        raise SettingsError(f"{path}: [devices] must have numbers from 0 to {MAX_DEVICES}")
    if unknown := devices.keys() - {"max", "reserve"}:
        raise SettingsError(f"{path}: [devices] can have max and reserve, not '{min(unknown)}'")
    most, reserve = devices.get("max"), devices.get("reserve")
    try:
        chosen = Settings(engines=engines, max_devices=most, reserve_devices=reserve)
        return chosen.checked()
    except SettingsError as problem:
        raise SettingsError(f"{path}: {problem.strerror}") from None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_DEVICES


def engine_choice(word: str) -> tuple[str, str]:
    """Split TYPE=ENGINE. Raises SettingsError."""
    fstype, equals, engine = word.partition("=")
    if not (fstype and equals and engine):
        raise SettingsError(f"--engine needs TYPE=ENGINE, as in ext4=fuse2fs, not '{word}'")
    return fstype, engine


def number(option: str, word: str, most: int) -> int:
    """Parse the value of an option, 0 to ``most``. Raises SettingsError."""
    if not (word.isascii() and word.isdigit() and int(word) <= most):
        raise SettingsError(f"{option} needs a number from 0 to {most}, not '{word}'")
    return int(word)


def of_user(
    config: str | None,
    engines: Mapping[str, str],
    *,
    bare: bool,
    number_from: int | None = None,
    log: str | None = None,
    verbose: int = 0,
    max_devices: int | None = None,
    reserve_devices: int | None = None,
) -> Settings:
    """Return the settings of the command line and of the file; the command line takes precedence.

    Args:
        config: the file's path; None for the default, which need not exist.
    Raises:
        SettingsError: as :func:`read`.
    """
    path = config if config is not None else default_path(os.environ)
    own = read(path, required=config is not None)
    chosen = {**own.engines, **engines}
    most = own.max_devices if max_devices is None else max_devices
    reserve = own.reserve_devices if reserve_devices is None else reserve_devices
    return Settings(bare, chosen, number_from, log, verbose, most, reserve).checked()
