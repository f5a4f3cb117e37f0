"""Creating superblocks of FUSE with the new mount API, in the namespaces of a job."""

from __future__ import annotations

import errno
import os
import select

from loopfs import syscalls
from loopfs.uapi import mount as uapi

_PARAMETERS = {"rootmode": "40000", "user_id": "0", "group_id": "0"}
_SB_FLAGS = {
    uapi.MS_RDONLY: ("ro", "rw"),
    uapi.MS_SYNCHRONOUS: ("sync", "async"),
    uapi.MS_DIRSYNC: ("dirsync", None),
    uapi.MS_LAZYTIME: ("lazytime", "nolazytime"),
}


def fuse_context(
    fuse: int, source: str, subtype: str, sb_flags: int = 0, *, allow_other: bool = True
) -> int:
    """Return a context with the superblock of an open /dev/fuse, for one fsmount(2).

    The superblock is created if it does not exist; if it does, only ``source`` has an effect.

    Args:
        sb_flags: MS_*.
        allow_other: give access to all users of this user namespace; otherwise to the user that is
            its root, in all user namespaces.
    Raises:
        OSError: as fsopen(2) and fsconfig(2).
    """
    context = syscalls.fsopen("fuse")
    parameters = _PARAMETERS | {"source": source, "subtype": subtype, "fd": str(fuse)}
    for key, value in parameters.items():
        syscalls.fsconfig(context, uapi.FSCONFIG_SET_STRING, key, value)
    for key in ("default_permissions", *(["allow_other"] if allow_other else [])):
        syscalls.fsconfig(context, uapi.FSCONFIG_SET_FLAG, key)
    set_sb_flags(context, sb_flags, sb_flags)
    syscalls.fsconfig(context, uapi.FSCONFIG_CMD_CREATE)
    return context


def set_sb_flags(context: int, flags: int, mask: int) -> None:
    """Set or clear the MS_* ``flags`` of a context that are in ``mask``."""
    for flag, (name, opposite) in _SB_FLAGS.items():
        word = name if flags & flag else opposite
        if mask & flag and word is not None:
            syscalls.fsconfig(context, uapi.FSCONFIG_SET_FLAG, word)


def disconnected(connection: int) -> bool:
    """Return whether the superblock of a /dev/fuse does not exist any more."""
    poller = select.poll()
    poller.register(connection, 0)
    return bool(poller.poll(0))  # POLLERR


def connection_of(pidfd: int, pid: int) -> int:
    """Return a duplicate of the /dev/fuse that a process serves.

    Raises:
        OSError: the process has ended; ENOENT if it has none.
    """
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        try:
            if os.readlink(f"{directory}/{name}") == "/dev/fuse":
                return syscalls.pidfd_getfd(pidfd, int(name))
        except FileNotFoundError:
            continue  # closed in the meantime
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
