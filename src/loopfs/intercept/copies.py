"""mount(2) of sysfs and devtmpfs, and bind mounts of /sys and /dev: the copies that they create
show the sandbox's devices as the originals do.

open_tree(2) is left to the kernel, since its descriptor could not be passed to the caller. So a
clone of /sys that it has created is completed when move_mount(2) attaches it.
"""

from __future__ import annotations

import ctypes
import os

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.engines.copies import SYSFS_ROOT_INO, Place
from loopfs.engines.helper import NOT_OURS, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.intercept.lookup import peek
from loopfs.intercept.notify import Call
from loopfs.process import Process
from loopfs.uapi.mount import (
    AT_FDCWD,
    MOVE_MOUNT_F_EMPTY_PATH,
    MOVE_MOUNT_T_SYMLINKS,
    MS_REC,
)

SYSFS, DEVTMPFS = "sysfs", "devtmpfs"
TYPES = frozenset({SYSFS, DEVTMPFS})


class CopyHandler:
    """Creates the copies. Its callers have checked that the mount is not left to the kernel."""

    def __init__(self, mounts: Mounts) -> None:
        self._mounts = mounts
        self._copies = mounts.copies

    def mount(self, call: Call, fstype: str, target: str, flags: int) -> None:
        """Carry out a new mount of one of :data:`TYPES`."""
        if fstype == SYSFS:
            self._begin(call, "sysfs", (None, target, flags))
        else:
            self._begin(call, "dev", (target, flags))

    def bind(self, call: Call, source: str | None, target: str | None, flags: int) -> bool:
        """Carry out a bind mount of /sys or /dev. Return whether the call has been answered."""
        self._copies.of_trees |= bool(flags & MS_REC)
        if source is None or target is None or flags & MS_REC:
            return False
        kind = self._kind(call.process, source)
        if kind == SYSFS:
            self._begin(call, "sysfs", (source, target, 0))
        elif kind == DEVTMPFS:
            self._begin(call, "dev", (target, 0))
        return kind is not None

    def move(self, call: Call, target: str, start: int | None) -> bool:
        """Carry out a move_mount(2) of a copy of /sys. Return whether the call has been answered.

        Args:
            target: the path of the target.
            start: the caller's descriptor from which ``target`` is resolved, if any.
        """
        flags, tree = call.args[4] & 0xFFFFFFFF, call.args[0] & 0xFFFFFFFF
        if flags | MOVE_MOUNT_T_SYMLINKS != MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS:
            return False
        self._copies.of_trees = True  # open_tree(2) may have cloned one
        if not target or call.process.descriptor_device(tree) not in self._copies.sysfs:
            return False
        if not call.args[1] or call.process.read(call.args[1], 1) != b"\0":
            return False
        mount = call.process.descriptor(tree)
        try:
            if not self._is_bare(mount):
                return False
            with caller_descriptors(call, start) as fds:
                channel = self._mounts.helper.begin("dress", (target,), (*fds, mount))
        finally:
            os.close(mount)
        with channel:
            call.answer(result(channel.receive())[0])
        return True

    def _is_bare(self, mount: int) -> bool:
        """Return whether a mount is a whole sysfs in which nothing of ours is mounted."""
        if _ino(mount) != SYSFS_ROOT_INO:
            return False
        block = os.open("block", os.O_PATH | os.O_CLOEXEC, dir_fd=mount)
        try:
            return syscalls.statx_dev(block) not in self._copies.magic
        finally:
            close_all([block])

    def _kind(self, process: Process, source: str) -> str | None:
        try:
            place = peek(process, source)
        except OSError:
            return None  # left to the kernel
        try:
            number = syscalls.statx_dev(place)
            if number in self._copies.sysfs and _ino(place) == SYSFS_ROOT_INO:
                return SYSFS
            if self._copies.dev is not None and _is(place, self._copies.dev):
                return DEVTMPFS
            # In a nested user namespace the mounts in /dev are locked, so the kernel's bind mount
            # without them would fail with EINVAL.
            instance = self._copies.instance
            if instance is not None and _is(place, instance):
                return DEVTMPFS if len(process.user_namespaces()) > 1 else None
        finally:
            os.close(place)
        return None

    def _begin(self, call: Call, job: str, arguments: tuple[object, ...]) -> None:
        with caller_descriptors(call) as fds:
            channel = self._mounts.helper.begin(job, arguments, fds)
        with channel:
            code, made = result(channel.receive())
        if code == NOT_OURS:
            call.proceed()
            return
        if isinstance(made, tuple):
            tmpfs, is_tree = made
            self._copies.of_trees |= is_tree and not tmpfs
            if tmpfs:
                self._copies.add_dev(tmpfs)
        elif code == 0:
            assert isinstance(made, int)
            self._copies.add_sysfs(made)
        call.answer(code)


def start_of(argument: int, path: str) -> int | None:
    """Return the caller's descriptor from which a path is resolved; None: its root or cwd."""
    dirfd = ctypes.c_int(argument & 0xFFFFFFFF).value
    return None if dirfd == AT_FDCWD or path.startswith("/") else dirfd


def _is(fd: int, place: Place) -> bool:
    return syscalls.statx_dev(fd) == place.device and _ino(fd) == place.ino


def _ino(place: int) -> int:
    return syscalls.descriptor_info(os.getpid(), place).ino
