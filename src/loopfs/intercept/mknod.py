"""mknod(2) and mknodat(2) of devices, which the kernel does not allow in a user namespace.

The node of a loop device in /dev creates the device. In a filesystem of our own ext4, the node is
created in the image: a job creates a FIFO with the caller's rights, so that the kernel makes all
checks that precede its EPERM; the engine, which has been informed, creates a device instead.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from loopfs.channel import Channel
from loopfs.engines.copies import Place
from loopfs.engines.helper import NOT_OURS, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.intercept.fslabel import may_change
from loopfs.intercept.notify import Call, may_wait
from loopfs.text import to_str
from loopfs.uapi.loop import LOOP_MAJOR
from loopfs.uapi.mount import AT_FDCWD
from loopfs.uapi.sched import CAP_MKNOD

PAGE = 4096  # bytes of a path, with the NUL
_GO_ON = b"0"


class MknodHandler:
    """Creates devices where possible; other calls are left to the kernel, which returns EPERM.

    Args:
        dev: the root of /dev.
    """

    def __init__(self, mounts: Mounts, dev: Place) -> None:
        self._mounts = mounts
        self._dev = dev

    def __call__(self, call: Call) -> None:
        at = call.name == "mknodat"
        mode, number = (register & 0xFFFFFFFF for register in call.args[at + 1 : at + 3])
        kind = stat.S_IFMT(mode)
        is_loop = kind == stat.S_IFBLK and os.major(number) == LOOP_MAJOR
        is_whiteout = kind == stat.S_IFCHR and not number  # allowed by the kernel
        if kind not in (stat.S_IFBLK, stat.S_IFCHR) or is_whiteout:
            call.proceed()
            return
        if not is_loop and not any(engine.lent for engine in self._mounts.alive()):
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
            job = (path, stat.S_IMODE(mode), tuple(self._dev))
            channel = self._mounts.helper.begin("mknod", job, fds)
        with channel:
            code = self._make(call, channel, kind, number)
        if code == NOT_OURS:
            call.proceed()
        else:
            call.answer(code)

    def _make(self, call: Call, channel: Channel, kind: int, number: int) -> int:
        """Let the job create the device, if that is possible in the directory that it has found.

        Returns:
            0, an errno, or NOT_OURS.
        """
        code, place = result(channel.receive())
        if code:
            return code
        assert isinstance(place, tuple)
        superblock, in_dev, process = place
        if in_dev:
            if kind != stat.S_IFBLK or os.major(number) != LOOP_MAJOR:
                return NOT_OURS
            return _go_on(channel, b"%d" % os.minor(number))
        engines = self._mounts.alive()
        engine = next((each for each in engines if each.device == superblock), None)
        if engine is None or engine.lent is None:
            return NOT_OURS
        if not may_change(call.process, engine, CAP_MKNOD):
            return NOT_OURS
        with engine.lent.made_by(process, kind, number):
            return _go_on(channel, _GO_ON)


def _go_on(channel: Channel, reply: bytes) -> int:
    with suppress(BrokenPipeError, ConnectionResetError):  # the job was killed
        channel.send(reply)
    return result(channel.receive())[0]
