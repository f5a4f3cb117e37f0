"""statfs(2) and fstatfs(2) of filesystems that are of type FUSE to the kernel: the type of an
instance is loopfs, that of our views in /sys and /proc is that of the place (simple_statfs), and
that of an engine's filesystem is the type with which it was mounted."""

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
_FLAGS = 11  # the index of f_flags in struct statfs
# lsblk examines filesystems itself if libudev refuses a device because its directory is not on
# sysfs. Else it shows the data of udevd, which does not run in the sandbox.
_PROBING = "lsblk"


class StatfsHandler:
    """Answers for instances, views and engines; leaves every other filesystem to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._find = mounts.instances.find
        self._magic = mounts.copies.magic

    def __call__(self, call: Call) -> None:
        if not (self._mounts.instances.device_numbers() or self._magic or self._mounts.magic):
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
            # Many programs check /sys/fs/selinux. Paths in /proc resolve differently for us.
            if problem.errno == errno.ENOENT and "proc" not in path:
                call.proceed()
                return
            place = resolved(self._mounts, call, path)
        else:
            if not call.process.has_our_credentials() and self._is_ours(place):
                os.close(place)
                # Only the kernel can check whether the caller may reach the file.
                place = resolved(self._mounts, call, path)
        self._answer(call, place)

    def _fstatfs(self, call: Call) -> None:
        fd = call.args[0] & 0xFFFFFFFF
        number = call.process.descriptor_device(fd)
        if number in self._magic:
            if call.process.comm() == _PROBING:
                call.proceed()
                return
            may_wait()
            self._tell(call, self._magic[number], VIEW_FLAGS)
        elif number is None or not self._concerns(number):
            call.proceed()
        else:
            may_wait()
            self._answer(call, call.process.descriptor(fd))

    def _is_ours(self, place: int) -> bool:
        number = syscalls.statx_dev(place)
        return number in self._magic or self._concerns(number)

    def _concerns(self, number: int) -> bool:
        return number in self._mounts.magic or self._find(number) is not None

    def _answer(self, call: Call, place: int) -> None:
        try:
            number = syscalls.statx_dev(place)
            if (served := self._mounts.magic.get(number)) is not None:
                self._retype(call, place, served)
                return
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
    def _retype(call: Call, place: int, magic: int) -> None:
        """Answer with the engine's values, except the type."""
        answer = syscalls.fstatfs(place)
        if call.alive():
            call.process.write(call.args[1], STATFS.pack(magic, *STATFS.unpack(answer)[1:]))
            call.finish()

    @staticmethod
    def _tell(call: Call, magic: int, flags: int) -> None:
        """Answer as simple_statfs() does, which all of these filesystems use."""
        if not call.alive():
            return
        sizes = (BLOCK_SIZE, 0, 0, 0, 0, 0, 0, 0, NAME_MAX, BLOCK_SIZE)
        data = STATFS.pack(magic, *sizes, flags)
        call.process.write(call.args[1], data)
        call.finish()
