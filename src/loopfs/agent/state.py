"""The message of a container runtime with a listener: the container process state (OCI
runtime-spec, config-linux.md, "The Container Process State")."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
from typing import NamedTuple

from loopfs.channel import close_all
from loopfs.errors import LoopfsError

MOST = 1 << 20  # bytes: a state contains the container's annotations
MOST_DESCRIPTORS = 8
WITHIN = 10.0  # seconds
LISTENER = "seccompFd"
METADATA = "loopfs agent"  # listenerMetadata of our profile
_KIND = "anon_inode:seccomp notify"
_UCRED = struct.Struct("=iII")
_PIECE = 1 << 16  # bytes


class State(NamedTuple):
    """A container: the name that the runtime sends, and an open listener."""

    name: str
    listener: int


def peer_user(connection: socket.socket) -> int:
    """Return the user id of the peer."""
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(said)
    return int(uid)


def receive(connection: socket.socket) -> State:
    """Receive a state. Descriptors other than the listener are closed.

    Raises:
        LoopfsError: the message is not a state, or does not arrive in time.
    """
    connection.settimeout(WITHIN)
    fds: list[int] = []
    try:
        text = _receive(connection, fds)
        if not text:  # the runtime has failed
            raise LoopfsError(errno.EPIPE, "it was closed without a message")
        name, at = understood(text, len(fds))
    except TimeoutError:
        close_all(fds)
        raise LoopfsError(errno.ETIMEDOUT, "its state did not arrive in time") from None
    except BaseException:
        close_all(fds)
        raise
    listener = fds.pop(at)
    close_all(fds)
    if os.readlink(f"/proc/self/fd/{listener}") != _KIND:
        os.close(listener)
        raise _wrong(f"has a {LISTENER} that is not a seccomp listener")
    return State(name, listener)


def _receive(connection: socket.socket, fds: list[int]) -> bytes:
    """Read until the JSON text is complete: a runtime need not close the connection."""
    text = b""
    while True:
        data, more, flags, _ = socket.recv_fds(
            connection, _PIECE, MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        fds += more
        if flags & socket.MSG_CTRUNC or len(fds) > MOST_DESCRIPTORS:
            raise LoopfsError(errno.EMSGSIZE, "it sends too many descriptors")
        text += data
        if len(text) > MOST:
            raise LoopfsError(errno.EMSGSIZE, "its state is too long")
        if not data or (text.rstrip().endswith(b"}") and _is_json(text)):
            return text


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def understood(text: bytes, count: int) -> tuple[str, int]:
    """Parse a state; return the container's name, and the index of its listener among ``count``
    descriptors.

    Raises:
        LoopfsError: EINVAL.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        raise _wrong("is not JSON") from None
    if not isinstance(said, dict):
        raise _wrong("is not an object")
    names, container = said.get("fds"), said.get("state")
    if not isinstance(names, list) or len(names) != count or LISTENER not in names:
        raise _wrong(f"names no {LISTENER} among its {count} descriptors")
    if said.get("metadata") != METADATA:
        raise _wrong("is for a profile that `loopfs seccomp-profile --agent` has not made")
    if not isinstance(container, dict) or not isinstance(container.get("id"), str):
        raise _wrong("names no container")
    return container["id"], names.index(LISTENER)


def _wrong(what: str) -> LoopfsError:
    return LoopfsError(errno.EINVAL, f"its state {what}")
