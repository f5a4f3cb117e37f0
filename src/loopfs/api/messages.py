"""The messages between a Python program, the supervisor of its sandbox and the agent in it.

A message is a JSON object; for a call of a function a line feed and pickled data follow.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from loopfs.channel import MAX_LENGTH, Channel, Message
from loopfs.errors import LoopfsError

READY = b"ready"  # from the agent
END = b"end"  # to the agent


def error(code: int, sentence: str) -> bytes:
    return json.dumps({"errno": code, "error": sentence}).encode()


def of_problem(problem: OSError) -> bytes:
    """Return the message for the error of a system call."""
    return error(problem.errno or 0, sentence(problem))


def sentence(problem: OSError) -> str:
    """Return the error text of a system call, with the path if there is one."""
    said = problem.strerror or str(problem)
    named = problem.filename is not None and not isinstance(problem, LoopfsError)
    return f"{problem.filename}: {said}" if named else said


def pack(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """Encode a message. Raises LoopfsError EMSGSIZE: it is longer than 64 MiB."""
    data = json.dumps(header).encode() + b"\n" + payload
    if len(data) > MAX_LENGTH:
        raise LoopfsError(errno.EMSGSIZE, "arguments or result are longer than 64 MiB")
    return data


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    header, _, payload = data.partition(b"\n")
    return json.loads(header), payload


def ended() -> LoopfsError:
    return LoopfsError(errno.ESRCH, "the sandbox has ended")


def answer(channel: Channel, lost: LoopfsError) -> tuple[dict[str, Any], bytes, Message]:
    """Receive the next message of the other end.

    Args:
        lost: the error if the other end is closed without a message.
    Raises:
        LoopfsError: ``lost``, or the error that the other end reports.
    """
    message = channel.receive()
    if not message.data:
        raise lost
    header, payload = unpack(message.data)
    if "error" in header:
        raise LoopfsError(int(header["errno"]), str(header["error"]))
    return header, payload, message


def own_streams() -> tuple[int, int, int]:
    """Return duplicates of the standard streams; /dev/null in place of a closed one.

    The caller must close them.
    """
    found = []
    for fd in range(3):
        try:
            found.append(os.dup(fd))
        except OSError:  # EBADF
            found.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
    return found[0], found[1], found[2]
