"""umount(2) of what loopfs serves: it returns when all data is in the image, or the instance is
shut down."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext
from time import monotonic, sleep

from loopfs.engines.helper import NOT_OURS, ended, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.intercept.lookup import certainly_elsewhere
from loopfs.intercept.mount import PAGE, MayMount, may_mount
from loopfs.intercept.notify import Call, callers_were_lost, may_wait
from loopfs.text import to_str
from loopfs.uapi.mount import MNT_DETACH, MNT_EXPIRE, UMOUNT_FLAGS

BUSY_FOR = 5.0  # seconds to retry if work for a killed caller may keep the mount busy
_PAUSE = 0.02
_NO_TURN = nullcontext()


class UmountHandler:
    """Unmounts instances and filesystems of engines; leaves every other mount to the kernel.

    Args:
        may_mount: returns whether a caller is served.
        turn: held during an unmount. It is a lock if the kernel would not let the caller unmount
            anything: of two umounts of one place, the second must not unmount what is below ours.
    """

    def __init__(
        self,
        mounts: Mounts,
        may_mount: MayMount = may_mount,
        turn: AbstractContextManager[object] = _NO_TURN,
    ) -> None:
        self._mounts = mounts
        self._may_mount = may_mount
        self._turn = turn

    def __call__(self, call: Call) -> None:
        flags = call.args[1] & 0xFFFFFFFF if call.name == "umount2" else 0
        # MNT_EXPIRE tests whether the mount was accessed, and we would access it.
        if flags & ~UMOUNT_FLAGS or flags & MNT_EXPIRE or not self._devices():
            call.proceed()
        else:
            may_wait()
            self._umount(call, flags)

    def _devices(self) -> tuple[int, ...]:
        return (*self._mounts.device_numbers(), *self._mounts.copies.device_numbers())

    def _try(self, call: Call, job: tuple[object, ...]) -> tuple[int, object]:
        with self._turn, caller_descriptors(call) as fds:
            channel = self._mounts.helper.begin("umount", job, fds)
            with channel:
                return result(ended(channel))

    def _umount(self, call: Call, flags: int) -> None:
        process = call.process
        target = to_str(process.read_string(call.args[0], PAGE))
        call.note(target=target)
        engines = self._mounts.alive()  # one of them may end during this call
        ours = (*(e.device for e in engines), *self._mounts.instances.device_numbers())
        copies = self._mounts.copies
        known = {*ours, *copies.device_numbers()}
        # Detaching a mount detaches the mounts in it as well. Only if the kernel itself allows that
        # to the caller: an agent also serves others.
        tree = bool(flags & MNT_DETACH and engines) and may_mount(process)
        elsewhere = (
            not tree
            and not copies.of_trees
            and certainly_elsewhere(process, target, known.__contains__)
        )
        if elsewhere or not self._may_mount(process):
            call.proceed()
            return
        if not call.alive():
            return
        others = tuple(copies.sysfs), tuple(copies.devs), copies.of_trees
        end = monotonic() + BUSY_FOR
        while True:
            code, device = self._try(call, (target, flags, ours, others, tree))
            if code != errno.EBUSY or not call.alive():
                break
            if monotonic() > end or not callers_were_lost(call):
                break
            sleep(_PAUSE)
        if code == NOT_OURS:
            call.proceed()
        elif code:
            call.fail(code)
        else:
            assert isinstance(device, int)
            for engine in engines:
                if engine.device == device:
                    engine.umounted(process.tgid)
                elif tree:
                    engine.settle(lambda disk: True)
            self._mounts.instances.settled()
            call.finish()
