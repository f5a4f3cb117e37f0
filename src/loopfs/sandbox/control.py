"""The sandbox's side of ``loopfs ls`` and ``detach``: requests from outside of the sandbox.

The supervisor has a listening socket with an abstract name (unix(7)), which is removed when the
supervisor ends. Every process in its network namespace can connect, also the workload. A process
is answered if it

- is in no sandbox: processes of a sandbox are in a pid namespace below ours (NSpid of
  /proc/PID/status), or in another one, whose process ids we cannot see;
- and belongs to the user who has started this sandbox, by the ids that the kernel has recorded
  (SO_PEERCRED), or passes a descriptor of the sandbox's user namespace. Only the namespace itself,
  its owner and processes with CAP_SYS_PTRACE over it can open that. It distinguishes root from
  other users, none of whom has an id in the sandbox, and from processes of another sandbox, if we
  cannot see their process ids.

A device of ``loopfs.attach`` answers in the same way. Its server is in the user namespace of its
user, which every process can open: so only the ids count there.
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

PENDING = 16  # connections that have not sent a request yet
PATIENCE = 2.0  # seconds that each of them has
PAUSE = 0.1  # seconds to wait when no descriptor is free
MAX_REQUEST = 256  # bytes
CHUNK = 1 << 15  # bytes: the size of a message of an answer
FLAGS = {  # as losetup(8) calls them
    "ro": LO_FLAGS_READ_ONLY,
    "autoclear": LO_FLAGS_AUTOCLEAR,
    "partscan": LO_FLAGS_PARTSCAN,
    "dio": LO_FLAGS_DIRECT_IO,
}
_INT = struct.Struct("i")

Answer = dict[str, Any]


class _Connection(NamedTuple):
    """A connection that has not sent a request yet."""

    peer: socket.socket
    deadline: float


class Served(Protocol):
    """The mounts and the instances: :class:`~loopfs.engines.mounts.Mounts`."""

    instances: Instances

    def alive(self) -> list[Engine]: ...


class Control:
    """The server of requests from outside.

    Args:
        mounts: the mounts of the sandbox, and its instances.
        argv: its command.
        user: the user id that is answered besides root; None: a process that passes a descriptor of
            our user namespace, which only its owner can open.
    """

    def __init__(self, mounts: Served, argv: Sequence[str], user: int | None = None) -> None:
        self._mounts = mounts
        self._argv = list(argv)
        self._user = user
        own = os.stat("/proc/self/ns/user")
        self._namespace = Place(own.st_dev, own.st_ino)
        self._pending: deque[_Connection] = deque()
        # Received descriptors whose close has not returned: it may block forever.
        self._closing = 0

    def serve(self, fd: int) -> None:
        """Answer requests until the sandbox ends. No connection can delay the others.

        Args:
            fd: the listening socket; it is owned by this object from now on.
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
        except OSError as problem:  # the peer has ended, or no descriptor is free
            if problem.errno == errno.EMFILE:
                sleep(PAUSE)
            return
        self._pending.append(_Connection(peer, monotonic() + PATIENCE))
        if len(self._pending) > PENDING:
            self._pending.popleft().peer.close()

    def _handle(self, peer: socket.socket) -> None:
        with peer:
            peer.settimeout(PATIENCE)  # a peer that may not ask gets only one short message
            try:
                words, token = self._received(peer)
                answer = self._answer(words) if self._may_ask(peer, token) else _REFUSED
                data = json.dumps(answer).encode()
                for start in range(0, len(data), CHUNK):
                    peer.sendall(data[start : start + CHUNK])
            except OSError:  # the peer has ended, or does not read
                return
            except Exception:  # a bug of ours: only this request fails
                sys.excepthook(*sys.exc_info())

    def _received(self, peer: socket.socket) -> tuple[list[str], Place | None]:
        """Receive the words of a request, and the file whose descriptor was passed with it."""
        room = socket.CMSG_SPACE(_INT.size) if self._closing < PENDING else 0
        data, control, _, _ = peer.recvmsg(MAX_REQUEST, room, socket.MSG_CMSG_CLOEXEC)
        token = None
        for _, _, payload in control:
            for (fd,) in _INT.iter_unpack(payload):
                token = Place.of(fd)
                self._close(fd, token)
        return data.decode("ascii", "replace").split(), token

    def _close(self, fd: int, place: Place) -> None:
        """Close a received descriptor; the close may wait for the server of the file."""
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

    # --- list --------------------------------------------------------------------

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

    # --- detach ------------------------------------------------------------------

    def _detach(self, name: str) -> Answer:
        """Detach a device, at its last close if it is open."""
        for filesystem in self._mounts.instances.all():
            for device in filesystem.instance.devices.copy().values():
                if device.name == name:
                    return _detached(filesystem, device)
        return _failure(errno.ENODEV, f"the sandbox has no {name}")


def _process_ids(peer: socket.socket) -> list[str]:
    """Return the process ids of the peer in our pid namespace and in those below; none if it is
    in another one.

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


Places = dict[int, list[str]]  # the mount points of each st_dev, as its processes see them


def _failure(code: int, sentence: str) -> Answer:
    return {"errno": code, "error": sentence}


_REFUSED = _failure(errno.EPERM, "only root and the user who has started a sandbox may use this")


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
    """Return the program name of an engine; None if it has just ended."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return to_str(file.read().removesuffix(b"\n"))
    except OSError:
        return None


def _memory(pid: int) -> int | None:
    """Return the resident memory of a process in bytes (VmRSS); None if it has ended."""
    try:
        return 1024 * int(Process(pid).status()["VmRSS"].split()[0])
    except (OSError, KeyError):  # it has ended
        return None


def _detached(filesystem: LoopFilesystem, device: LoopDevice) -> Answer:
    def detach() -> Answer:
        if device.backing is None:
            return _failure(errno.ENXIO, f"{device.name} is not bound to a file")
        device.detach_when_unused()
        return {"detached": device.backing is None, "openers": device.open_count}

    return filesystem.drive(detach)


def _places() -> Places:
    """Return the mount points in all mount namespaces that have a process we may examine."""
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
        except OSError:  # it belongs to another user, or has ended
            continue
        for mount in mounts:
            found = places.setdefault(mount.device, [])
            if mount.place not in found:
                found.append(mount.place)
    return places
