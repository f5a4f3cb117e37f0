"""The jobs that mount overlayfs with userxattr for a caller (:mod:`loopfs.intercept.overlay`)."""

from __future__ import annotations

import errno

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines.caller import Caller
from loopfs.engines.helper import NOT_OURS, answer
from loopfs.engines.jobs import Job
from loopfs.uapi.mount import FSCONFIG_SET_FLAG


def _overlay(
    channel: Channel, fds: list[int], source: str, target: str, flags: int, data: str
) -> None:
    """Carry out mount(2) with the caller's root, working directory and credentials; overlayfs keeps
    the credentials."""
    caller = Caller(fds)
    caller.enter()
    with caller.rights():
        syscalls.mount(source, target, "overlay", flags, data)
    answer(channel, 0)


def _overlay_context(channel: Channel, fds: list[int]) -> None:
    """Carry out fsopen(2). Answers with the context."""
    caller = Caller(fds)
    caller.enter_mounts()
    with caller.rights():
        context = syscalls.fsopen("overlay")
        try:
            syscalls.fsconfig(context, FSCONFIG_SET_FLAG, "userxattr")
        except OSError as problem:
            if problem.errno != errno.EINVAL:  # Linux before 5.11
                raise
            answer(channel, NOT_OURS)
            return
    answer(channel, 0, None, (context,))


JOBS: dict[str, Job] = {"overlay": _overlay, "overlay_context": _overlay_context}
