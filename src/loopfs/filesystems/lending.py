"""What the supervisor and an engine that is a job of ours say to one another, for as long as the
engine lives, on a channel that is handed over with the file of the device.

Each message is a tuple whose first element is one of these. The end of the channel is the end of
whoever had the other end.
"""

from __future__ import annotations

import marshal

from loopfs.channel import Channel

# The supervisor asks, and the engine answers with ANSWER.
CONNECTION = 1  # for a duplicate of the engine's /dev/fuse
WINDOW = 2  # to go on with another file (a descriptor), offset and size in bytes
DRAIN = 3  # to read all requests that are queued for it
ANSWER = 4
# The engine asks that the image be synced, and tells what it has counted; (SYNCED, errno) follows.
SYNC = 5
SYNCED = 6
DONE = 7  # it has written everything; with what it has counted since

Counts = list[list[int]]  # of each kind of I/O: requests, bytes, nanoseconds


def say(channel: Channel, *words: object, fds: tuple[int, ...] = ()) -> None:
    """Send a message. Raises OSError as :meth:`Channel.send`."""
    channel.send(marshal.dumps(words), fds)  # type: ignore[arg-type]
