"""The embedded engine as an entry of the policy's table."""

from __future__ import annotations

import errno
import importlib.util
import os

from loopfs.engines.embedded.program import READERS, command, serving
from loopfs.engines.engine import Engine, Launch, Serve
from loopfs.engines.programs import check_type
from loopfs.errors import LoopfsError
from loopfs.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from loopfs.engines.lent import Lent

NAME = "embedded"

_OPTIONS = {
    **dict.fromkeys(("uid=", "gid=", "umask=", "fmask=", "dmask="), ""),
    **dict.fromkeys(("norecovery", "noload", "nouuid", "acl", "user_xattr", "nobarrier"), ""),
    "iocharset=utf8": "",
    "utf8": "",
}
_OPTIONS |= {option: option for option in _OPTIONS if option.endswith("=")}
_OPTIONS |= {"subvol=": "subvol=", "subvolid=": "subvolid="}


def _missing(fstype: str) -> str | None:
    parser = f"dissect.{READERS[fstype]}"
    try:
        found = importlib.util.find_spec(parser)
    except ModuleNotFoundError:
        found = None
    if found is not None:
        return None
    return f"{parser} (read-only support) is not installed; run: pip install {parser}"


def _command(launch: Launch) -> list[str]:
    return command(launch.device, launch.mountpoint, launch.fstype, launch.options)


def _prepare(device: Lent, launch: Launch) -> Serve:
    from io import BufferedReader

    from loopfs.engines.embedded.device import DeviceFile

    fd, offset, size = device.window
    check_type(fd, launch.fstype, offset, size)
    file = BufferedReader(DeviceFile(device))
    try:
        return serving(file, launch.fstype, launch.options)
    except LoopfsError:
        raise
    except Exception:  # any error of a parser
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None


EMBEDDED = Engine(
    NAME,
    _missing,
    frozenset(READERS),
    _OPTIONS,
    _command,
    check_type,
    writes=False,
    prepare=_prepare,
)
