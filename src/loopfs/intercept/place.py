"""move_mount(2) of an instance that is to keep links beside its mount point, which the new mount
API specifies in this call."""

from __future__ import annotations

import ctypes
import os
from functools import partial

from loopfs.engines.helper import result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.filesystems.directory import DeviceListener
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.intercept.copies import CopyHandler, start_of
from loopfs.intercept.cover import expect_mount
from loopfs.intercept.mount import PAGE, may_mount
from loopfs.intercept.notify import Call, may_wait
from loopfs.text import to_str
from loopfs.uapi.mount import AT_FDCWD, MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_SYMLINKS


class PlaceHandler:
    """Moves a new instance to its first mount point; leaves every other move to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._copies = CopyHandler(mounts)
        self._expected: dict[int, LoopFilesystem] = {}

    def expect(self, filesystem: LoopFilesystem) -> None:
        """Note that an instance wants links beside its mount point."""
        find = self._mounts.instances.find
        living = {n: f for n, f in self._expected.copy().items() if find(n) is f}
        self._expected = living | {filesystem.device_number: filesystem}

    def __call__(self, call: Call) -> None:
        may_wait()
        dirfd = ctypes.c_int(call.args[2] & 0xFFFFFFFF).value
        expect_mount(self._mounts, call, call.args[3], None if dirfd == AT_FDCWD else dirfd)
        if self._is_copy(call):
            return
        if self._expected:
            self._move(call)
        else:
            call.proceed()

    def _is_copy(self, call: Call) -> bool:
        if not may_mount(call.process):
            return False
        target = to_str(call.process.read_string(call.args[3], PAGE))
        return self._copies.move(call, target, start_of(call.args[2], target))

    def _move(self, call: Call) -> None:
        process = call.process
        tree = call.args[0] & 0xFFFFFFFF
        number = self._device_number(call, tree)
        if number is None:
            call.proceed()
            return
        filesystem = self._expected.pop(number, None)
        if filesystem is None or filesystem is not self._mounts.instances.find(number):
            call.proceed()  # the device number was reused
            return
        target = to_str(process.read_string(call.args[3], PAGE))
        if not target or not may_mount(process) or not call.alive():
            call.proceed()
            return
        dirfd = ctypes.c_int(call.args[2] & 0xFFFFFFFF).value
        start = None if dirfd == AT_FDCWD or target.startswith("/") else dirfd
        try:
            link = self._place(call, start, target, tree)
        except OSError:
            self.expect(filesystem)  # it can be tried again
            raise
        if link is not None:
            filesystem.on_device = link
        call.finish()

    def _place(
        self, call: Call, start: int | None, target: str, tree: int
    ) -> DeviceListener | None:
        """Let a job move the caller's mount ``tree``; return a listener that keeps the links, if
        the target allows links.

        Raises:
            OSError: as move_mount(2).
        """
        mount = call.process.descriptor(tree)
        try:
            with caller_descriptors(call, start) as fds:
                channel = self._mounts.helper.begin("place", (target,), (*fds, mount))
        finally:
            os.close(mount)
        with channel:
            message = channel.receive()
        code, placed = result(message)
        if code:
            raise OSError(code, os.strerror(code))
        assert isinstance(placed, tuple)
        name, linker = placed
        if not name:
            return None
        return partial(self._mounts.helper.link, tuple(message.fds), linker, name)

    @staticmethod
    def _device_number(call: Call, tree: int) -> int | None:
        """Return st_dev of a mount that is moved by descriptor; None: left to the kernel."""
        flags = call.args[4] & 0xFFFFFFFF
        if flags | MOVE_MOUNT_T_SYMLINKS != MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS:
            return None
        if call.process.read_string(call.args[1], PAGE):
            return None
        return call.process.descriptor_device(tree)
