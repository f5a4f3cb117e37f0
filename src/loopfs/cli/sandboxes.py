"""The sandboxes that there are, as they are found from outside, and what they say.

Nothing is kept of them anywhere: they are found by their sockets in /proc/net/unix, of our network
namespace, and for root of all others. The kernel says who listens (SO_PEERCRED), also where that
hangs.
"""

from __future__ import annotations

import errno
import fcntl
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
from loopfs.channel import Channel, close_all
from loopfs.errors import LoopfsError
from loopfs.process import Process
from loopfs.sandbox.control_socket import FAMILY, KIND, PREFIX
from loopfs.text import to_str
from loopfs.uapi.mount import NS_GET_PARENT
from loopfs.uapi.sched import CLONE_NEWNET

PATIENCE = 2.0  # seconds that all of them have together for an answer
_READ = os.O_RDONLY | os.O_CLOEXEC
_UCRED = struct.Struct("=iII")  # pid, uid, gid

Answer = dict[str, Any]


class Sandbox(NamedTuple):
    """One that is there: the process id of its supervisor, the user (a uid) who has started it, and
    a connection to it. Without one nothing but its name says that it is one: it has not taken so
    many that there is no room for another."""

    pid: int
    uid: int
    connection: Channel | None

    def since(self) -> float:
        """When it was started, in seconds since the epoch."""
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/uptime", "rb") as file:
            up = float(file.read().split()[0])
        return time() - up + ticks / os.sysconf("SC_CLK_TCK")

    def command_line(self) -> list[str]:
        """That of the supervisor, which has the command at its end."""
        with open(f"/proc/{self.pid}/cmdline", "rb") as file:
            return [to_str(word) for word in file.read().removesuffix(b"\0").split(b"\0")]

    def pidfd(self) -> int:
        """A descriptor of the supervisor.

        Raises:
            LoopfsError: ESRCH: it has just ended; EAGAIN: it may be none.
        """
        if self.connection is None:
            sentence = f"the process {self.pid} says nothing that shows it to be a sandbox"
            raise LoopfsError(errno.EAGAIN, sentence)
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise _ended(self.pid) from None
        poller = select.poll()
        poller.register(self.connection, 0)
        if poller.poll(0):  # POLLHUP: the process id may be another's now
            os.close(pidfd)
            raise _ended(self.pid)
        return pidfd


def _ended(pid: int) -> LoopfsError:
    return LoopfsError(errno.ESRCH, f"the sandbox {pid} has ended")


def find(*, everybodys: bool = False) -> list[Sandbox]:
    """One's own sandboxes, in the order of their process ids.

    Args:
        everybodys: those of other users, too: for root.
    """
    found = {}
    for namespace in _network_namespaces():
        for name in _names(namespace):
            sandbox = _connect(name, namespace)
            if sandbox is None:
                continue
            if sandbox.pid and (everybodys or sandbox.uid == os.geteuid()):
                found[sandbox.pid] = sandbox
            elif sandbox.connection is not None:
                sandbox.connection.close()
    return [found[pid] for pid in sorted(found)]


def ask(sandboxes: Sequence[Sandbox], *words: str) -> dict[int, Answer]:
    """Ask them all, and wait for the answers for a while.

    Args:
        words: ``list``, or ``detach`` and a device's name.
    Returns:
        the answers of those who have given one, by process id; what is refused or fails has
        ``errno`` and ``error``.
    """
    answers: dict[int, Answer] = {}
    poller = select.poll()
    waiting = {}
    for pid, _, connection in sandboxes:
        if connection is None:
            continue
        tokens = list(_tokens(pid))
        try:
            connection.send(" ".join(words).encode("ascii", "replace"), tuple(tokens))
        except OSError:  # it has ended
            continue
        finally:
            close_all(tokens)
        waiting[connection.fileno()] = pid, connection
        poller.register(connection, select.POLLIN)
    deadline = monotonic() + PATIENCE
    while waiting and (left := deadline - monotonic()) > 0:
        for fd, _ in poller.poll(max(1, int(1000 * left))):
            poller.unregister(fd)
            pid, connection = waiting.pop(fd)
            if (answer := _received(connection)) is not None:
                answers[pid] = answer
    return answers


def _received(connection: Channel) -> Answer | None:
    try:
        message = connection.receive()
        close_all(message.fds)
        answer = json.loads(message.data)
    except (OSError, ValueError):  # it has ended, or is no sandbox
        return None
    return answer if isinstance(answer, dict) else None


def _tokens(pid: int) -> Iterator[int]:
    """Descriptors that show who we are (:mod:`loopfs.sandbox.control`)."""
    try:
        inside = os.open(f"/proc/{pid}/ns/user", _READ)
    except OSError:  # of a process that does not let us look at it
        yield os.open("/proc/self/ns/user", _READ)
        return
    yield inside
    with suppress(OSError):  # it is in no namespace within ours, and so is no sandbox
        yield fcntl.ioctl(inside, NS_GET_PARENT)


def _network_namespaces() -> Iterator[int | None]:
    """Our own (None), and a descriptor of each other that we may enter, open until the next one."""
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
    """Call something in a network namespace; None where we may not enter it."""
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
    """The abstract names of sandboxes' sockets."""

    def read() -> list[str]:
        with open("/proc/thread-self/net/unix", "rb") as file:
            lines = [line.split(None, 7) for line in file]
        names = (to_str(line[7].rstrip(b"\n")) for line in lines if len(line) == 8)
        return sorted({name[1:] for name in names if name.startswith(f"@{PREFIX}")})

    return _within(namespace, read) or []


def _connect(name: str, namespace: int | None) -> Sandbox | None:
    """None if nobody listens any more."""

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
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(credentials)
    return Sandbox(pid, uid, Channel.of_descriptor(connection.detach()))


def _by_name(name: str) -> Sandbox | None:
    """What the name of a socket says, which anybody can have made."""
    pid = name.removeprefix(PREFIX).partition("/")[0]
    try:
        return Sandbox(int(pid), int(Process(int(pid)).status()["Uid"].split()[0]), None)
    except (ValueError, OSError):
        return None
