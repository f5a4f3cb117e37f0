"""What a sandbox answers who asks from outside: the other end of ``loopfs ls`` and ``detach``.

The supervisor has a listening socket with an abstract name (unix(7)), which ends with it whatever
ends it. Everybody in its network namespace can connect, the workload too. Who is answered

- is in no sandbox: what is in one is in a pid namespace within ours (NSpid of /proc/PID/status),
  or in another one, of which we see no process ids;
- and is the user who has started this one, by the ids that the kernel has noted (SO_PEERCRED), or
  shows a descriptor of its user namespace. That none can open but itself, its owner and who has
  CAP_SYS_PTRACE around it. So root is told from other users, none of whom has an id in the sandbox,
  and from who is in another sandbox, if we see no process id of his.

A device of ``loopfs.attach`` answers in the same way. Its server is in the user namespace of its
user, of which everybody has a descriptor: so the ids alone count there.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import sys
from collections import deque
from time import monotonic, sleep

from loopfs import mountinfo, syscalls
from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.engines.copies import Place
from loopfs.engines.running import Engine
from loopfs.errors import errno_of
from loopfs.filesystems.instances import Instances
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.threads import spawn
from loopfs.lean import Any, NamedTuple, Protocol, Sequence
from loopfs.process import Process
from loopfs.sandbox.control_socket import has_ended, peer_credentials, peer_pidfd
from loopfs.text import to_str
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
)

PENDING = 16  # connections that have not said anything yet
PATIENCE = 2.0  # seconds for each of them
PAUSE = 0.1  # seconds, until there may be room again
MAX_REQUEST = 256  # bytes
CHUNK = 1 << 15  # bytes of an answer that are one message
FLAGS = {  # as losetup(8) calls them
    "ro": LO_FLAGS_READ_ONLY,
    "autoclear": LO_FLAGS_AUTOCLEAR,
    "partscan": LO_FLAGS_PARTSCAN,
    "dio": LO_FLAGS_DIRECT_IO,
}
_INT = struct.Struct("i")

Answer = dict[str, Any]


class _Connection(NamedTuple):
    """One that has not said anything yet."""

    peer: socket.socket
    deadline: float


class Served(Protocol):
    """What is mounted, and the instances: :class:`~loopfs.engines.mounts.Mounts`."""

    instances: Instances

    def alive(self) -> list[Engine]: ...


class Control:
    """Answers who may ask.

    Args:
        mounts: what is mounted in the sandbox, and its instances.
        argv: its command.
        user: besides root, the user id that may ask; None: who shows our user namespace may, which
            is one that only its owner can open.
    """

    def __init__(self, mounts: Served, argv: Sequence[str], user: int | None = None) -> None:
        self._mounts = mounts
        self._argv = list(argv)
        self._user = user
        own = os.stat("/proc/self/ns/user")
        self._namespace = Place(own.st_dev, own.st_ino)
        self._pending: deque[_Connection] = deque()
        # Descriptors of others' files that are not closed: a close may never return.
        self._closing = 0

    def serve(self, fd: int) -> None:
        """Answer for as long as the sandbox lives. Nobody who connects can keep us from others.

        Args:
            fd: the listening socket; ours from now on.
        """
        listener = socket.socket(fileno=fd)
        while True:
            poller = select.poll()
            poller.register(listener, select.POLLIN)
            for connection in self._pending:
                poller.register(connection.peer, select.POLLIN)
            ready = {fd for fd, _ in poller.poll(self._wait())}
            for connection in list(self._pending):
                if connection.peer.fileno() in ready:
                    self._pending.remove(connection)
                    self._handle(connection.peer)
            if listener.fileno() in ready:
                self._accept(listener)
            while self._pending and self._pending[0].deadline <= monotonic():
                self._pending.popleft().peer.close()

    def _wait(self) -> int | None:
        if not self._pending:
            return None
        return max(0, int(1000 * (self._pending[0].deadline - monotonic()))) + 1

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except OSError as problem:  # it is gone, or we have no room
            if problem.errno == errno.EMFILE:
                sleep(PAUSE)
            return
        self._pending.append(_Connection(peer, monotonic() + PATIENCE))
        if len(self._pending) > PENDING:
            self._pending.popleft().peer.close()

    def _handle(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(PATIENCE)  # for who may ask: all others get one short message
            try:
                words, token = self._received(peer)
                answer = self._answer(words) if self._may_ask(peer, token) else _REFUSED
                data = json.dumps(answer).encode()
                for start in range(0, len(data), CHUNK):
                    peer.sendall(data[start : start + CHUNK])
            except OSError:  # it is gone, or does not want to know
                return
            except Exception:  # a bug of ours: one asker's loss
                sys.excepthook(*sys.exc_info())

    def _received(self, peer: socket.socket) -> tuple[list[str], Place | None]:
        """The words of a question, and the file whose descriptor came along."""
        room = socket.CMSG_SPACE(_INT.size) if self._closing < PENDING else 0
        data, control, _, _ = peer.recvmsg(MAX_REQUEST, room, socket.MSG_CMSG_CLOEXEC)
        token = None
        for _, _, payload in control:
            for (fd,) in _INT.iter_unpack(payload):
                token = Place.of(fd)
                self._close(fd, token)
        return data.decode("ascii", "replace").split(), token

    def _close(self, fd: int, place: Place) -> None:
        """Close a descriptor that was received; the close may wait for its file's server."""
        if place.device == self._namespace.device:
            os.close(fd)
            return

        def close() -> None:
            try:
                os.close(fd)
            finally:
                self._closing -= 1

        self._closing += 1
        spawn(close)

    def _may_ask(self, peer: socket.socket, token: Place | None) -> bool:
        shows_namespace = self._user is None and token == self._namespace
        pids = _process_ids(peer)
        if not pids:
            return shows_namespace
        _, uid, _ = peer_credentials(peer)
        return len(pids) == 1 and (uid in (0, self._user) or shows_namespace)

    def _answer(self, words: Sequence[str]) -> Answer:
        try:
            match words:
                case ["list"]:
                    return self._state()
                case ["detach", name]:
                    return self._detach(name)
            return _failure(errno.EINVAL, "a request that this version does not know")
        except Exception as problem:
            return _failure(errno_of(problem), str(problem))

    # --- what there is -----------------------------------------------------------

    def _state(self) -> Answer:
        instances, places = self._mounts.instances, _places()
        with instances.numbers:
            outermost = instances.ucounts.find((self._namespace.ino,))
            limit, used = instances.ucounts.limit_of((self._namespace.ino,)), 0
            if outermost is not None:
                used = outermost.used
        return {
            "command": self._argv,
            "limit": limit,
            "used": used,
            "instances": [self._instance(each, places) for each in instances.all()],
            "mounts": [self._mount(each, places) for each in self._mounts.alive()],
        }

    def _instance(self, filesystem: LoopFilesystem, places: Places) -> Answer:
        devices = filesystem.instance.devices.copy().values()
        return {
            "namespace": filesystem.userns,
            "places": places.get(filesystem.device_number, []),
            "limit": filesystem.instance.max_devices,
            "used": len(devices),
            "devices": [_device(device) for device in devices],
        }

    def _mount(self, engine: Engine, places: Places) -> Answer:
        about: Answer = {
            "places": places.get(engine.superblock, []),
            "engine": _program(engine.pid),
            "pid": engine.pid,
            "memory": _memory(engine.pid),
            "device": None,
            "type": None,
            "read_only": None,
        }
        if engine.served is not None:
            instance, ino = engine.served.device
            filesystem = self._mounts.instances.find(instance)
            node = filesystem.nodes.of_inode(ino) if filesystem is not None else None
            device = node.device if node is not None else None
            about["device"] = device.name if device is not None else None
            about["type"] = engine.served.fstype
            about["read_only"] = engine.served.read_only
        return about

    # --- what is done ------------------------------------------------------------

    def _detach(self, name: str) -> Answer:
        """Detach a device, at its last close if it is open."""
        for filesystem in self._mounts.instances.all():
            for device in filesystem.instance.devices.copy().values():
                if device.name == name:
                    return _detached(filesystem, device)
        return _failure(errno.ENODEV, f"the sandbox has no {name}")


def _process_ids(peer: socket.socket) -> list[str]:
    """The process id of who has connected, as we see it, and those in pid namespaces within ours;
    none if it is in another one.

    Raises:
        OSError: it has ended.
    """
    pidfd = peer_pidfd(peer)
    if pidfd is None:
        return []
    try:
        pids = Process(syscalls.pidfd_pid(pidfd)).status()["NSpid"].split()
        if has_ended(pidfd):
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return pids
    finally:
        os.close(pidfd)


Places = dict[int, list[str]]  # where each st_dev is mounted, as who sees it has it


def _failure(code: int, sentence: str) -> Answer:
    return {"errno": code, "error": sentence}


_REFUSED = _failure(errno.EPERM, "only who has started a sandbox, and root, may ask it")


def _device(device: LoopDevice) -> Answer:
    info, backing = device.info, device.backing
    return {
        "name": device.name,
        "number": device.number,
        "backing_file": backing.path if backing is not None else None,
        "offset": info.offset,
        "sizelimit": info.sizelimit,
        "size": device.capacity,
        "flags": [name for name, flag in FLAGS.items() if info.flags & flag],
        "openers": _openers(device),
        "partitions": [
            {"name": part.name, "start": part.start, "size": part.size, "openers": _openers(part)}
            for part in device.partitions.in_order()
        ],
    }


def _openers(device: BlockDevice) -> int:
    return len(device.openers)


def _program(pid: int) -> str | None:
    """What an engine is called; None if it has just ended."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return to_str(file.read().removesuffix(b"\n"))
    except OSError:
        return None


def _memory(pid: int) -> int | None:
    """Bytes of memory that a process has, of its own and shared (VmRSS)."""
    try:
        return 1024 * int(Process(pid).status()["VmRSS"].split()[0])
    except (OSError, KeyError):  # it has ended
        return None


def _detached(filesystem: LoopFilesystem, device: LoopDevice) -> Answer:
    def detach() -> Answer:
        if device.backing is None:
            return _failure(errno.ENXIO, f"{device.name} is bound to nothing")
        device.detach_when_unused()
        return {"detached": device.backing is None, "openers": device.open_count}

    return filesystem.drive(detach)


def _places() -> Places:
    """Where filesystems are mounted, in all mount namespaces in which we may look at a process."""
    ours = Process(os.getpid())
    userns, places, seen = ours.namespace("user"), Places(), {ours.namespace("mnt")}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        process = Process(int(name))
        try:
            if process.namespace("mnt") in seen or userns not in process.user_namespaces():
                continue
            seen.add(process.namespace("mnt"))
            with open(process.path("mountinfo"), "rb") as table:
                mounts = mountinfo.parse(table)
        except OSError:  # it is another's, or has ended
            continue
        for mount in mounts:
            found = places.setdefault(mount.device, [])
            if mount.place not in found:
                found.append(mount.place)
    return places
