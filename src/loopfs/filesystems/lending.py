"""What the supervisor and an engine that is a job of ours say to one another, for as long as the
engine lives, on a channel that is handed over with the file of the device.

Each message is some numbers, of which the first is one of these: an engine that an image has misled
may say anything, so nothing is read that could mislead the reader. The end of the channel is the
end of whoever had the other end.
"""

from __future__ import annotations

import struct

from loopfs.channel import Channel

# The supervisor asks, and the engine answers with ANSWER.
CONNECTION = 1  # for a duplicate of the engine's /dev/fuse
WINDOW = 2  # to go on with another file (a descriptor), offset and size in bytes
DRAIN = 3  # to read all requests that are queued for it
ANSWER = 4
TUNE = 8  # what a tool has written to its superblock, the bytes of it: (ANSWER, 1) if it is taken
CONTROL = 11  # an ioctl that the kernel does not pass on: inode, command, words; (ANSWER, errno, …)
STAT = 0  # a command that is none of ioctl(2): what stat(2) says of the inode
REMOUNT = 1  # another: 1 to write nothing any more, 0 to go on; (ANSWER, errno, it was otherwise)
MAKES = 12  # a FIFO that a process makes is a device: process, S_IF* type (0: no more), number
# The engine asks that the image be synced, or has it synced itself, and that everybody is to see
# that; and tells what it has counted. (SYNCED, errno) follows.
SYNC = 5
WRITTEN = 9
SYNCED = 6
DONE = 7  # it has written everything; with what it has counted since
USES = 10  # of the device it uses only the bytes from a first to before a last
# The engine asks what the lookup of a thread is for, which has found a device: thread, inode.
LOOKUP = 13
PURPOSE = 14  # and so it is answered: LOOK, OPEN, HOLD of loopfs.filesystems.faces

Counts = list[list[int]]  # of each kind of I/O: requests, bytes, nanoseconds
KINDS = 4

WORD = 8  # bytes


def say(channel: Channel, *words: int, fds: tuple[int, ...] = ()) -> None:
    """Send a message. Raises OSError as :meth:`Channel.send`."""
    channel.send(struct.pack(f"={len(words)}q", *words), fds)


def words_of(data: bytes) -> tuple[int, ...]:
    """A message."""
    count = len(data) // WORD
    return struct.unpack(f"={count}q", data[: count * WORD])


def flat(counts: Counts) -> list[int]:
    """Counts as words."""
    return [number for counted in counts for number in counted]


def counts_of(words: tuple[int, ...]) -> Counts:
    """Words as counts; no counts if they are none."""
    if len(words) != 3 * KINDS or min(words) < 0:
        return []
    return [list(words[start : start + 3]) for start in range(0, len(words), 3)]
