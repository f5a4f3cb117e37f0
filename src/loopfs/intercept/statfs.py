"""statfs(2) and fstatfs(2) of what is of type FUSE only to the kernel: an instance is loopfs, and
what we show in /sys and /proc is of the type of the place (simple_statfs)."""

from __future__ import annotations

import errno
import os

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.engines.copies import VIEW_FLAGS
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
    """Answers for instances and views; leaves every other filesystem to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._find = mounts.instances.find
        self._magic = mounts.copies.magic

    def __call__(self, call: Call) -> None:
        if not self._mounts.instances.device_numbers() and not self._magic:
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
        if number in self._magic:
            may_wait()
            self._tell(call, self._magic[number], VIEW_FLAGS)
        elif number is None or self._find(number) is None:
            call.proceed()
        else:
            may_wait()
            self._answer(call, call.process.descriptor(fd))

    def _is_ours(self, place: int) -> bool:
        number = syscalls.statx_dev(place)
        return number in self._magic or self._find(number) is not None

    def _answer(self, call: Call, place: int) -> None:
        try:
            number = syscalls.statx_dev(place)
            magic, flags = self._magic.get(number), VIEW_FLAGS
            if magic is None and (filesystem := self._find(number)) is not None:
                magic, flags = filesystem.magic, STATFS.unpack(syscalls.fstatfs(place))[_FLAGS]
        finally:
            close_all([place])
        if magic is None:
            call.proceed()
        else:
            self._tell(call, magic, flags)

    @staticmethod
    def _tell(call: Call, magic: int, flags: int) -> None:
        """Answer as simple_statfs() does, which all of these have."""
        if not call.alive():
            return
        sizes = (BLOCK_SIZE, 0, 0, 0, 0, 0, 0, 0, NAME_MAX, BLOCK_SIZE)
        data = STATFS.pack(magic, *sizes, flags)
        call.process.write(call.args[1], data)
        call.finish()
