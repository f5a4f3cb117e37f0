"""Serve /dev and the view of /sys/devices/virtual/block while the child mounts the host's nodes
and directories there.

The child's mounts cause lookups, which must be answered. The supervisor is still importing its
modules at that time, and process 1 is idle: so process 1 answers for the files that exist from the
start.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time

from loopfs.channel import Channel
from loopfs.filesystems.dev_layout import (
    FIRST_INO,
    HOST_LASTS,
    NAME_VALID,
    ROOT_INO,
    File,
    files,
    hosts_devices,
)
from loopfs.fuse.replies import BUFFER_SIZE, pack_attr, pack_entry, pack_init
from loopfs.lean import Iterable, NamedTuple
from loopfs.uapi import fuse as uapi


class Served(NamedTuple):
    """A mount to serve: its open /dev/fuse, its files, and for how many seconds the kernel may
    cache their names."""

    fuse: int
    files: list[File]
    valid: int


def understood(words: Iterable[str], fds: Iterable[int]) -> list[Served]:
    """Parse the message messages.SERVE."""
    served = []
    for word, fuse in zip(words, fds, strict=False):
        what, _, joined = word.partition(":")
        names = joined.split(",") if joined else []
        if what == "dev":
            served.append(Served(fuse, files(names), NAME_VALID))
        else:
            served.append(Served(fuse, hosts_devices(names), HOST_LASTS))
    return served


def serve_until_told(gate: Channel, served: Iterable[Served]) -> None:
    """Answer requests until a message arrives in a channel, or its other end is closed."""
    servers = {each.fuse: _Server(each.files, each.valid) for each in served}
    poller = select.poll()
    for fd in (gate.fileno(), *servers):
        poller.register(fd, select.POLLIN)
    while gate.fileno() not in (ready := dict(poller.poll())):
        for fuse, events in ready.items():
            if events & select.POLLERR:
                return  # unmounted
            servers[fuse].answer(fuse, os.read(fuse, BUFFER_SIZE))


class _Server:
    def __init__(self, known: list[File], valid: int) -> None:
        self._valid = valid
        self._by_name = {(file.parent, file.name): file for file in known}
        root = File(uapi.FUSE_ROOT_ID, 0, b"", stat.S_IFDIR | 0o755)
        self._by_id = {file.nodeid: file for file in (root, *known)}
        now = time.time_ns()
        self._times = now, now, now

    def answer(self, fuse: int, message: bytes) -> None:
        _, opcode, unique, nodeid, *_ = uapi.IN_HEADER.unpack_from(message)
        if opcode in (uapi.FUSE_FORGET, uapi.FUSE_BATCH_FORGET, uapi.FUSE_INTERRUPT):
            return
        body = message[uapi.IN_HEADER.size :]
        reply, code = b"", 0
        if opcode == uapi.FUSE_INIT:
            reply = pack_init(body)
        elif opcode == uapi.FUSE_LOOKUP:
            file = self._by_name.get((nodeid, body[: body.index(0)]))
            if file is None:
                code = errno.ENOENT
            else:
                reply = pack_entry(file.nodeid, self._attr(file), self._valid)
        elif opcode == uapi.FUSE_GETATTR and nodeid in self._by_id:
            reply = pack_attr(self._attr(self._by_id[nodeid]))
        else:
            code = errno.EIO
        length = uapi.OUT_HEADER.size + len(reply)
        os.write(fuse, uapi.OUT_HEADER.pack(length, -code, unique) + reply)

    def _attr(self, file: File) -> uapi.Attr:
        ino, links = FIRST_INO + file.nodeid, 1
        if file.nodeid == uapi.FUSE_ROOT_ID:
            ino = ROOT_INO
        if stat.S_ISDIR(file.mode):
            inside = [f for (parent, _), f in self._by_name.items() if parent == file.nodeid]
            links = 2 + sum(stat.S_ISDIR(f.mode) for f in inside)
        return uapi.Attr(ino, len(file.target), file.mode, links, 0, 0, 0, self._times)
