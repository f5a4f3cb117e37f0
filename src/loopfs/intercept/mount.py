"""mount(2) of type loop, of a device of an instance, and the remount of an instance."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from functools import cache, partial

from loopfs.channel import Channel, Message, close_all
from loopfs.driver.fs_context import (
    FsContext,
    LoopParameters,
    Parameters,
    Phase,
    ShownParameters,
)
from loopfs.engines.engine import NoEngine, Served, Wanted
from loopfs.engines.helper import NOT_OURS, SERVE, WRITE_BACK, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.policy import KERNEL, TYPES, Policy
from loopfs.errors import LoopfsError
from loopfs.filesystems.engine_device import EngineDevice
from loopfs.filesystems.instances import PATIENCE, Owner
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.shares import ENGINE, INSTANCE, Share
from loopfs.intercept import lookup
from loopfs.intercept.cover import expect_mount
from loopfs.intercept.notify import Call, may_wait
from loopfs.lean import NamedTuple
from loopfs.process import Process, user_namespaces
from loopfs.text import shown, to_str
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

PAGE = 4096  # as much of a string argument as mount(2) takes
LOOP = "loop"
# What mountinfo shows of a mount of FUSE: mount(8) gives it back when it remounts.
_SHOWN = frozenset({"user_id=0", "group_id=0", "default_permissions", "allow_other"})


class MountHandler:
    """Mounts instances and devices of the sandbox; leaves every other mount to the kernel."""

    def __init__(self, mounts: Mounts, policy: Policy) -> None:
        self._mounts = mounts
        self._policy = policy

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
                expect_mount(self._mounts, call, call.args[1])
            elif flags & MS_BIND and flags & MS_RDONLY:
                self._mounts.instances.some_read_only = True
            call.proceed()
        else:
            may_wait()
            self._mount(call, flags)

    def _may_be_ours(self, fstype: str) -> bool:
        return fstype == LOOP or fstype in block_types() or self._policy.leaves_to_kernel(fstype)

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
        if target is None or not may_mount(process):
            call.proceed()
        elif not call.alive():
            return
        elif fstype == LOOP:
            self._mount_instance(call, source, target, flags, data)
        elif source is None:
            call.proceed()
        elif self._policy.leaves_to_kernel(fstype):
            from loopfs.intercept.kernel_mount import mount_by_kernel

            job = (source, target, fstype, flags, data)
            code = mount_by_kernel(self._mounts, call, *job)
            if code != NOT_OURS:
                call.note(engine=KERNEL)
            _answer(call, code)
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
            begun.channel.close()

    def _converse(self, call: Call, begun: Begun) -> int:
        """The job's outcome: an errno, NOT_OURS, or 0."""
        code, served = result(begun.message)
        if code:
            return code
        if isinstance(served, tuple):  # else an engine that we know has it already
            self._mounts.add(begun.message.fds[0], Served._make(served), begun.device)
        if not call.alive():
            return errno.EINTR
        begun.channel.send(b"go")
        return result(begun.channel.receive())[0]

    # --- remount ---------------------------------------------------------------------

    def _remount(self, call: Call, flags: int) -> None:
        process, mounts = call.process, self._mounts
        target = _path(process, call.args[1])
        call.note(target=target)
        if target is None or lookup.certainly_elsewhere(process, target, mounts.instances.find):
            call.proceed()
            return
        if not may_mount(process):
            call.proceed()
            return
        for register in (2, 0):  # the type and the source mean nothing here, but must be readable
            optional_text(process, call.args[register])
        context = remount_context(LOOP)
        data = _data(process, call.args[4])
        call.note(data=data)
        refused = _refusal(context, data)  # it matters only if the target is an instance
        if not call.alive():
            return
        with caller_descriptors(call) as fds:
            arguments = (mounts.instances.device_numbers(), target, flags, refused)
            channel = mounts.helper.begin("remount", arguments, fds)
        with channel:
            code, device_number = result(channel.receive())
        if code == NOT_OURS:
            call.proceed()
            return
        if code == 0:
            assert isinstance(device_number, int)
            if (filesystem := mounts.instances.find(device_number)) is not None:
                set_limit(filesystem, context)
        call.answer(code)


def _answer(call: Call, code: int) -> None:
    """Answer with a job's outcome."""
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
    """Have an instance made in the caller's namespaces.

    Args:
        owner: the caller.
        target: None for a context.
        flags: MS_*.
        refused: the errno if there is such a target, else 0.
    Returns:
        the job's channel, and the answer and the share for :func:`adopt_instance`.
    Raises:
        OSError: as mount(2); EMFILE: the owner has as much in use as he may.
    """
    source = context.source or "none"  # FUSE takes no empty one
    assert isinstance(context.parameters, LoopParameters)
    share = mounts.instances.shares.take(owner.user, INSTANCE, errno.EMFILE)
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
    """Serve the instance that a job has made.

    Raises:
        OSError: EAGAIN: there is no room for its thread; its descriptors are closed.
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
    """The context of a superblock that is there."""

    def parameters() -> Parameters:
        shown = ShownParameters(_SHOWN)
        return LoopParameters(shown) if fstype == LOOP else shown

    return FsContext(fstype, parameters, Phase.RECONF_PARAMS)


def set_limit(filesystem: LoopFilesystem, context: FsContext) -> None:
    """Give an instance the limit that the context has, if it has one."""
    assert isinstance(context.parameters, LoopParameters)
    limit = context.parameters.max
    if limit is not None:
        filesystem.instance.max_devices = limit


class EngineChoice(NamedTuple):
    """What is to serve a device of ours: an engine and its options, or why nothing is."""

    engine: str
    options: tuple[str, ...]
    refused: int
    why: str

    @classmethod
    def of(cls, policy: Policy, fstype: str, data: str) -> EngineChoice:
        """As the policy has it; for the options of ``data``."""
        try:
            engine = policy.choose(fstype)
            return cls(engine.name, engine.translated(data), 0, "")
        except NoEngine as problem:
            return cls("", (), problem.code, f"cannot mount {fstype}: {problem.strerror}")
        except OSError as problem:
            return cls("", (), problem.errno or errno.EINVAL, "")


class Begun(NamedTuple):
    """A job that mounts: its channel, its answer, and what its engine has the device from."""

    channel: Channel
    message: Message
    device: EngineDevice | None


def begin_engine(
    mounts: Mounts, call: Call, arguments: tuple[object, ...], choice: EngineChoice
) -> Begun:
    """Have an engine serve a device in the caller's namespaces.

    Args:
        arguments: source, target (None for a context), type and MS_* flags.
    Raises:
        OSError: EMFILE: the caller has as much in use as he may.
    """
    share = mounts.instances.shares.take(call.process.charged_user(), ENGINE, errno.EMFILE)
    with share:
        begun = _begin_engine(mounts, call, arguments, choice)
    if begun.device is None:  # no engine more
        share.give_back()
    else:
        share.last_as_long_as(begun.device)
    return begun


def _begin_engine(
    mounts: Mounts, call: Call, arguments: tuple[object, ...], choice: EngineChoice
) -> Begun:
    with caller_descriptors(call) as fds:
        how = (choice.engine, choice.options, choice.refused)
        served = tuple(tuple(each) for each in mounts.served())
        job = (mounts.instances.device_numbers(), *arguments, *how, served)
        channel = mounts.helper.begin("mount", job, fds)
    try:
        message, device = _converse(mounts, call, channel, str(arguments[2]))
    except BaseException:
        channel.close()  # the job sees that nobody waits, and ends
        raise
    outcome = result(message)
    if choice.engine and outcome[0] != NOT_OURS:
        call.note(engine=choice.engine)
    if choice.why and outcome == (choice.refused, True):
        # A device of ours, and that is what is on it: mount(8) may try every type in turn.
        tell(call, choice.why)
    return Begun(channel, message, device)


def tell(call: Call, why: str) -> None:
    """Say to the person why a mount is refused."""
    call.note(why=why)
    print(f"loopfs: {shown(why)}", file=sys.stderr, flush=True)


def _converse(
    mounts: Mounts, call: Call, channel: Channel, fstype: str
) -> tuple[Message, EngineDevice | None]:
    """What a job says: what it wants served, and its answer."""
    device = None
    message = channel.receive()
    code, value = result(message)
    while code in (WRITE_BACK, SERVE):
        assert isinstance(value, tuple)
        refused = 0
        try:
            if code == SERVE:
                device = mounts.serve(Wanted._make(value), message.fds[0])
                call.note(why=device.lock.without or None)
            else:
                mounts.write_back(*value)
        except OSError as problem:
            refused = problem.errno or errno.EIO
            if isinstance(problem, LoopfsError):
                tell(call, f"cannot mount {fstype}: {problem.strerror}")
        channel.send(b"%d" % refused)
        message = channel.receive()
        code, value = result(message)
    if code and device is not None:
        channel.close()  # the job ends, and so does the mount; then the device is free again
        device.gone.wait(PATIENCE)
    return message, device


def text(process: Process, address: int, limit: int = PAGE) -> str:
    """A string argument as strndup_user() reads it.

    Raises:
        OSError: EFAULT; EINVAL when there is no NUL within ``limit`` bytes.
    """
    try:
        return to_str(process.read_string(address, limit))
    except OSError as problem:
        if problem.errno != errno.ENAMETOOLONG:
            raise
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None


def optional_text(process: Process, address: int) -> str | None:
    """As :func:`text`, but a null pointer is nothing (copy_mount_string())."""
    return text(process, address) if address else None


def _path(process: Process, address: int) -> str | None:
    return to_str(process.read_string(address, PAGE)) if address else None


def _data(process: Process, address: int) -> str:
    """The last argument: a page, of which what cannot be read is NULs (copy_mount_options())."""
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
    """Give a context its options; the errno for them, or 0."""
    try:
        context.set_all(data)
    except OSError as problem:
        return problem.errno or errno.EINVAL
    return 0


@cache
def block_types() -> frozenset[str]:
    """The filesystems that lie on block devices: ours, and those that this kernel has.

    For the latter the kernel would say EPERM to a user namespace, and mount(8) would stop
    trying; of a device of ours they are ENODEV.
    """
    with open("/proc/filesystems", encoding="utf-8") as file:
        names = {line.strip() for line in file if not line.startswith("nodev")}
    return frozenset(names | TYPES)


def may_mount(process: Process) -> bool:
    """The caller has CAP_SYS_ADMIN over its mount namespace: in the user namespace that owns it,
    or in one around that."""
    if not process.has_capability():
        return False
    fd = os.open(process.path("ns/mnt"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, NS_GET_USERNS)
    finally:
        os.close(fd)
    return process.namespace("user") in user_namespaces(owner)
