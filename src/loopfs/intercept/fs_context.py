"""fsopen(2), fsconfig(2) and fspick(2) of type loop and of devices.

A context of ours is the reading end of a pipe: its inode number identifies the context, the kernel
counts its duplicates, and the supervisor, which has the other end, notices when all are closed.
The messages of a context are read from it one at a time, as from one of the kernel (the pipe is in
packet mode).

FSCONFIG_CMD_CREATE replaces it by a context of the kernel, which has the superblock. So the
following calls (fsmount, move_mount, mount_setattr, open_tree) are left to the kernel, as is the
lifetime of the mount.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
import threading
from collections.abc import Callable
from functools import partial

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.driver.fs_context import FsContext, LoopParameters, Parameters, Phase
from loopfs.engines.engine import Served
from loopfs.engines.helper import NOT_OURS, result
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.policy import Policy
from loopfs.engines.running import Engine
from loopfs.errors import DriverError
from loopfs.filesystems.instances import Owner
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.shares import CONTEXT, Share, Shares
from loopfs.filesystems.threads import start
from loopfs.intercept import overlay
from loopfs.intercept.copies import TYPES as COPIED
from loopfs.intercept.engine_mount import Begun, EngineChoice, begin_engine
from loopfs.intercept.lookup import certainly_elsewhere
from loopfs.intercept.mount import (
    LOOP,
    PAGE,
    adopt_instance,
    begin_instance,
    block_types,
    may_mount,
    remount_context,
    set_limit,
    text,
)
from loopfs.intercept.notify import Call, Handler, may_wait
from loopfs.intercept.place import PlaceHandler
from loopfs.intercept.remount_engine import engines_told, told
from loopfs.lean import NamedTuple
from loopfs.process import Process
from loopfs.text import to_bytes, to_str
from loopfs.uapi import mount as uapi

NAME_LIMIT = 256  # bytes of a parameter's name or value, with the NUL
MAX_BINARY = 1 << 20


class EngineParameters(Parameters):
    """The mount options of a filesystem on a device.

    Args:
        policy: chooses the engine, which defines the options.
        fstype: the filesystem type.
    """

    def __init__(self, policy: Policy, fstype: str) -> None:
        self._policy = policy
        self._fstype = fstype
        self.options: list[str] = []

    def parse(self, key: str, value: str | None) -> None:
        option = key if value is None else f"{key}={value}"
        if EngineChoice.of(self._policy, self._fstype, option).refused == errno.EINVAL:
            known = self._policy.choose(self._fstype).has_option(key)
            what = "Bad value for" if known else "Unknown parameter"
            raise DriverError(errno.EINVAL, f"{self._fstype}: {what} '{key}'")
        self.options.append(option)


class Picked(NamedTuple):
    """What fspick(2) chose: a context of the kernel for it, and the instance or the engine, if
    there is one that must be informed of changes."""

    context: int
    filesystem: LoopFilesystem | None
    engine: Engine | None = None


class OpenContext:
    """A context that a process has open.

    Args:
        context: the configuration.
        log: the writing end of the pipe.
        picked: the superblock to be reconfigured, if any.
        userns: the user namespace that opened it (its inode number).
        share: the share that is charged for it.
    """

    def __init__(
        self, context: FsContext, log: int, picked: Picked | None, userns: int, share: Share
    ) -> None:
        self._share = share
        self.context = context
        self.userns = userns
        self.picked = picked
        self.lock = threading.Lock()  # held during a change; the caller has been read before
        self.closed = False
        self._abandoned = False
        self._log = log

    def say(self, sentence: str) -> None:
        """Add an error message, which can be read from the context."""
        try:
            os.write(self._log, to_bytes(f"e {sentence}\n"))
        except (BlockingIOError, BrokenPipeError):
            return  # the pipe is full

    def close(self) -> None:
        """Close it after its last descriptor; a thread that uses it does so in :meth:`left`."""
        self._abandoned = True
        self.left()

    def left(self) -> None:
        """Must be called by a thread that has released the lock."""
        if self._abandoned and self.lock.acquire(blocking=False):
            try:
                if not self.closed:
                    self.closed = True
                    os.close(self._log)
                    if self.picked is not None:
                        os.close(self.picked.context)
                    self._share.give_back()
            finally:
                self.lock.release()


class OpenContexts:
    """The open contexts, by the inode number of their pipe.

    Args:
        shares: limits the number of contexts of each user.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._lock = threading.Lock()
        self._contexts: dict[int, tuple[int, OpenContext]] = {}
        self._poller: select.epoll | None = None

    def open(self, call: Call, context: FsContext, picked: Picked | None, *, cloexec: bool) -> None:
        """Answer ``call`` with a descriptor of ``context``. ``picked`` is then owned by this
        object.

        Raises:
            OSError: ENFILE (the caller has reached the limit), EAGAIN, EMFILE, ENOMEM. Then
                nothing remains open.
        """
        owned = [] if picked is None else [picked.context]
        try:
            userns = call.process.namespace("user")
            taken = 2 * CONTEXT if picked else CONTEXT
            share = self._shares.take(call.process.charged_user(), taken, errno.ENFILE)
            with share:
                owned += os.pipe2(os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC)
                theirs, ours = owned[-2:]
                opened = OpenContext(context, ours, picked, userns, share)
                with self._lock:
                    self._watching().register(ours, 0)  # EPOLLERR: the reading end is closed
                    self._contexts[ours] = os.fstat(theirs).st_ino, opened
        except OSError:
            close_all(owned)
            raise
        try:
            call.finish_with_descriptor(theirs, close_on_exec=cloexec)
        finally:
            os.close(theirs)

    def _watching(self) -> select.epoll:
        """Return the epoll of the thread that closes contexts. Raises OSError EAGAIN."""
        if self._poller is None:
            poller = select.epoll()
            start("contexts", self._watch, poller)
            self._poller = poller
        return self._poller

    def find(self, process: Process, fd: int) -> OpenContext | None:
        if not self._contexts:
            return None
        try:
            kind, _, number = os.readlink(process.path(f"fd/{fd}")).partition(":")
        except OSError:  # no such descriptor, or no access to it: left to the kernel
            return None
        if kind != "pipe":
            return None
        with self._lock:
            for inode, opened in self._contexts.values():
                if f"[{inode}]" == number:
                    return opened
        return None

    def _watch(self, poller: select.epoll) -> None:
        while True:
            for fd, _ in poller.poll():
                with self._lock:
                    poller.unregister(fd)
                    _, opened = self._contexts.pop(fd)
                try:
                    opened.close()
                except OSError:  # a bug in loopfs: only one context is lost
                    sys.excepthook(*sys.exc_info())


class ContextHandlers:
    """The handlers of these three calls, and of move_mount(2)."""

    def __init__(self, mounts: Mounts, policy: Policy) -> None:
        self._mounts = mounts
        self._policy = policy
        self._open = OpenContexts(mounts.instances.shares)
        self._places = PlaceHandler(mounts)

    def handlers(self) -> dict[str, Handler]:
        return {
            "move_mount": self._places,
            "fsopen": self._fsopen,
            "fspick": self._fspick_if_any,
            "fsconfig": self._if_ours(self._fsconfig),
        }

    def _fspick_if_any(self, call: Call) -> None:
        if self._mounts.device_numbers():
            may_wait()
            self._fspick(call)
        else:
            call.proceed()

    def _if_ours(self, handler: Callable[[Call, OpenContext], None]) -> Handler:
        def checked(call: Call) -> None:
            opened = self._open.find(call.process, call.args[0] & 0xFFFFFFFF)
            if opened is None:
                call.proceed()
                return
            may_wait()
            handler(call, opened)

        return checked

    def _parameters(self, fstype: str) -> Parameters:
        return LoopParameters() if fstype == LOOP else EngineParameters(self._policy, fstype)

    # --- fsopen, fspick ------------------------------------------------------------

    def _fsopen(self, call: Call) -> None:
        may_wait()
        process = call.process
        flags = call.args[1] & 0xFFFFFFFF
        if flags & ~uapi.FSOPEN_CLOEXEC or not may_mount(process):
            call.proceed()
            return
        fstype = text(process, call.args[0])
        call.note(fsname=fstype)
        cloexec = bool(flags & uapi.FSOPEN_CLOEXEC)
        if fstype == overlay.TYPE and overlay.open_overlay(self._mounts, call, cloexec=cloexec):
            return
        if not (fstype == LOOP or fstype in COPIED or fstype in block_types()):
            call.proceed()
            return
        if not call.alive():
            return
        if fstype in COPIED:
            call.fail(errno.ENOSYS)  # so mount(8) calls mount(2), which can be carried out
            return
        if self._policy.leaves_to_kernel(fstype):
            # fsmount(2) would allow attributes that the kernel's own mount must not have.
            call.fail(errno.ENOSYS)
            return
        context = FsContext(fstype, lambda: self._parameters(fstype))
        self._open.open(call, context, None, cloexec=cloexec)

    def _fspick(self, call: Call) -> None:
        process, mounts = call.process, self._mounts
        flags = call.args[2] & 0xFFFFFFFF
        if flags & ~uapi.FSPICK_FLAGS or not may_mount(process):
            call.proceed()
            return
        path = to_str(process.read_string(call.args[1], PAGE))
        call.note(path=path)
        dirfd = ctypes.c_int(call.args[0] & 0xFFFFFFFF).value
        devices = mounts.device_numbers()
        start = None if dirfd == uapi.AT_FDCWD or path.startswith("/") else dirfd
        if (not path and not flags & uapi.FSPICK_EMPTY_PATH) or self._certainly_elsewhere(
            process, start, path, devices
        ):
            call.proceed()
            return
        follow = not flags & uapi.FSPICK_SYMLINK_NOFOLLOW
        with caller_descriptors(call, start) as fds:
            arguments = (devices, path, follow)
            channel = mounts.helper.begin("pick", arguments, fds)
        with channel:
            message = channel.receive()
        code, number = result(message)
        if code == NOT_OURS:
            call.proceed()
            return
        if code:
            raise OSError(code, os.strerror(code))
        assert isinstance(number, int)
        engine = engines_told(mounts).get(number)
        picked = Picked(message.fds[0], mounts.instances.find(number), engine)
        context = remount_context(LOOP if picked.filesystem else "fuse")
        cloexec = bool(flags & uapi.FSPICK_CLOEXEC)
        self._open.open(call, context, picked, cloexec=cloexec)

    @staticmethod
    def _certainly_elsewhere(
        process: Process, start: int | None, path: str, devices: tuple[int, ...]
    ) -> bool:
        if start is None and path:
            return certainly_elsewhere(process, path, devices.__contains__)
        if path:
            return False
        if start is None:
            return syscalls.statx_dev(-1, process.path("cwd")) not in devices
        return process.descriptor_device(start) not in devices

    # --- fsconfig ------------------------------------------------------------------

    def _fsconfig(self, call: Call, opened: OpenContext) -> None:
        command, key, value = call.args[1] & 0xFFFFFFFF, *call.args[2:4]
        aux = ctypes.c_int(call.args[4] & 0xFFFFFFFF).value
        check_arguments(command, bool(key), bool(value), aux)
        act: Callable[[], None]
        if command == uapi.FSCONFIG_CMD_RECONFIGURE:
            act = partial(self._reconfigure, call, opened)
        elif command in (uapi.FSCONFIG_CMD_CREATE, uapi.FSCONFIG_CMD_CREATE_EXCL):
            act = partial(self._create, call, opened)
        else:
            name = text(call.process, key, NAME_LIMIT)
            string = _value(call.process, command, value, aux)
            call.note(key=name, value=string)
            act = partial(opened.context.set, name, string)
        try:
            with opened.lock:
                if opened.closed or not call.alive():  # closed by another thread of the caller
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                try:
                    act()
                except DriverError as problem:
                    if problem.strerror != os.strerror(problem.code):
                        opened.say(str(problem.strerror))
                    raise
        finally:
            opened.left()
        call.finish()

    def _create(self, call: Call, opened: OpenContext) -> None:
        context = opened.context
        context.check_phase(Phase.CREATE_PARAMS)
        call.note(fstype=context.fstype, source=context.source)
        if call.process.namespace("user") != opened.userns or not may_mount(call.process):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        fd = call.args[0] & 0xFFFFFFFF
        close_on_exec = syscalls.descriptor_info(call.process.tid, fd).flags & os.O_CLOEXEC
        try:
            create = self._create_instance if context.fstype == LOOP else self._create_engine
            made = create(call, context)
        except OSError:
            context.fail()
            raise
        try:
            if call.alive():
                call.replace_descriptor(fd, made, close_on_exec=bool(close_on_exec))
        finally:
            os.close(made)

    def _create_instance(self, call: Call, context: FsContext) -> int:
        owner = Owner.of(call.process)
        channel, message, share = begin_instance(self._mounts, call, owner, context)
        channel.close()
        fuse, superblock = message.fds
        try:
            only = message._replace(fds=[fuse])
            made = adopt_instance(self._mounts, owner, context, only, share)
        except BaseException:
            os.close(superblock)
            raise
        assert isinstance(context.parameters, LoopParameters)
        if context.parameters.links:
            self._places.expect(made)
        return superblock

    def _create_engine(self, call: Call, context: FsContext) -> int:
        parameters = context.parameters
        assert isinstance(parameters, EngineParameters)
        if context.source is None:
            raise DriverError(errno.EINVAL, f"{context.fstype}: No source specified")
        choice = EngineChoice.of(self._policy, context.fstype, ",".join(parameters.options))
        arguments = (context.source, None, context.fstype, context.sb_flags)
        begun = begin_engine(self._mounts, call, arguments, choice)
        try:
            return self._adopt_engine(context, begun)
        finally:
            begun.close()

    def _adopt_engine(self, context: FsContext, begun: Begun) -> int:
        """Record the engine that a job has started; return the kernel's context made by the job."""
        code, served = result(begun.message)
        if code == NOT_OURS:  # a user namespace may not mount a filesystem that the kernel parses
            code = errno.EPERM
        if code in (errno.ENOENT, errno.ENOTDIR):
            raise DriverError(code, f"{context.source}: Can't lookup blockdev")
        if code:
            raise OSError(code, os.strerror(code))
        *engine, made = begun.message.fds
        if isinstance(served, tuple):  # else it is a known engine, which has the device already
            self._mounts.add(engine, Served._make(served), begun.device)
        return made

    def _reconfigure(self, call: Call, opened: OpenContext) -> None:
        context, picked = opened.context, opened.picked
        context.check_phase(Phase.RECONF_PARAMS)
        assert picked is not None
        try:
            if not call.process.has_capability():
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            changes = context.sb_flags_mask & uapi.MS_RDONLY
            read_only = bool(context.sb_flags & uapi.MS_RDONLY) if changes else None
            with told(self._mounts, picked.engine, read_only):
                self._reconfigure_kernels(call, context, picked.context)
        except OSError:
            context.fail()
            raise
        if picked.filesystem is not None:
            set_limit(picked.filesystem, context)
        context.clean()

    def _reconfigure_kernels(self, call: Call, context: FsContext, kernels: int) -> None:
        """Reconfigure the superblock itself; the kernel checks the permission."""
        arguments = (context.sb_flags, context.sb_flags_mask)
        with caller_descriptors(call) as fds:
            channel = self._mounts.helper.begin("reconfigure", arguments, (*fds, kernels))
        with channel:
            code, _ = result(channel.receive())
        if code:
            raise OSError(code, os.strerror(code))


def check_arguments(command: int, key: bool, value: bool, aux: int) -> None:
    """Check the arguments of fsconfig(2), as the kernel does first.

    Args:
        key, value: whether the pointer is not null.
    Raises:
        OSError: EINVAL; EOPNOTSUPP for an unknown command.
    """
    allowed = {
        uapi.FSCONFIG_SET_FLAG: key and not value and aux == 0,
        uapi.FSCONFIG_SET_STRING: key and value and aux == 0,
        uapi.FSCONFIG_SET_BINARY: key and value and 0 < aux <= MAX_BINARY,
        uapi.FSCONFIG_SET_PATH: key and value and (aux == uapi.AT_FDCWD or aux >= 0),
        uapi.FSCONFIG_SET_PATH_EMPTY: key and value and (aux == uapi.AT_FDCWD or aux >= 0),
        uapi.FSCONFIG_SET_FD: key and not value and aux >= 0,
    }
    for bare in (
        uapi.FSCONFIG_CMD_CREATE,
        uapi.FSCONFIG_CMD_CREATE_EXCL,
        uapi.FSCONFIG_CMD_RECONFIGURE,
    ):
        allowed[bare] = not key and not value and aux == 0
    if command not in allowed:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if not allowed[command]:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _value(process: Process, command: int, address: int, aux: int) -> str | None:
    """Return the value of a parameter if it is a string; other values are only checked.

    Raises:
        OSError: as fsconfig(2): EFAULT, EINVAL, ENOENT, ENAMETOOLONG, EBADF.
    """
    if command == uapi.FSCONFIG_SET_STRING:
        return text(process, address, NAME_LIMIT)
    if command == uapi.FSCONFIG_SET_BINARY:
        process.read(address, aux)
    elif command in (uapi.FSCONFIG_SET_PATH, uapi.FSCONFIG_SET_PATH_EMPTY):
        path = process.read_string(address, PAGE)
        if not path and command == uapi.FSCONFIG_SET_PATH:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    elif command == uapi.FSCONFIG_SET_FD and not os.path.lexists(process.path(f"fd/{aux}")):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return None
