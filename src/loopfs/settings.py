"""The settings of a sandbox: from the command line, or from a file for all sandboxes.

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
    """Settings that are wrong; the sentence is for the person."""

    def __init__(self, sentence: str) -> None:
        super().__init__(errno.EINVAL, sentence)


class Settings(NamedTuple):
    """Of one sandbox.

    Args:
        bare: it begins without an instance.
        engines: for a filesystem type the engine that mounts it, or "deny".
        number_from: of the first loop device; None: after the host's.
        log: the path of a file for a record of each trapped call.
        verbose: of these show on standard error: 0 none, 1 those that mount, 2 all.
        max_devices: that its user namespace and those within may have, together; None: any number.
        reserve_devices: of these, those that only its own instances may have; None: a quarter.
    """

    bare: bool = False
    engines: Mapping[str, str] = {}  # noqa: RUF012 - a field of a tuple; never changed
    number_from: int | None = None
    log: str | None = None
    verbose: int = 0
    max_devices: int | None = None
    reserve_devices: int | None = None

    def devices(self) -> tuple[int, int | None]:
        """The limit and the reserve of devices."""
        most = MAX_DEVICES if self.max_devices is None else self.max_devices
        return most, self.reserve_devices

    def for_the_outer_one(self) -> str | None:
        """What was chosen that a sandbox inside another has no say in."""
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
        """Itself. Raises SettingsError for an engine that there is not."""
        if self.engines:  # what is imported here costs a start something
            from loopfs.engines.policy import Policy

            Policy(self.engines)
        return self


def default_path(environment: Mapping[str, str]) -> str:
    """Where the file is looked for when none is named."""
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '')}/.config"
    return f"{home}/loopfs/config.toml"


def read(path: str, *, required: bool) -> Settings:
    """The settings of a file.

    Args:
        required: it must be there.
    Raises:
        SettingsError: it cannot be read, is not TOML, or has an unknown key or value.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - the import between is for those who have one
    except (FileNotFoundError, NotADirectoryError, PermissionError) as problem:
        if not required:  # what cannot be reached is another user's
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
        raise SettingsError(f"{path} has '{next(iter(table))}', which is no table of this file")
    if not isinstance(engines, dict) or not all(isinstance(e, str) for e in engines.values()):
        raise SettingsError(f"{path}: [engines] names an engine for each filesystem type")
    if not isinstance(devices, dict) or not all(map(_is_count, devices.values())):
        raise SettingsError(f"{path}: [devices] has numbers from 0 to {MAX_DEVICES}")
    if unknown := devices.keys() - {"max", "reserve"}:
        raise SettingsError(f"{path}: [devices] has max and reserve, not '{min(unknown)}'")
    most, reserve = devices.get("max"), devices.get("reserve")
    try:
        chosen = Settings(engines=engines, max_devices=most, reserve_devices=reserve)
        return chosen.checked()
    except SettingsError as problem:
        raise SettingsError(f"{path}: {problem.strerror}") from None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_DEVICES


def engine_choice(word: str) -> tuple[str, str]:
    """TYPE=ENGINE, taken apart. Raises SettingsError."""
    fstype, equals, engine = word.partition("=")
    if not (fstype and equals and engine):
        raise SettingsError(f"--engine needs TYPE=ENGINE, as in ext4=fuse2fs, not '{word}'")
    return fstype, engine


def number(option: str, word: str, most: int) -> int:
    """The value of an option, 0 to ``most``. Raises SettingsError."""
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
    """The command line over the file.

    Args:
        config: the file's path; None for the default, which need not be there.
    Raises:
        SettingsError: as :func:`read`.
    """
    path = config if config is not None else default_path(os.environ)
    own = read(path, required=config is not None)
    chosen = {**own.engines, **engines}
    most = own.max_devices if max_devices is None else max_devices
    reserve = own.reserve_devices if reserve_devices is None else reserve_devices
    return Settings(bare, chosen, number_from, log, verbose, most, reserve).checked()
