"""The job that mounts a device: by an engine that it starts, or from the superblock of one that
runs already."""

from __future__ import annotations

import errno
import marshal
import os
import stat

from loopfs import syscalls
from loopfs.channel import Channel
from loopfs.engines import paths
from loopfs.engines.caller import Caller, visible
from loopfs.engines.device import DeviceNode, find_device
from loopfs.engines.engine import Engine, Launch, Served, Wanted
from loopfs.engines.helper import NOT_OURS, SERVE, TURN, WRITE_BACK, answer
from loopfs.engines.jobs import Job, apply_flags
from loopfs.engines.policy import BY_NAME
from loopfs.engines.programs import check_type
from loopfs.engines.stage import MOUNTPOINT, Server, Stage
from loopfs.engines.superblock import (
    connection_of,
    disconnected,
    fuse_context,
    live_connection_of,
)
from loopfs.uapi import mount as uapi


class _Mount:
    """One request of a caller, in whose namespaces we are.

    ``place`` is a descriptor of where it is to be mounted; None for a context for fsmount(2).
    """

    def __init__(self, channel: Channel, fds: list[int], fstype: str, flags: int) -> None:
        self._channel = channel
        self._fstype = fstype
        self._flags = flags
        self._caller = Caller(fds)
        self._stage = Stage()
        self._own_fds = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._caller.enter()

    def find(self, source: str, instances: tuple[int, ...]) -> bool:
        """Find the device; False when it is no instance's."""
        with self._caller.rights():
            node = find_device(source, self._caller.proc, instances, self._own_fds)
            if node is None:
                return False
            self._shown = node.shown(source)
        self.node: DeviceNode = node
        return True

    def resolve(self, target: str | None) -> None:
        """Find where it is to be mounted."""
        self._place = None
        if target is not None:
            with self._caller.rights():
                self._place = paths.resolve(target, self._caller.proc)

    def _check_place(self) -> None:
        if self._place is not None and not stat.S_ISDIR(os.fstat(self._place).st_mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def again(self, engine: Engine) -> bool:
        """Wait until nobody else mounts the device. Mount it from the superblock that an engine
        serves then, if one does."""
        read_only = self._read_only(engine)
        while served := self._served():
            self._stage.enter()
            context = _context_of(served, self._fstype, read_only, self._shown)
            if context is None:  # that superblock has gone meanwhile
                self._caller.enter()
                continue
            self._check_place()
            if self._place is None:
                answer(self._channel, 0, None, (context,))
            else:
                tree = syscalls.fsmount(context, 0)
                os.close(context)
                apply_flags(tree, self._flags)
                answer(self._channel, 0)
                self._move_to_caller(tree, self._place)
            return True
        return False

    def _served(self) -> Served | None:
        """What an engine has of the device, when it is our turn. Raises OSError."""
        answer(self._channel, TURN, (self.node.instance, self.node.ino))
        code, served = marshal.loads(
            self._channel.receive().data or marshal.dumps((errno.EINTR, ()))
        )
        if code:
            raise OSError(code, os.strerror(code))
        return Served._make(served[0]) if served else None

    def start(self, engine: Engine, options: tuple[str, ...]) -> None:
        """Have an engine serve it."""
        read_only = self._read_only(engine)
        with visible():
            device = self.node.open(read_only)
        self._write_back()
        with visible():
            engine.check(device, self._fstype)
            used = (0, 0) if read_only else engine.extent(device)
            environment = engine.environment(device)
        self._check_place()
        self._stage.build(self._fstype)
        fuse = self._stage.mount_device()
        wanted = Wanted(self.node.instance, self.node.ino, read_only, *used)
        answer(self._channel, SERVE, tuple(wanted), (fuse,))
        os.close(fuse)
        self._await_reply()
        self._stage.show(self.node.name, self._shown)
        mounter = self._caller.mounter(atime=not self._flags & uapi.MS_NOATIME)
        launch = Launch(self._shown, MOUNTPOINT, self._fstype, options, read_only, mounter)
        server = self._stage.start(engine.command(launch), environment, device, self._caller.pidfd)
        try:
            number = syscalls.statx_dev(uapi.AT_FDCWD, MOUNTPOINT)
            key = self.node.instance, self.node.ino
            had = tuple(Served(key, self._fstype, read_only, server.pid, number))
            made = self._context(server, read_only) if self._place is None else _tree()
        finally:
            # The engine lives in the stage: what is still mounted there would keep it for good.
            self._stage.clear()
        if self._place is None:
            answer(self._channel, 0, had, (server.pidfd, made))
            return
        apply_flags(made, self._flags)
        answer(self._channel, 0, had, (server.pidfd,))
        self._move_to_caller(made, self._place)

    def _write_back(self) -> None:
        """Have in the image what has only been stored by mmap(2) yet. Raises OSError.

        fsync(2) would do, but also tell of stores that were refused while an engine had the device.
        """
        answer(self._channel, WRITE_BACK, (self.node.instance, self.node.ino))
        self._await_reply()

    def _await_reply(self) -> None:
        if code := int(self._channel.receive().data or errno.EINTR):
            raise OSError(code, os.strerror(code))

    def _context(self, server: Server, read_only: bool) -> int:
        """A context with the superblock of the engine that has mounted on the stage."""
        if read_only:  # of the superblock, which an engine need not have told the kernel
            remount = uapi.MS_REMOUNT | uapi.MS_RDONLY
            syscalls.mount("none", MOUNTPOINT, None, remount, None)
        return fuse_context(connection_of(server.pidfd, server.pid), self._shown, self._fstype)

    def _read_only(self, engine: Engine) -> bool:
        return engine.read_only(self._fstype, bool(self._flags & uapi.MS_RDONLY))

    def _move_to_caller(self, tree: int, place: int) -> None:
        """Mount ``tree``, if the caller still waits. Dropping the last tree ends its engine."""
        if self._channel.receive().data:
            self._caller.enter()
            with self._caller.rights():
                syscalls.move_mount(tree, place)
            os.close(tree)  # it would keep the mount busy
            answer(self._channel, 0)


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

    A device that an engine serves already is mounted once more from its superblock, as by the
    kernel, and never given to a second engine.

    ``refused`` is the errno for a device of ours that is not to be mounted, or 0. Then the
    answer says whether it could have been, by what it holds.
    """
    request = _Mount(channel, fds, fstype, flags)
    if not request.find(source, instances):
        answer(channel, NOT_OURS)
        return
    request.resolve(target)
    if refused:
        answer(channel, refused, _holds(request.node, fstype))
    else:
        engine = BY_NAME[engine_name]
        if not request.again(engine):
            request.start(engine, options)


def _context_of(served: Served, fstype: str, read_only: bool, shown: str) -> int | None:
    """A context with the superblock of an engine that runs, with its /proc around us.

    Returns:
        None when the superblock is gone and the engine about to end.
    Raises:
        OSError: EBUSY for what the kernel does not mount twice: as another type, for reading
            and for writing; and from another user namespace, for only the one that opened
            /dev/fuse may mount what it serves.
    """
    busy = OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    connection = None
    try:
        connection = live_connection_of(served.pid)
        if connection is None:
            return None
        if (served.fstype, served.read_only) != (fstype, read_only):
            raise busy from None
        return fuse_context(connection, shown, fstype)
    except OSError as problem:
        if connection is not None and disconnected(connection):  # meanwhile
            return None
        if problem.errno not in (errno.EACCES, errno.EPERM, errno.EINVAL):
            raise
        raise busy from None


def _tree() -> int:
    """What is mounted on the stage, as a mount of its own."""
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
