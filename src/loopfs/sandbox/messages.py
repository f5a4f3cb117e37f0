"""What the sandbox's processes and the supervisor say to each other."""

from __future__ import annotations

import os
import select
from contextlib import suppress

from loopfs.channel import Channel, Message
from loopfs.errors import SetupError, of_start
from loopfs.text import to_bytes, to_str

OK = b"ok"

# The child.
WANTS_MAPS = b"maps"
# With the descriptor of the instance's /dev/fuse: so the child has none of it while it waits for
# who answers, and if that is gone, so is the filesystem.
FUSE = b"fuse"
# With the names, joined by commas, of what is mounted in /dev, those of the host's devices in /sys,
# and the directories of /sys that are covered (sysfs.described); and the descriptors of /dev, and a
# /dev/fuse for each of those directories. In a sandbox around this one, with nothing: it serves us
# too.
MOUNTED = b"mounted"

# The child and process 1.
FAILED = (
    b"failed:"  # and an errno, a colon, the call that was refused (-: none), a colon, a sentence
)

# To process 1: serve /dev ("dev") and what covers /sys/devices/virtual/block ("sys"), whose
# /dev/fuse come with it, until there is another message; each with a colon and the names of what
# will be mounted there, joined by commas, and a semicolon between them.
SERVE = b"serve:"

# Process 1.
LISTENER = b"listener"  # sent by what becomes the command, with the listener if it has one


def expect(channel: Channel, *what: bytes) -> Message:
    """Receive the message that begins with ``what``, or with one of them.

    Raises:
        SetupError: the child or process 1 has failed, and this is why.
    """
    message = channel.receive()
    if (problem := failure(message)) is not None:
        raise problem
    if not message.data.startswith(what):
        raise SetupError(0, "the sandbox ended while it was being made")
    return message


def fail(channel: Channel, problem: OSError) -> None:
    """Tell the supervisor why there will be no sandbox."""
    why = of_start(problem)
    call = "-" if why.call is None else why.call
    with suppress(OSError):  # who cannot be told sees us end
        channel.send(FAILED + to_bytes(f"{why.code}:{call}:{why.strerror}"))


def failure(message: Message) -> SetupError | None:
    """What :func:`fail` has told; None if the message is another."""
    if not message.data.startswith(FAILED):
        return None
    code, call, sentence = to_str(message.data[len(FAILED) :]).split(":", 2)
    return SetupError(int(code), sentence, None if call == "-" else call)


def waiting(channel: Channel) -> Message | None:
    """The message that has come, if one has."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    return channel.receive() if poller.poll(0) else None


def exit_status(wait_status: int) -> int:
    """What waitpid(2) said as an exit status: the process's own, 128+n after signal n."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
