"""A quick look at where a caller's path leads, without entering the caller's namespaces.

A job of the helper takes some milliseconds; most mounts, unmounts and statfs(2) have
nothing to do with us and are to cost less.
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
    """An O_PATH descriptor of what ``path`` names, symbolic links followed.

    What is resolved may change at once: the answer is only good for leaving a call to the
    kernel.

    Args:
        begin: the descriptor where a relative path begins; None for the working directory.
    Raises:
        OSError: only a job can tell.
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
    """As :func:`peek`, by a job, which finds what the caller would.

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
    """``path`` leads to a filesystem of which ``ours``, asked for its st_dev, knows nothing."""
    try:
        place = peek(process, path)
    except OSError:
        return False
    try:
        return not ours(syscalls.statx_dev(place))
    finally:
        os.close(place)
