"""Find the running sandboxes from outside, and send requests to them.

No state is stored anywhere: sandboxes are found by their sockets in /proc/net/unix, of our network
namespace, and for root of all network namespaces. The kernel identifies the listener of a socket
(SO_PEERCRED), even if it hangs.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any, NamedTuple

from loopfs import syscalls
from loopfs.channel import close_all
from loopfs.process import Process
from loopfs.sandbox.control_socket import (
    FAMILY,
    KIND,
    PREFIX,
    has_ended,
    peer_credentials,
    peer_pidfd,
)
from loopfs.text import to_str
from loopfs.uapi.sched import CLONE_NEWNET

PATIENCE = 2.0  # seconds to wait for the answers of all sandboxes
MAX_MESSAGE = 1 << 16  # bytes
MAX_ANSWER = 64 << 20  # bytes
_READ = os.O_RDONLY | os.O_CLOEXEC

Answer = dict[str, Any]

# The form of an answer to "list": a list stands for any number of items, a tuple for alternatives.
_SOME_TEXT, _SOME_NUMBER = (str, type(None)), (int, type(None))
_PARTITION = {"name": str, "start": int, "size": int, "openers": int}
_DEVICE = {
    "name": str,
    "number": int,
    "backing_file": _SOME_TEXT,
    "offset": int,
    "sizelimit": int,
    "size": int,
    "flags": [str],
    "openers": int,
    "partitions": [_PARTITION],
}
_INSTANCE = {
    "namespace": int,
    "places": [str],
    "limit": int,
    "used": int,
    "devices": [_DEVICE],
}
_MOUNT = {
    "places": [str],
    "type": _SOME_TEXT,
    "device": _SOME_TEXT,
    "read_only": (bool, type(None)),
    "engine": _SOME_TEXT,
    "pid": int,
    "memory": _SOME_NUMBER,
}
STATE = {
    "command": [str],
    "limit": int,
    "used": int,
    "instances": [_INSTANCE],
    "mounts": [_MOUNT],
}


def fits(value: object, form: object) -> bool:
    """Whether an answer has the given form."""
    if isinstance(form, dict):
        same = isinstance(value, dict) and value.keys() == form.keys()
        return same and all(fits(value[key], form[key]) for key in form)  # type: ignore[index]
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(each, form[0]) for each in value)
    if isinstance(form, tuple):
        return any(fits(value, each) for each in form)
    return type(value) is form


class Sandbox(NamedTuple):
    """A running sandbox.

    Args:
        pid: the process id of its supervisor.
        uid: the user who has started it.
        pidfd: of the process that listens; None without a connection.
        connection: to its socket; None if the backlog is full. Then only the name of the socket
            suggests that it is a sandbox.
    """

    pid: int
    uid: int
    pidfd: int | None = None
    connection: socket.socket | None = None

    def since(self) -> float:
        """Return its start time in seconds since the epoch."""
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/uptime", "rb") as file:
            up = float(file.read().split()[0])
        return time() - up + ticks / os.sysconf("SC_CLK_TCK")

    def command_line(self) -> list[str]:
        """Return the command line of the supervisor, which ends with that of the command."""
        with open(f"/proc/{self.pid}/cmdline", "rb") as file:
            return [to_str(word) for word in file.read().removesuffix(b"\0").split(b"\0")]

    def close(self) -> None:
        if self.pidfd is not None and self.connection is not None:
            os.close(self.pidfd)
            self.connection.close()


def find(*, everybodys: bool = False) -> list[Sandbox]:
    """Return the caller's own sandboxes, ordered by process id.

    Args:
        everybodys: also return those of other users; for root.
    """
    found = {}
    for namespace in _network_namespaces():
        for name in _names(namespace):
            sandbox = _connect(name, namespace)
            if sandbox is None:
                continue
            if sandbox.pid and (everybodys or sandbox.uid == os.geteuid()):
                found[sandbox.pid] = sandbox
            else:
                sandbox.close()
    return [found[pid] for pid in sorted(found)]


def ask(sandboxes: Sequence[Sandbox], *words: str) -> dict[int, Answer]:
    """Send a request to all sandboxes, and wait up to PATIENCE for the answers.

    Args:
        words: ``list``, or ``detach`` and a device's name.
    Returns:
        the answers received, by process id; the answer to a request that is refused or fails has
        ``errno`` and ``error``.
    """
    question = " ".join(words).encode("ascii", "replace")
    waiting: dict[int, tuple[int, socket.socket]] = {}
    received: dict[int, bytes] = {}
    poller = select.poll()
    for sandbox in sandboxes:
        if (connection := sandbox.connection) is not None and _send(sandbox, question):
            waiting[connection.fileno()] = sandbox.pid, connection
            received[sandbox.pid] = b""
            poller.register(connection, select.POLLIN)
    deadline = monotonic() + PATIENCE
    while waiting and (left := deadline - monotonic()) > 0:
        for fd, _ in poller.poll(max(1, int(1000 * left))):
            pid, connection = waiting[fd]
            try:  # recv(), which receives no descriptors: any process could send some
                data = connection.recv(MAX_MESSAGE)
            except OSError:
                data = b""
            received[pid] += data
            if not data or len(received[pid]) > MAX_ANSWER:
                poller.unregister(fd)
                del waiting[fd]
    silent = {pid for pid, _ in waiting.values()}
    answers = {pid: _answer(data) for pid, data in received.items() if pid not in silent}
    return {pid: answer for pid, answer in answers.items() if answer is not None}


def _send(sandbox: Sandbox, question: bytes) -> bool:
    """Send a request, with a descriptor of the sandbox's user namespace if it can be opened: this
    proves that we are root. A listener of any kind receives only a descriptor of its own namespace.
    Return False if the sandbox has ended."""
    assert sandbox.connection is not None
    assert sandbox.pidfd is not None
    tokens: list[int] = []
    with suppress(OSError):  # we may not access the process
        tokens.append(os.open(f"/proc/{sandbox.pid}/ns/user", _READ))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd)) for fd in tokens]
    try:
        if has_ended(sandbox.pidfd):
            return False
        sandbox.connection.sendmsg([question], rights)
    except OSError:
        return False
    finally:
        close_all(tokens)
    return True


def _answer(data: bytes) -> Answer | None:
    try:
        answer = json.loads(data)
    except ValueError:  # it has ended meanwhile, or is not a sandbox
        return None
    return answer if isinstance(answer, dict) else None


def _network_namespaces() -> Iterator[int | None]:
    """Yield None for our own, and a descriptor of each other network namespace that can be opened.

    The descriptor is closed at the next step.
    """
    yield None
    seen = {Process(os.getpid()).namespace("net")}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            fd = os.open(f"/proc/{name}/ns/net", _READ)
        except OSError:
            continue
        try:
            if (inode := os.fstat(fd).st_ino) not in seen:
                seen.add(inode)
                yield fd
        finally:
            os.close(fd)


def _within(namespace: int | None, call: Any) -> Any:
    """Return the result of a call in a network namespace; None if we may not enter it."""
    if namespace is None:
        return call()
    results = []

    def enter() -> None:
        with suppress(PermissionError):
            syscalls.setns(namespace, CLONE_NEWNET)
            results.append(call())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return results[0] if results else None


def _names(namespace: int | None) -> list[str]:
    """Return the abstract names of the sockets of sandboxes."""

    def read() -> list[str]:
        with open("/proc/thread-self/net/unix", "rb") as file:
            lines = [line.split(None, 7) for line in file]
        names = (to_str(line[7].rstrip(b"\n")) for line in lines if len(line) == 8)
        return sorted({name[1:] for name in names if name.startswith(f"@{PREFIX}")})

    return _within(namespace, read) or []


def _connect(name: str, namespace: int | None) -> Sandbox | None:
    """Connect to a sandbox's socket; None if its listener has ended or cannot be identified."""

    def connect() -> socket.socket | int:
        made = socket.socket(FAMILY, KIND | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            made.connect("\0" + name)
        except OSError as problem:
            made.close()
            return problem.errno or errno.EIO
        return made

    connection = _within(namespace, connect)
    if connection == errno.EAGAIN:
        return _by_name(name)
    if not isinstance(connection, socket.socket):
        return None
    pid, uid, _ = peer_credentials(connection)
    try:
        pidfd = peer_pidfd(connection)
    except OSError:  # the process that made the socket has ended
        pidfd = None
    if pidfd is None:
        connection.close()
        return None
    return Sandbox(pid, uid, pidfd, connection)


def _by_name(name: str) -> Sandbox | None:
    """Return the sandbox that the name of a socket claims; any process can make such a name."""
    pid = name.removeprefix(PREFIX).partition("/")[0]
    try:
        return Sandbox(int(pid), int(Process(int(pid)).status()["Uid"].split()[0]))
    except (ValueError, OSError):
        return None
