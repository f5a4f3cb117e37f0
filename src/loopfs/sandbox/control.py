"""What a sandbox answers who asks from outside: the other end of ``loopfs ls`` and ``detach``.

The supervisor has a listening socket with an abstract name (unix(7)), which ends with it whatever
ends it. Everybody in its network namespace can connect, the workload too. Who is answered has shown
two things, of which neither can be made up:

- a descriptor of the user namespace that the sandbox was started in. Who is in a sandbox cannot
  open that, whatever his ids are;
- that he is the user who has started the sandbox, by the ids that the kernel has noted
  (SO_PEERCRED); or a descriptor of the sandbox's user namespace, which none but its owner, itself
  and who has CAP_SYS_PTRACE around it can open. So root is told from other users, none of whom has
  an id in the sandbox.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
from collections import deque
from time import monotonic

from loopfs import mountinfo
from loopfs.channel import Channel, close_all
from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.engines.copies import Place
from loopfs.engines.mounts import Engine, Mounts
from loopfs.errors import errno_of
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.lean import Any, NamedTuple, Sequence
from loopfs.process import Process
from loopfs.sandbox.control_socket import namespace_identity
from loopfs.text import to_str
from loopfs.uapi.loop import (
    LO_FLAGS_AUTOCLEAR,
    LO_FLAGS_DIRECT_IO,
    LO_FLAGS_PARTSCAN,
    LO_FLAGS_READ_ONLY,
)

PENDING = 16  # connections that have not said anything yet
PATIENCE = 2.0  # seconds for each of them
MAX_REQUEST = 256  # bytes
MAX_TOKENS = 2
FLAGS = {  # as losetup(8) calls them
    "ro": LO_FLAGS_READ_ONLY,
    "autoclear": LO_FLAGS_AUTOCLEAR,
    "partscan": LO_FLAGS_PARTSCAN,
    "dio": LO_FLAGS_DIRECT_IO,
}
_UCRED = struct.Struct("=iII")  # pid, uid, gid
_INT = struct.calcsize("i")

Answer = dict[str, Any]


class _Connection(NamedTuple):
    """One that has not said anything yet."""

    peer: socket.socket
    deadline: float


class Control:
    """Answers who may ask.

    Args:
        mounts: what is mounted in the sandbox, and its instances.
        argv: its command.
        outside: the user namespace that it was started in
            (:func:`~loopfs.sandbox.controlsocket.namespace_identity`).
    """

    def __init__(self, mounts: Mounts, argv: Sequence[str], outside: tuple[int, int]) -> None:
        self._mounts = mounts
        self._argv = list(argv)
        self._outside = Place(*outside)
        self._inside = Place(*namespace_identity())
        self._pending: deque[_Connection] = deque()

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
        peer, _ = listener.accept()
        self._pending.append(_Connection(peer, monotonic() + PATIENCE))
        if len(self._pending) > PENDING:
            self._pending.popleft().peer.close()

    def _handle(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        room = socket.CMSG_SPACE(MAX_TOKENS * _INT)
        try:
            data, control, _, _ = connection.recvmsg(MAX_REQUEST, room, socket.MSG_CMSG_CLOEXEC)
        except OSError:  # it is gone
            connection.close()
            return
        tokens: list[int] = []
        for _, _, payload in control:
            tokens += struct.unpack(f"{len(payload) // _INT}i", payload)
        try:
            allowed = self._may_ask(connection, tokens)
        finally:
            close_all(tokens)
        answer = self._answer(data.decode("ascii", "replace").split()) if allowed else _REFUSED
        with Channel.of_descriptor(connection.detach()) as channel:
            try:
                channel.send(json.dumps(answer).encode())
            except OSError:  # it does not want to know
                return

    def _may_ask(self, connection: socket.socket, tokens: Sequence[int]) -> bool:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, _ = _UCRED.unpack(credentials)
        shown = {Place.of(token) for token in tokens}
        return self._outside in shown and (uid == 0 or self._inside in shown)

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
            outermost = instances.ucounts.find((self._inside.ino,))
            limit, used = instances.ucounts.limit_of((self._inside.ino,)), 0
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
            for part in list(device.partitions.values())
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
