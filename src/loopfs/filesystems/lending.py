"""The protocol between the supervisor and an engine that was a job of ours. It is used as long as
the engine runs, on a channel that is passed to it with the file of the device.

Each message is a sequence of numbers; the first is one of the constants below. A malicious image
can make an engine send anything, so every message must be safe to receive. The channel ends when
the process at its other end ends.
"""

from __future__ import annotations

import struct

from loopfs.channel import Channel

# Requests of the supervisor, which the engine answers with ANSWER.
CONNECTION = 1  # return a duplicate of the engine's /dev/fuse
WINDOW = 2  # use another file (a descriptor), offset and size in bytes from now on
DRAIN = 3  # read all requests that are queued for the engine
ANSWER = 4
TUNE = 8  # use the superblock (its bytes) that a tool has written: (ANSWER, 1) if accepted
CONTROL = 11  # carry out an ioctl: inode, command, words; (ANSWER, errno, …)
STAT = 0  # pseudo-command of CONTROL: return the stat(2) of the inode
REMOUNT = 1  # likewise: 1 read-only, 0 writable again; (ANSWER, errno, whether that was a change)
FREEZE = 2  # likewise: 1 hold back requests that make changes (FIFREEZE), 0 continue (FITHAW)
MAKES = 12  # a FIFO that a process creates is to be a device: process, S_IF* type (0: end), number
# Requests of the engine: sync the image and drop the pages of other openers, or only drop these
# pages since the engine has synced it; both carry its I/O counts. (SYNCED, errno) is the answer.
SYNC = 5
WRITTEN = 9
SYNCED = 6
DONE = 7  # the engine has written everything; carries the last counts
USES = 10  # the engine uses only the bytes of the device from a first to before a last one
# Request of the engine: the purpose of a thread's lookup that found a device: thread, inode.
LOOKUP = 13
PURPOSE = 14  # the answer: LOOK, OPEN or HOLD of loopfs.filesystems.faces

Counts = list[list[int]]  # for each kind of I/O: requests, bytes, nanoseconds
KINDS = 4

WORD = 8  # bytes


def say(channel: Channel, *words: int, fds: tuple[int, ...] = ()) -> None:
    """Send a message. Raises OSError as :meth:`Channel.send`."""
    channel.send(struct.pack(f"={len(words)}q", *words), fds)


def words_of(data: bytes) -> tuple[int, ...]:
    """Return the numbers of a message."""
    count = len(data) // WORD
    return struct.unpack(f"={count}q", data[: count * WORD])


def flat(counts: Counts) -> list[int]:
    """Convert counts to words."""
    return [number for counted in counts for number in counted]


def counts_of(words: tuple[int, ...]) -> Counts:
    """Convert words to counts; return an empty list if they are not valid."""
    if len(words) != 3 * KINDS or min(words) < 0:
        return []
    return [list(words[start : start + 3]) for start in range(0, len(words), 3)]
