"""What the sandbox's processes and the supervisor say to each other."""

from __future__ import annotations

import os

from loopfs.channel import Channel, Message
from loopfs.errors import SetupError
from loopfs.text import to_str

OK = b"ok"

# The child.
WANTS_MAPS = b"maps"
# With the names, joined by commas, of what will be mounted in /dev, and the directories of /sys
# that are covered (sysfs.described); and the descriptors of the instance's /dev/fuse, of /dev, and
# a /dev/fuse for each of those directories. In a sandbox around this one, with nothing: it serves
# us too.
MOUNTED = "mounted"
FAILED = b"failed:"  # and an errno, a colon, a sentence

# To process 1: serve /dev, whose /dev/fuse comes with it, until there is another message; with the
# names of what will be mounted there, joined by commas.
SERVE = b"serve:"

# Process 1.
LISTENER = b"listener"  # sent by what becomes the command, with the listener if it has one


def expect(channel: Channel, what: bytes) -> Message:
    """Receive the message that begins with ``what``.

    Raises:
        SetupError: the child has failed, and this is why.
    """
    message = channel.receive()
    if message.data.startswith(FAILED):
        code, _, sentence = to_str(message.data[len(FAILED) :]).partition(":")
        raise SetupError(int(code), sentence)
    if not message.data.startswith(what):
        raise SetupError(0, "the sandbox ended while it was being made")
    return message


def exit_status(wait_status: int) -> int:
    """What waitpid(2) said as an exit status: the process's own, 128+n after signal n."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code
