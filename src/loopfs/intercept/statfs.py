"""statfs(2) and fstatfs(2) of an instance: its type is not FUSE but loopfs (simple_statfs)."""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.engines.mounts import Mounts
from loopfs.intercept.lookup import peek, resolved
from loopfs.intercept.mount import PAGE
from loopfs.intercept.notify import Call, may_wait
from loopfs.text import to_str
from loopfs.uapi.stat import STATFS

BLOCK_SIZE = 4096  # bytes: PAGE_SIZE
NAME_MAX = 255
_FLAGS = 11  # f_flags: its place in struct statfs


class StatfsHandler:
    """Answers for instances; leaves every other filesystem to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._find = mounts.instances.find

    def __call__(self, call: Call) -> None:
        if not self._mounts.instances.device_numbers():
            call.proceed()
        elif call.name == "statfs":
            may_wait()
            self._statfs(call)
        else:
            self._fstatfs(call)

    def _statfs(self, call: Call) -> None:
        path = to_str(call.process.read_string(call.args[0], PAGE))
        call.note(path=path)
        try:
            place = peek(call.process, path)
        except OSError as problem:
            # Many programs ask for /sys/fs/selinux. In /proc we see other processes.
            if problem.errno == errno.ENOENT and "proc" not in path:
                call.proceed()
                return
            place = resolved(self._mounts, call, path)
        else:
            if not call.process.has_our_credentials() and self._is_ours(place):
                os.close(place)
                # Whether the caller may know is not ours to say.
                place = resolved(self._mounts, call, path)
        self._answer(call, place)

    def _fstatfs(self, call: Call) -> None:
        fd = call.args[0] & 0xFFFFFFFF
        number = call.process.descriptor_device(fd)
        if number is None or self._find(number) is None:
            call.proceed()
        else:
            may_wait()
            self._answer(call, call.process.descriptor(fd))

    def _is_ours(self, place: int) -> bool:
        return self._find(syscalls.statx_dev(place)) is not None

    def _answer(self, call: Call, place: int) -> None:
        try:
            filesystem = self._find(syscalls.statx_dev(place))
            if filesystem is None:
                place_flags = None
            else:
                place_flags = STATFS.unpack(syscalls.fstatfs(place))[_FLAGS]
        finally:
            close_all([place])
        if filesystem is None or not call.alive():
            call.proceed()
            return
        sizes = (BLOCK_SIZE, 0, 0, 0, 0, 0, 0, 0, NAME_MAX, BLOCK_SIZE)
        data = STATFS.pack(filesystem.magic, *sizes, place_flags)
        call.process.write(call.args[1], data)
        call.finish()
