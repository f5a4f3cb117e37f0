"""The job that mounts a device: by an engine that it starts, or from the superblock of a running
one."""

from __future__ import annotations

import errno
import marshal
import os
import stat

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import confinement, paths
from loopfs.engines.caller import Caller, visible
from loopfs.engines.device import DeviceNode, find_device
from loopfs.engines.engine import BLKID, Engine, Launch, Served, Wanted
from loopfs.engines.helper import NOT_OURS, SERVE, TURN, WRITE_BACK, answer
from loopfs.engines.jobs import Job, apply_flags
from loopfs.engines.policy import BY_NAME
from loopfs.engines.programs import check_type
from loopfs.engines.stage import MOUNTPOINT, Server, Stage
from loopfs.engines.superblock import connection_of, disconnected, fuse_context
from loopfs.uapi import mount as uapi


class Mount:
    """A request of a caller. Paths are resolved, and mounts are made, in its namespaces, which
    :meth:`enter` enters.

    ``place`` is a descriptor of the mount point; None if a context for fsmount(2) is requested.
    """

    def __init__(self, channel: Channel, caller: Caller, fstype: str, flags: int) -> None:
        self.channel = channel
        self.caller = caller
        self.fstype = fstype
        self.flags = flags
        self._own_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def enter(self) -> None:
        """Enter the caller's namespaces permanently; the stage is a copy of the current ones."""
        self._stage = Stage()
        self.caller.enter()

    def find(self, source: str, instances: tuple[int, ...]) -> bool:
        """Find the device; return False if it is not in an instance."""
        with self.caller.rights():
            node = find_device(source, self.caller.proc, instances, self._own_fds)
            if node is None:
                return False
            self.shown = node.shown(source)
        self.node: DeviceNode = node
        return True

    def resolve(self, target: str | None) -> None:
        """Resolve the mount point."""
        self.place = None
        if target is not None:
            with self.caller.rights():
                self.place = paths.resolve(target, self.caller.proc)
            confinement.check_place(self.place)

    def check_place(self) -> None:
        if self.place is not None and not stat.S_ISDIR(os.fstat(self.place).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _check_not_there(self, superblock: int) -> None:
        """Check that a superblock is not mounted on itself (do_add_mount). Raises OSError EBUSY."""
        if self.place is None or syscalls.statx_dev(self.place) != superblock:
            return
        with self.caller.rights():
            if syscalls.mount_id(self.place) != syscalls.mount_id(self.place, ".."):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def again(self, engine: Engine) -> bool:
        """Wait for the turn to mount the device. If an engine serves it then, mount the engine's
        superblock. Return whether that was done."""
        read_only = self.read_only(engine)
        while (found := self._served()) is not None:
            context = _context_of(*found, self.fstype, read_only, self.shown)
            if context is None:  # the superblock has ended in the meantime
                continue
            self.check_place()
            self._check_not_there(found[0].superblock)
            if self.place is None:
                answer(self.channel, 0, None, (context,))
            else:
                tree = syscalls.fsmount(context, 0)
                os.close(context)
                apply_flags(tree, self.flags)
                answer(self.channel, 0)
                if self.move_to_caller(tree):
                    answer(self.channel, 0)
            return True
        return False

    def _served(self) -> tuple[Served, int] | None:
        """Wait for the turn; return the filesystem of the device's engine and its /dev/fuse, or
        None.

        Raises:
            OSError: EINTR if the caller has ended.
        """
        answer(self.channel, TURN, (self.node.instance, self.node.ino))
        message = self.channel.receive()
        code, served = marshal.loads(message.data or marshal.dumps((errno.EINTR, ())))
        if code:
            raise OSError(code, os.strerror(code))
        return (Served._make(served), message.fds[0]) if served else None

    def start(self, engine: Engine, options: tuple[str, ...]) -> None:
        """Make an engine serve the device."""
        read_only = self.read_only(engine)
        with visible():
            device = self.node.open(read_only)
        self._write_back()
        with visible():
            engine.check(device, self.fstype)
            used = (0, 0) if read_only else engine.extent(device)
            environment = engine.environment(device)
        self.check_place()
        self._stage.build(self.fstype)
        fuse = self._stage.mount_device()
        wanted = Wanted(self.node.instance, self.node.ino, read_only, *used)
        answer(self.channel, SERVE, tuple(wanted), (fuse,))
        os.close(fuse)
        self._await_reply()
        self._stage.show(self.node.name, self.shown)
        mounter = self.caller.mounter(self.flags)
        launch = Launch(
            *(self.shown, MOUNTPOINT, self.fstype, options, read_only, mounter, self.sb_flags)
        )
        server = self._stage.start(engine.command(launch), environment, device, self.caller.pidfd)
        try:
            number = syscalls.statx_dev(uapi.AT_FDCWD, MOUNTPOINT)
            key = self.node.instance, self.node.ino
            had = tuple(Served(key, self.fstype, read_only, server.pid, number))
            made = self._context(server, read_only) if self.place is None else _tree()
        finally:
            # The engine runs in the stage: a mount that remained there would keep it running
            # forever.
            self._stage.clear()
        if self.place is None:
            answer(self.channel, 0, had, (server.pidfd, made))
            return
        apply_flags(made, self.flags)
        answer(self.channel, 0, had, (server.pidfd,))
        self.caller.enter()
        if self.move_to_caller(made):
            answer(self.channel, 0)

    def _write_back(self) -> None:
        """Write stores through mmap(2) to the image. Raises OSError.

        fsync(2) would also do this, but it would report stores that were refused while an engine
        had the device.
        """
        answer(self.channel, WRITE_BACK, (self.node.instance, self.node.ino))
        self._await_reply()

    def _await_reply(self) -> None:
        if code := int(self.channel.receive().data or errno.EINTR):
            raise OSError(code, os.strerror(code))

    def _context(self, server: Server, read_only: bool) -> int:
        """Return a context with the superblock that an engine has mounted in the stage."""
        if read_only:  # the superblock becomes read-only; an engine need not have requested that
            remount = uapi.MS_REMOUNT | uapi.MS_RDONLY
            syscalls.mount("none", MOUNTPOINT, None, remount, None)
        return fuse_context(connection_of(server.pidfd, server.pid), self.shown, self.fstype)

    def read_only(self, engine: Engine) -> bool:
        return engine.read_only(self.fstype, bool(self.flags & uapi.MS_RDONLY))

    @property
    def sb_flags(self) -> int:
        """The flags of the superblock that an engine must also implement."""
        return self.flags & (uapi.MS_SYNCHRONOUS | uapi.MS_DIRSYNC)

    def move_to_caller(self, tree: int) -> bool:
        """Mount ``tree``. Return False, without mounting it, if the caller does not wait any more:
        when the last tree is closed, the engine ends."""
        assert self.place is not None
        if not self.channel.receive().data:
            return False
        with self.caller.rights():
            syscalls.move_mount(tree, self.place)
        os.close(tree)  # the descriptor would keep the mount busy
        return True


def _mount(
    channel: Channel,
    fds: list[int],
    instances: tuple[int, ...],
    source: str,
    target: str | None,
    fstype: str,
    flags: int,
    engine_name: str,
    options: tuple[str, ...],
    refused: int,
) -> None:
    """Mount a device at ``target``; without one, answer with a context for fsmount(2).

    If an engine already serves the device, its superblock is mounted again, as by the kernel; the
    device is never given to a second engine.

    ``refused`` is the errno for a device of ours that is not to be mounted, or 0. Then the answer
    says whether the device has a filesystem of the type.
    """
    request = Mount(channel, Caller(fds), fstype, flags)
    engine = BY_NAME[engine_name] if engine_name else None
    if engine is not None and engine.prepare is not None:
        from loopfs.engines import forked

        if forked.mount(request, engine, options, source, target, instances):
            return
        _import(engine.modules)
        request.enter()
        request.start(engine, options)
        return
    _import(engine.modules if engine is not None else (BLKID,))
    request.enter()
    if not request.find(source, instances):
        answer(channel, NOT_OURS)
        return
    request.resolve(target)
    if engine is None:
        answer(channel, refused, _holds(request.node, fstype))
    elif not request.again(engine):
        request.start(engine, options)


def _import(modules: tuple[str, ...]) -> None:
    for name in modules:
        __import__(name)


def _context_of(
    served: Served, connection: int, fstype: str, read_only: bool, shown: str
) -> int | None:
    """Return a context with the superblock of a running engine, by its /dev/fuse, which is closed.

    Returns:
        None if the superblock has ended, and so the engine is about to end.
    Raises:
        OSError: EBUSY for what the kernel does not mount twice: with another type, or both
            read-only and for writing; and from another user namespace, since the superblock of
            /dev/fuse can only be mounted in the one that has opened it.
    """
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    try:
        if disconnected(connection):
            return None
        if (served.fstype, served.read_only) != (fstype, read_only):
            raise busy from None
        return fuse_context(connection, shown, fstype)
    except OSError as problem:
        if disconnected(connection):  # in the meantime
            return None
        if problem.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
            raise
        raise busy from None
    finally:
        os.close(connection)


def _tree() -> int:
    """Return a clone of the mount in the stage."""
    clone = uapi.OPEN_TREE_CLONE | uapi.OPEN_TREE_CLOEXEC
    return syscalls.open_tree(uapi.AT_FDCWD, MOUNTPOINT, clone)


def _holds(node: DeviceNode, fstype: str) -> bool:
    try:
        with visible():
            check_type(node.open(read_only=True), fstype)
    except OSError:
        return False
    return True


JOBS: dict[str, Job] = {"mount": _mount}
