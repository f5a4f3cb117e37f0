"""The messages between a Python program, the supervisor of its sandbox and the agent inside.

A message is a JSON object, followed for a call of a function by a line feed and pickled data.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from loopfs.channel import MAX_LENGTH, Channel, Message
from loopfs.errors import LoopfsError

READY = b"ready"  # the agent
END = b"end"  # to the agent


def error(code: int, sentence: str) -> bytes:
    return json.dumps({"errno": code, "error": sentence}).encode()


def of_problem(problem: OSError) -> bytes:
    """The message for what a system call has failed with."""
    return error(problem.errno or 0, sentence(problem))


def sentence(problem: OSError) -> str:
    """What a system call has failed with, and on what."""
    said = problem.strerror or str(problem)
    named = problem.filename is not None and not isinstance(problem, LoopfsError)
    return f"{problem.filename}: {said}" if named else said


def pack(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """A message. Raises LoopfsError EMSGSIZE: it is longer than 64 MiB."""
    data = json.dumps(header).encode() + b"\n" + payload
    if len(data) > MAX_LENGTH:
        raise LoopfsError(errno.EMSGSIZE, "more than 64 MiB cannot be passed into a sandbox or out")
    return data


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    header, _, payload = data.partition(b"\n")
    return json.loads(header), payload


def ended() -> LoopfsError:
    return LoopfsError(errno.ESRCH, "the sandbox has ended")


def answer(channel: Channel, lost: LoopfsError) -> tuple[dict[str, Any], bytes, Message]:
    """The next message of the other end.

    Args:
        lost: the error where it has ended without one.
    Raises:
        LoopfsError: that, or what the other end says.
    """
    message = channel.receive()
    if not message.data:
        raise lost
    header, payload = unpack(message.data)
    if "error" in header:
        raise LoopfsError(int(header["errno"]), str(header["error"]))
    return header, payload, message


def own_streams() -> tuple[int, int, int]:
    """Descriptors of the standard streams, to be inherited; /dev/null for a closed one.

    They are the caller's to close.
    """
    found = []
    for fd in range(3):
        try:
            found.append(os.dup(fd))
        except OSError:  # EBADF
            found.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    return found[0], found[1], found[2]
