"""The messages between the sandbox's processes and the supervisor."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from loopfs.channel import Channel, Message
from loopfs.errors import SetupError, of_start
from loopfs.text import to_bytes, to_str

OK = b"ok"

# From the child.
WANTS_MAPS = b"maps"
# With the descriptor of the instance's /dev/fuse. The child closes its own before it waits for
# process 1: if that ends, the FUSE connection must end, too.
FUSE = b"fuse"
# With the names, joined by commas, of the mounts in /dev and of the host's devices in /sys, and the
# directories of /sys that are covered (sysfs.described). Descriptors: of /dev, and a /dev/fuse for
# each of those directories. In a sandbox inside a sandbox, without all of these: the outer one
# serves it.
MOUNTED = b"mounted"

# From the child and process 1.
FAILED = (
    b"failed:"  # and an errno, a colon, the call that was refused (-: none), a colon, a sentence
)

# To process 1: serve /dev ("dev") and the view of /sys/devices/virtual/block ("sys"), whose
# /dev/fuse are passed with it, until the next message; each with a colon and the names that will be
# mounted there, joined by commas, and a semicolon between them.
SERVE = b"serve:"

# From the process that becomes the command, with the listener if it has one.
LISTENER = b"listener"


def expect(channel: Channel, *what: bytes) -> Message:
    """Receive the message that begins with ``what``, or with one of them.

    Raises:
        SetupError: the child or process 1 has failed, with its reason.
    """
    message = channel.receive()
    if (problem := failure(message)) is not None:
        raise problem
    if not message.data.startswith(what):
        raise SetupError(0, "the sandbox ended while it was being made")
    return message


def fail(channel: Channel, problem: OSError) -> None:
    """Report to the supervisor why no sandbox can be made."""
    why = of_start(problem)
    call = "-" if why.call is None else why.call
    with suppress(OSError):  # without the message the supervisor is notified of our exit
        channel.send(FAILED + to_bytes(f"{why.code}:{call}:{why.strerror}"))


def failure(message: Message) -> SetupError | None:
    """Return the error that :func:`fail` has reported; None if it is another message."""
    if not message.data.startswith(FAILED):
        return None
    code, call, sentence = to_str(message.data[len(FAILED) :]).split(":", 2)
    return SetupError(int(code), sentence, None if call == "-" else call)


def waiting(channel: Channel) -> Message | None:
    """Return the next message, or None if none has arrived."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    return channel.receive() if poller.poll(0) else None


def exit_status(wait_status: int) -> int:
    """Convert a status of waitpid(2) to an exit status: the process's own, 128+n for signal n."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
