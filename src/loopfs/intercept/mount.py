"""mount(2) of type loop, of a device of an instance, and remounts of both."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from functools import cache, partial

from loopfs.channel import Channel, Message, close_all
from loopfs.driver.fs_context import (
    FsContext,
    LoopParameters,
    Parameters,
    Phase,
    ShownParameters,
)
from loopfs.engines.engine import Served
from loopfs.engines.helper import NOT_OURS, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.policy import KERNEL, TYPES, Policy
from loopfs.filesystems.instances import Owner
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.shares import INSTANCE, LINKS, Share
from loopfs.intercept import fuseblk, lookup, overlay
from loopfs.intercept.copies import TYPES as COPIED
from loopfs.intercept.copies import CopyHandler
from loopfs.intercept.cover import expect_mount
from loopfs.intercept.engine_mount import Begun, EngineChoice, begin_engine
from loopfs.intercept.notify import Call, may_wait
from loopfs.intercept.remount_engine import engines_told, told
from loopfs.process import Process, user_namespaces
from loopfs.text import to_str
from loopfs.uapi.mount import (
    MS_BIND,
    MS_MOVE,
    MS_NOT_NEW,
    MS_NOUSER_AND_ABOVE,
    MS_RDONLY,
    MS_REMOUNT,
    NS_GET_USERNS,
    mount_flags,
)

PAGE = 4096  # maximum size of a string argument of mount(2)
LOOP = "loop"
MayMount = Callable[[Process], bool]
# Options of FUSE that mountinfo shows and mount(8) passes back when it remounts.
_SHOWN = frozenset({"user_id=0", "group_id=0", "default_permissions", "allow_other"})


def may_mount(process: Process) -> bool:
    """Return whether the caller has CAP_SYS_ADMIN over its mount namespace: in the user namespace
    that owns it, or in an ancestor of that."""
    if not process.has_capability():
        return False
    fd = os.open(process.path("ns/mnt"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, NS_GET_USERNS)
    finally:
        os.close(fd)
    return process.namespace("user") in user_namespaces(owner)


class MountHandler:
    """Mounts instances and devices of the sandbox; leaves every other mount to the kernel.

    Args:
        may_mount: returns whether a caller is served.
        copies: whether /sys and /dev are the sandbox's own; then copies of them are as well.
    """

    def __init__(
        self,
        mounts: Mounts,
        policy: Policy,
        may_mount: MayMount = may_mount,
        *,
        copies: bool = True,
    ) -> None:
        self._mounts = mounts
        self._may_mount = may_mount
        self._policy = policy
        self._copies = CopyHandler(mounts) if copies else None

    def __call__(self, call: Call) -> None:
        flags = mount_flags(call.args[3])
        if flags & MS_NOUSER_AND_ABOVE:
            call.proceed()  # EINVAL
        elif flags & (MS_REMOUNT | MS_BIND) == MS_REMOUNT:
            may_wait()
            self._remount(call, flags)
        elif flags & MS_NOT_NEW:
            if flags & (MS_BIND | MS_MOVE) and not flags & MS_REMOUNT:
                may_wait()
                if flags & MS_BIND and self._bind_copy(call, flags):
                    return
                expect_mount(self._mounts, call, call.args[1])
            elif flags & MS_BIND and flags & MS_RDONLY:
                self._mounts.instances.some_read_only = True
            call.proceed()
        else:
            may_wait()
            self._mount(call, flags)

    def _bind_copy(self, call: Call, flags: int) -> bool:
        process = call.process
        source, target = optional_text(process, call.args[0]), _path(process, call.args[1])
        call.note(source=source, target=target)
        if self._copies is None or not self._may_mount(process):
            return False
        return self._copies.bind(call, source, target, flags)

    def _may_be_ours(self, fstype: str) -> bool:
        if fstype in COPIED or fstype == overlay.TYPE:
            return self._copies is not None
        if fstype == LOOP or fstype in block_types():
            return True
        return fuseblk.is_fuseblk(fstype) or self._policy.leaves_to_kernel(fstype)

    # --- new mounts ------------------------------------------------------------------

    def _mount(self, call: Call, flags: int) -> None:
        process = call.process
        fstype = optional_text(process, call.args[2])
        call.note(fstype=fstype)
        if fstype is None or not self._may_be_ours(fstype):
            expect_mount(self._mounts, call, call.args[1])
            call.proceed()
            return
        source = optional_text(process, call.args[0])
        data = _data(process, call.args[4])
        target = _path(process, call.args[1])
        call.note(source=source, target=target, data=data)
        if target is None or not self._may_mount(process):
            call.proceed()
        elif not call.alive():
            return
        elif self._copies is not None and fstype in COPIED:
            self._copies.mount(call, fstype, target, flags)
        elif fstype == overlay.TYPE:
            expect_mount(self._mounts, call, call.args[1])
            code = overlay.mount_overlay(self._mounts, call, source, target, flags, data)
            _answer(call, code)
        elif fstype == LOOP:
            self._mount_instance(call, source, target, flags, data)
        elif source is None:  # the kernel would return EPERM before it checks the source
            os.close(lookup.resolved(self._mounts, call, target))
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        elif self._policy.leaves_to_kernel(fstype):
            from loopfs.intercept.kernel_mount import mount_by_kernel

            job = (source, target, fstype, flags, data)
            code = mount_by_kernel(self._mounts, call, *job)
            if code != NOT_OURS:
                call.note(engine=KERNEL)
            _answer(call, code)
        elif fuseblk.is_fuseblk(fstype) and fuseblk.server(data) is not None:
            job = (source, target, fstype, flags, data)
            _answer(call, fuseblk.mount_fuseblk(self._mounts, call, *job))
        else:
            self._with_engine(call, (source, target, fstype, flags), data)

    def _mount_instance(
        self, call: Call, source: str | None, target: str, flags: int, data: str
    ) -> None:
        context = FsContext(LOOP, LoopParameters)
        if source is not None:
            context.set("source", source)
        refused = _refusal(context, data)
        owner = Owner.of(call.process)
        job = (target, flags, refused)
        channel, message, share = begin_instance(self._mounts, call, owner, context, *job)
        try:
            adopt_instance(self._mounts, owner, context, message, share)
            if call.alive():
                channel.send(b"go")
                call.answer(result(channel.receive())[0])
        finally:
            channel.close()

    def _with_engine(self, call: Call, arguments: tuple[object, ...], data: str) -> None:
        choice = EngineChoice.of(self._policy, str(arguments[2]), data)
        begun = begin_engine(self._mounts, call, arguments, choice)
        try:
            _answer(call, self._converse(call, begun))
        finally:
            begun.close()

    def _converse(self, call: Call, begun: Begun) -> int:
        """Exchange messages with the job; return its result: an errno, NOT_OURS, or 0."""
        code, served = result(begun.message)
        if code:
            return code
        if isinstance(served, tuple):  # else it is a known engine, which has the device already
            self._mounts.add(begun.message.fds, Served._make(served), begun.device)
        begun.next()
        if not call.alive():
            return errno.EINTR
        begun.channel.send(b"go")
        return result(begun.channel.receive())[0]

    # --- remount ---------------------------------------------------------------------

    def _remount(self, call: Call, flags: int) -> None:
        process, mounts = call.process, self._mounts
        target = _path(process, call.args[1])
        call.note(target=target)
        engines = engines_told(mounts)

        def ours(number: int) -> object:
            return number in engines or mounts.instances.find(number)

        if target is None or lookup.certainly_elsewhere(process, target, ours):
            call.proceed()
            return
        if not self._may_mount(process):
            call.proceed()
            return
        for register in (2, 0):  # type and source are ignored, but must be readable
            optional_text(process, call.args[register])
        context = remount_context(LOOP)
        data = _data(process, call.args[4])
        call.note(data=data)
        refused = _refusal(context, data)  # has no effect unless the target is an instance
        if not call.alive():
            return
        dev = mounts.copies.instance
        if dev is not None and flags & MS_RDONLY:
            mounts.instances.some_read_only = True
        numbers = mounts.instances.device_numbers(), 0 if dev is None else dev.device
        with caller_descriptors(call) as fds:
            arguments = (numbers[0], tuple(engines), numbers[1], target, flags, refused)
            channel = mounts.helper.begin("remount", arguments, fds)
        with channel:
            code, device_number = result(channel.receive())
            if code == 0 and device_number in engines:
                assert isinstance(device_number, int)
                with told(mounts, engines[device_number], bool(flags & MS_RDONLY)):
                    channel.send(b"go")
                    code, _ = result(channel.receive())
                    if code:
                        raise OSError(code, os.strerror(code))
        if code == NOT_OURS:
            call.proceed()
            return
        if code == 0:
            assert isinstance(device_number, int)
            if (filesystem := mounts.instances.find(device_number)) is not None:
                set_limit(filesystem, context)
        call.answer(code)


def _answer(call: Call, code: int) -> None:
    """Answer with the result of a job."""
    if code == NOT_OURS:
        call.proceed()
    else:
        call.answer(code)


def begin_instance(
    mounts: Mounts,
    call: Call,
    owner: Owner,
    context: FsContext,
    target: str | None = None,
    flags: int = 0,
    refused: int = 0,
) -> tuple[Channel, Message, Share]:
    """Create an instance in the caller's namespaces.

    Args:
        owner: the caller.
        target: None for a context.
        flags: MS_*.
        refused: the errno with which the call fails if the target exists, else 0.
    Returns:
        the job's channel, and the answer and the share for :func:`adopt_instance`.
    Raises:
        OSError: as mount(2); EMFILE if the owner has reached the limit of resources.
    """
    source = context.source or "none"  # FUSE does not accept an empty source
    assert isinstance(context.parameters, LoopParameters)
    taken = INSTANCE + LINKS * context.parameters.links
    share = mounts.instances.shares.take(owner.user, taken, errno.EMFILE)
    with share:
        with caller_descriptors(call) as fds:
            job = (source, context.sb_flags, target, flags, refused, context.parameters.links)
            channel = mounts.helper.begin("instance", job, fds)
        try:
            message = channel.receive()
            code, _ = result(message)
            if code:
                raise OSError(code, os.strerror(code))
        except BaseException:
            channel.close()
            raise
    return channel, message, share


def adopt_instance(
    mounts: Mounts, owner: Owner, context: FsContext, message: Message, share: Share
) -> LoopFilesystem:
    """Serve the instance that a job has created.

    Raises:
        OSError: EAGAIN if no thread can be started; its descriptors are then closed.
    """
    _, made = result(message)
    assert isinstance(made, tuple)
    device_number, place, linker = made
    fuse, *others = message.fds
    on_device = partial(mounts.helper.link, tuple(others), linker, place) if place else None
    filesystem = mounts.instances.add(fuse, device_number, owner, on_device, share)
    set_limit(filesystem, context)
    try:
        mounts.instances.serve_in_thread(filesystem)
    except OSError:
        close_all(others)
        raise
    return filesystem


def remount_context(fstype: str) -> FsContext:
    """Return a context for an existing superblock."""

    def parameters() -> Parameters:
        shown = ShownParameters(_SHOWN)
        return LoopParameters(shown) if fstype == LOOP else shown

    return FsContext(fstype, parameters, Phase.RECONF_PARAMS)


def set_limit(filesystem: LoopFilesystem, context: FsContext) -> None:
    """Set the limit of an instance to that of a context, if it was given."""
    assert isinstance(context.parameters, LoopParameters)
    limit = context.parameters.max
    if limit is not None:
        filesystem.instance.max_devices = limit


def text(process: Process, address: int, limit: int = PAGE) -> str:
    """Return a string argument, read as by strndup_user().

    Raises:
        OSError: EFAULT; EINVAL if there is no NUL within ``limit`` bytes.
    """
    try:
        return to_str(process.read_string(address, limit))
    except OSError as problem:
        if problem.errno != errno.ENAMETOOLONG:
            raise
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None


def optional_text(process: Process, address: int) -> str | None:
    """As :func:`text`, but return None for a null pointer (copy_mount_string())."""
    return text(process, address) if address else None


def _path(process: Process, address: int) -> str | None:
    return to_str(process.read_string(address, PAGE)) if address else None


def _data(process: Process, address: int) -> str:
    """Return the data argument: up to a page; unreadable bytes are NUL (copy_mount_options())."""
    if not address:
        return ""
    data = process.read_some(address, PAGE - address % PAGE)
    if 0 not in data and len(data) < PAGE:
        try:
            data += process.read_some(address + len(data), PAGE - len(data))
        except OSError as problem:
            if problem.errno != errno.EFAULT:
                raise
    return to_str(data[: PAGE - 1].partition(b"\0")[0])


def _refusal(context: FsContext, data: str) -> int:
    """Set the options of a context; return the errno if that fails, else 0."""
    try:
        context.set_all(data)
    except OSError as problem:
        return problem.errno or errno.EINVAL
    return 0


@cache
def block_types() -> frozenset[str]:
    """Return the types of filesystems on block devices: ours, and those of this kernel.

    For the latter the kernel returns EPERM in a user namespace, after which mount(8) tries no
    other type; for a device of ours the result is ENODEV.
    """
    try:
        with open("/proc/filesystems", encoding="utf-8") as file:
            names = {line.strip() for line in file if not line.startswith("nodev")}
    except FileNotFoundError:  # subset=pid (proc(5))
        return TYPES
    return frozenset(names | TYPES)
