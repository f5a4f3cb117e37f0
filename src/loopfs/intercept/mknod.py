"""mknod(2) and mknodat(2) of a loop device in /dev: it makes the device."""

from __future__ import annotations

import os
import stat

from loopfs.engines.copies import Place
from loopfs.engines.helper import NOT_OURS, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.intercept.notify import Call, may_wait
from loopfs.text import to_str
from loopfs.uapi.loop import LOOP_MAJOR
from loopfs.uapi.mount import AT_FDCWD

PAGE = 4096  # bytes of a path, with the NUL


class MknodHandler:
    """Makes loop devices in the sandbox's /dev; all else is the kernel's, which says EPERM.

    Args:
        dev: the root of /dev.
    """

    def __init__(self, mounts: Mounts, dev: Place) -> None:
        self._mounts = mounts
        self._dev = dev

    def __call__(self, call: Call) -> None:
        at = call.name == "mknodat"
        mode, number = (register & 0xFFFFFFFF for register in call.args[at + 1 : at + 3])
        if stat.S_IFMT(mode) != stat.S_IFBLK or os.major(number) != LOOP_MAJOR:
            call.proceed()
            return
        may_wait()
        path = to_str(call.process.read_string(call.args[at], PAGE))
        call.note(path=path)
        start = call.args[0] & 0xFFFFFFFF if at else AT_FDCWD & 0xFFFFFFFF
        by_cwd = start == AT_FDCWD & 0xFFFFFFFF or path.startswith("/")
        if not call.alive():
            return
        with caller_descriptors(call, None if by_cwd else start) as fds:
            job = (path, os.minor(number), tuple(self._dev))
            channel = self._mounts.helper.begin("mknod", job, fds)
        with channel:
            code, _ = result(channel.receive())
        if code == NOT_OURS:
            call.proceed()
        else:
            call.answer(code)
