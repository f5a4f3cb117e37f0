"""mount(2) of type fuseblk, called by programs that serve a device themselves."""

from __future__ import annotations

import os

from loopfs.engines.helper import WRITE_BACK, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.running import OwnServer
from loopfs.intercept.notify import Call


def is_fuseblk(fstype: str) -> bool:
    """Return whether a type is fuseblk or has it as its base type."""
    return fstype.partition(".")[0] == "fuseblk"


def server(data: str) -> int | None:
    """Return the caller's open /dev/fuse that the options of a mount name, if any."""
    number = dict(word.partition("=")[::2] for word in data.split(",")).get("fd", "")
    return int(number) if number.isdecimal() and number.isascii() else None


def mount_fuseblk(
    mounts: Mounts, call: Call, source: str, target: str, fstype: str, flags: int, data: str
) -> int:
    """Carry out a mount that has a server; return an errno, NOT_OURS, or 0.

    Raises:
        OSError: as mount(2); EBADF if there is no such descriptor.
    """
    number = server(data)
    assert number is not None
    fuse = call.process.descriptor(number)
    try:
        with caller_descriptors(call) as fds:
            job = (mounts.instances.device_numbers(), source, target, fstype, flags, data)
            channel = mounts.helper.begin("fuseblk", job, (*fds, fuse))
    finally:
        os.close(fuse)
    with channel:
        message = channel.receive()
        code, value = result(message)
        if code == WRITE_BACK:
            assert isinstance(value, tuple)
            instance, ino = value
            mounts.write_back(instance, ino)
            is_open = mounts.claim_as(instance, ino, call.process.tgid)
            channel.send(b"0")
            code, value = result(channel.receive())
    if not code:
        assert isinstance(value, int)
        mounts.add_own(OwnServer(value, is_open, call.process))
    return code
