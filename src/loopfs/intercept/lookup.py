"""Quick resolution of a caller's path, without entering the caller's namespaces.

A job of the helper takes some milliseconds. Most calls of mount, umount and statfs(2) do not
concern loopfs and should take less time.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from loopfs import syscalls
from loopfs.engines.helper import ended, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.intercept.notify import Call
from loopfs.process import Process
from loopfs.uapi.mount import RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS


def peek(process: Process, path: str, begin: int | None = None) -> int:
    """Return an O_PATH descriptor of the file that ``path`` refers to; symbolic links are followed.

    The path can change at any time: the result must only be used to leave a call to the kernel.

    Args:
        begin: the descriptor from which a relative path is resolved; None: the working directory.
    Raises:
        OSError: the path may not exist, or only a job can resolve it.
    """
    flags = os.O_PATH | os.O_CLOEXEC
    start, within = ("cwd" if begin is None else f"fd/{begin}"), RESOLVE_BENEATH
    if path.startswith("/"):
        start, within = "root", RESOLVE_IN_ROOT
    directory = os.open(process.path(start), flags)
    try:
        return syscalls.openat2(directory, path, flags, within | RESOLVE_NO_MAGICLINKS)
    finally:
        os.close(directory)


def resolved(mounts: Mounts, call: Call, path: str, start: int | None = None) -> int:
    """As :func:`peek`, but by a job, which resolves the path as the caller would.

    Raises:
        OSError: as open(2).
    """
    with caller_descriptors(call, None if path.startswith("/") else start) as fds:
        channel = mounts.helper.begin("device_at", (path,), fds)
    with channel:
        message = ended(channel)
    code, _ = result(message)
    if code:
        raise OSError(code, os.strerror(code))
    return message.fds[0]


def certainly_elsewhere(process: Process, path: str, ours: Callable[[int], object]) -> bool:
    """Return whether ``path`` certainly leads to a filesystem whose st_dev is not ``ours``."""
    try:
        place = peek(process, path)
    except OSError:
        return False
    try:
        return not ours(syscalls.statx_dev(place))
    finally:
        os.close(place)
