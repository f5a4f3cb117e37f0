"""The supervisor of a container: it serves the instance, the mounts and the trapped calls.

It is root of the container's user namespace and in the agent's other namespaces, and has a helper
like every supervisor. It ends when no process of the container is left.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import time
from functools import partial
from mmap import mmap
from typing import NoReturn

from loopfs import syscalls
from loopfs.agent import cgroup
from loopfs.agent.log import say
from loopfs.agent.notifications import First
from loopfs.channel import Channel, close_all
from loopfs.driver.fs_context import FsContext, LoopParameters
from loopfs.driver.minors import Minors
from loopfs.engines import confinement, helper
from loopfs.engines.ext4 import EXT4
from loopfs.engines.iso9660 import ISO9660
from loopfs.engines.mounts import Mounts, caller_descriptors
from loopfs.engines.policy import DENY, TYPES, Policy
from loopfs.engines.udf import UDF
from loopfs.engines.vfat import VFAT
from loopfs.filesystems.instances import Instances, Owner
from loopfs.filesystems.shares import INSTANCE, LINKS, Shares
from loopfs.filesystems.sysfs import SysfsDirectory
from loopfs.filesystems.threads import start
from loopfs.fuse.session import Session
from loopfs.intercept import notify
from loopfs.intercept.mount import LOOP, MountHandler, adopt_instance, may_mount
from loopfs.intercept.sync import SyncHandler
from loopfs.intercept.umount import UmountHandler
from loopfs.limits import raise_limits
from loopfs.process import Process
from loopfs.sandbox.supervisor import (
    abort_connections,
    first_number,
    forget,
)
from loopfs.sandbox.sysfs import PLACES
from loopfs.uapi.sched import CLONE_NEWUSER
from loopfs.uapi.seccomp import Notification

SLOT = struct.Struct("=Q")
READY = b"ready"
_PAUSE = 0.1  # seconds
END_WITHIN = 60.0  # seconds that engines may write after their container has ended
_OWN = {fstype: engine.name for engine in (EXT4, ISO9660, UDF, VFAT) for fstype in engine.types}


def main(name: str, begun: First, listener: int, channel: Channel, page: mmap) -> NoReturn:
    """Run the supervisor, in a fork of the keeper.

    Args:
        name: of the container, for messages.
        begun: its first process, which waits.
        listener: the first listener.
        channel: to the keeper: "ready" is sent, other listeners are received with their slots.
        page: the id of the last call received from each listener, in its slot.
    """
    status = 1
    try:
        os.setsid()
        Container(name, channel, page).run(begun, listener)
        status = 0
    except OSError as problem:
        say(f"it gets no loop devices: {problem.strerror}", name)
    except BaseException:  # nothing may return into the keeper's code
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


class Container:
    """The state of the supervisor of one container."""

    def __init__(self, name: str, channel: Channel, page: mmap) -> None:
        self._name = name
        self._channel = channel
        self._page = page
        self._lock = threading.Lock()
        self._serving = 0  # listeners
        self._ended = threading.Event()

    def run(self, begun: First, listener: int) -> None:
        """Serve the container to its end. Raises OSError: its devices cannot be made."""
        userns = begun.user_namespace()
        procs = self._cgroups(begun.process)
        limits = confinement.Confinement(begun.userns, procs)

        def begin() -> None:
            os.close(listener)
            begun.close()
            confinement.adopt(limits)

        self._helper = helper.Helper.start(begin, b"")
        close_all(list(procs))
        room = raise_limits()
        with caller_descriptors(begun) as fds:  # before _enter(): it may be refused after
            _enter(userns)
            self._build(room)
            self._furnish(fds)
            self._cover(fds)
        self._userns = begun.userns
        begun.close()
        self._channel.send(READY)
        self.serve(listener, 0)
        start("keeper", self._hear)
        self._ended.wait()
        self._mounts.finish(self._wait_for)
        self._helper.dismiss()
        abort_connections()

    def _cgroups(self, process: Process) -> tuple[int, ...]:
        """Open cgroup.procs of the container's cgroup, if that is not ours."""
        try:
            return cgroup.procs_of(process)
        except OSError as problem:
            say(f"its engines are in the agent's cgroup ({problem.strerror})", self._name)
            return ()

    def _build(self, room: int) -> None:
        self._instances = Instances(
            Minors(first_number()), self._helper.fstat, self._helper.read_table, Shares(room)
        )
        self._mounts = mounts = Mounts(self._helper, self._instances)
        policy = Policy({fstype: _OWN.get(fstype, DENY) for fstype in TYPES})
        umount = UmountHandler(mounts, self._may_mount, threading.Lock())
        sync = SyncHandler(mounts)
        self._handlers: dict[str, notify.Handler] = {
            "mount": MountHandler(mounts, policy, self._may_mount, copies=False),
            "umount": umount,
            "umount2": umount,
            "sync": sync,
            "syncfs": sync,
        }

    def _may_mount(self, process: Process) -> bool:
        """Whether a process may mount: as usual, or as root of the container even without
        CAP_SYS_ADMIN."""
        if may_mount(process):
            return True
        effective = int(process.status()["Uid"].split()[1])  # in its user namespace, which is ours
        return effective == 0 and process.namespace("user") == self._userns

    # --- /dev and /sys of the container -------------------------------------------------

    def _furnish(self, fds: tuple[int, ...]) -> None:
        """Mount an instance in /dev. Raises OSError."""
        context = FsContext(LOOP, LoopParameters)
        owner = Owner((os.stat("/proc/self/ns/user").st_ino,), Process(os.getpid()).id_map)
        share = self._instances.shares.take(owner.user, INSTANCE + LINKS, 0)
        with self._helper.begin("furnish", (), fds) as channel:
            message = channel.receive()
            _check(message.data and helper.result(message)[0])
            adopt_instance(self._mounts, owner, context, message, share)
            channel.send(b"go")
            _check(helper.result(channel.receive())[0])

    def _cover(self, fds: tuple[int, ...]) -> None:
        """Mount the views in /sys, as far as the directories exist. Raises OSError."""
        with self._helper.begin("cover", (PLACES,), fds) as channel:
            message = channel.receive()
        code, places = helper.result(message)
        _check(code)
        assert isinstance(places, tuple)
        for place, fuse in zip(places, message.fds, strict=True):
            directory = SysfsDirectory(place, self._instances, hosts_loops=False)
            session = Session(fuse, directory)
            self._instances.on_removal.append(partial(forget, session, directory))
            start(place, session.serve)

    # --- trapped calls ------------------------------------------------------------------

    def serve(self, listener: int, slot: int) -> None:
        """Serve a listener in threads of its own; the container ends with its last listener."""
        with self._lock:
            self._serving += 1
        start("notify", self._serve, listener, self._maker(slot))

    def _maker(self, slot: int) -> notify.MakeCall:
        page, offset = self._page, slot * SLOT.size

        def make(listener: int, notification: Notification) -> notify.Call:
            SLOT.pack_into(page, offset, notification.id)
            return notify.Call(listener, notification)

        return make

    def _serve(self, listener: int, make: notify.MakeCall) -> None:
        try:
            notify.serve(listener, self._handle, make)
        finally:
            with self._lock:  # the descriptor is not closed: other threads may still read from it
                self._serving -= 1
                if not self._serving:
                    self._ended.set()

    def _handle(self, call: notify.Call) -> None:
        handler = self._handlers.get(call.name)
        if handler is None:
            call.proceed()
        else:
            handler(call)

    def _hear(self) -> None:
        """Serve the listeners that the keeper passes on, until the keeper ends."""
        while (message := self._channel.receive()).data:
            for listener in message.fds:
                while not self._begin(listener, int(message.data)):
                    time.sleep(_PAUSE)

    def _begin(self, listener: int, slot: int) -> bool:
        """Serve a listener; return False if no thread can be started: then its callers wait."""
        try:
            self.serve(listener, slot)
        except OSError:
            with self._lock:
                self._serving -= 1
            return False
        return True

    def _wait_for(self, engines: object) -> None:
        """Wait for slow engines; kill those that have not ended within END_WITHIN."""
        if not self._mounts.ended(END_WITHIN):
            say("an engine that did not end with its container was killed", self._name)
            self._mounts.give_up()


def _enter(userns: int) -> None:
    """Become root of a user namespace; close its descriptor."""
    syscalls.setns(userns, CLONE_NEWUSER)
    os.close(userns)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.set_dumpable(False)


def _check(code: int | bytes) -> None:
    if code:
        assert isinstance(code, int)
        raise OSError(code, os.strerror(code))
