"""The embedded engine as the policy sees it."""

from __future__ import annotations

import importlib.util

from loopfs.engines.embedded.program import READERS, command
from loopfs.engines.engine import Engine, Launch
from loopfs.engines.programs import check_type

NAME = "embedded"
# The distribution that each reader needs.
_PARSERS = {"ext": "extfs"}

_OPTIONS = {
    **dict.fromkeys(("uid=", "gid=", "umask=", "fmask=", "dmask="), ""),
    **dict.fromkeys(("norecovery", "noload", "nouuid", "acl", "user_xattr", "nobarrier"), ""),
    "iocharset=utf8": "",
    "utf8": "",
}
_OPTIONS |= {option: option for option in _OPTIONS if option.endswith("=")}
_OPTIONS |= {"subvol=": "subvol=", "subvolid=": "subvolid="}


def _missing(fstype: str) -> str | None:
    reader = READERS[fstype]
    parser = f"dissect.{_PARSERS.get(reader, reader)}"
    try:
        found = importlib.util.find_spec(parser)
    except ModuleNotFoundError:
        found = None
    if found is not None:
        return None
    return f"{parser} is not installed (which reads it only); run: pip install {parser}"


def _command(launch: Launch) -> list[str]:
    return command(launch.device, launch.mountpoint, launch.fstype, launch.options)


EMBEDDED = Engine(NAME, _missing, frozenset(READERS), _OPTIONS, _command, check_type, writes=False)
