"""Mounts of overlayfs, which in a user namespace needs the option userxattr.

overlayfs marks hidden entries of the lower layers by attributes ``trusted.*``, which can only be
set in the initial user namespace. Without them a directory of a lower layer cannot be removed
(EIO), and the upper layer cannot be on a FUSE filesystem (EINVAL). With userxattr (Linux 5.11) the
attributes are ``user.*``.
"""

from __future__ import annotations

import os

from loopfs.engines.helper import NOT_OURS, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.intercept.notify import Call
from loopfs.process import Process

TYPE = "overlay"
_USERXATTR = "userxattr"
_NEED_TRUSTED = ("redirect_dir", "metacopy", "verity")  # may conflict with userxattr
_INITIAL = 0xEFFFFFFD  # USER_NS_INIT_INO of <linux/nsfs.h>
_OWN = ("/proc/", "/dev/fd/")  # paths that lead to another place in the job's process
_PAGE = 4096


def is_initial(process: Process) -> bool:
    """Return whether a process is in the initial user namespace, which can set ``trusted.*``."""
    return process.namespace("user") == _INITIAL


def with_userxattr(data: str) -> str | None:
    """Return the options of a mount with userxattr added; None if they must not be changed."""
    bare = data.replace("\\\\", "").replace("\\,", "")  # a comma in a path is escaped
    words = [word.partition("=")[0] for word in bare.split(",")]
    if "upperdir" not in words or _USERXATTR in words or not set(words).isdisjoint(_NEED_TRUSTED):
        return None
    longer = f"{data},{_USERXATTR}"
    return longer if len(os.fsencode(longer)) < _PAGE else None


def mount_overlay(
    mounts: Mounts, call: Call, source: str | None, target: str, flags: int, data: str
) -> int:
    """Carry out mount(2) with userxattr.

    Returns:
        an errno, 0, or NOT_OURS if the call is left to the kernel.
    """
    options = with_userxattr(data)
    leads_here = not any(part in text for part in _OWN for text in (target, data))
    if source is None or options is None or not leads_here or is_initial(call.process):
        return NOT_OURS
    call.note(data=options)
    with caller_descriptors(call) as fds:
        job = (source, target, flags, options)
        channel = mounts.helper.begin("overlay", job, fds)
    with channel:
        return result(channel.receive())[0]


def open_overlay(mounts: Mounts, call: Call, *, cloexec: bool) -> bool:
    """Carry out fsopen(2), and set userxattr on the new context.

    Returns:
        whether the call has been answered; if not, it is left to the kernel.
    Raises:
        OSError: as fsopen(2).
    """
    if is_initial(call.process):
        return False
    with caller_descriptors(call) as fds:
        channel = mounts.helper.begin("overlay_context", (), fds)
    with channel:
        message = channel.receive()
    code, _ = result(message)
    if code == NOT_OURS:
        return False
    if code:
        raise OSError(code, os.strerror(code))
    (context,) = message.fds
    try:
        call.finish_with_descriptor(context, close_on_exec=cloexec)
    finally:
        os.close(context)
    return True
