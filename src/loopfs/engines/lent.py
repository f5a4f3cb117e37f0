"""A device whose backing file the supervisor has lent to a job: the engine's end of
:mod:`loopfs.filesystems.lending`."""

from __future__ import annotations

import errno
import os
import select
import threading
from _thread import start_new_thread
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from time import monotonic, monotonic_ns, sleep

from loopfs.channel import Channel, close_all
from loopfs.driver.statistics import DISCARD, READ, WRITE
from loopfs.errors import errno_of
from loopfs.file_device import Buffer, FileDevice
from loopfs.filesystems import lending
from loopfs.filesystems.faces import LOOK
from loopfs.filesystems.threads import start

Control = Callable[[int, int, Sequence[int]], Sequence[int]]

_DRAINED_WITHIN = 30.0  # seconds, for a mount that is never idle
_PAUSE = 0.001  # seconds


class Lent(FileDevice):
    """The device, accessed through its backing file.

    Args:
        fd: the file; owned by this object.
        channel: to the supervisor; owned by this object.
        offset, size: the part of the file that the device shows, in bytes.
        read_only: whether the device is write-protected.

    Attributes:
        tune: adopts a superblock that a tool has written; returns whether it did.
        control: carries out an ioctl on the inode with a number.
        making: the devices that processes are creating, see :class:`loopfs.ext4.filesystem.Ext4`.
    """

    def __init__(
        self, fd: int, channel: Channel, offset: int, size: int, read_only: bool = False
    ) -> None:
        super().__init__(fd, size, offset)
        self._read_only = read_only
        self.descriptors = fd, channel.fileno()
        self._channel = channel
        self._syncing = threading.Lock()
        self._followed = self._unseen = False
        self._synced: SimpleQueue[int] = SimpleQueue()
        self._counts = _no_counts()
        self.tune: Callable[[bytes], bool] = lambda data: False
        self.control: Control = _no_control
        self.making: dict[int, tuple[int, int]] = {}
        self._purposes: SimpleQueue[int] = SimpleQueue()

    @property
    def window(self) -> tuple[int, int, int]:
        """The file's descriptor, and the device's offset and size in it, in bytes."""
        return self._fd, self._offset, self._size

    @property
    def read_only(self) -> bool:
        return self._read_only

    # --- I/O, with statistics --------------------------------------------------------

    def read(self, offset: int, length: int) -> bytes:
        begun = monotonic_ns()
        data = super().read(offset, length)
        self._count(READ, length, begun)
        return data

    def read_into(self, offset: int, buffer: memoryview) -> None:
        begun = monotonic_ns()
        super().read_into(offset, buffer)
        self._count(READ, len(buffer), begun)

    def write(self, offset: int, *parts: Buffer) -> None:
        begun = monotonic_ns()
        super().write(offset, *parts)
        self._count(WRITE, sum(map(len, parts)), begun)

    def discard(self, offset: int, length: int) -> None:
        begun = monotonic_ns()
        super().discard(offset, length)
        self._count(DISCARD, length, begun)

    def _count(self, kind: int, length: int, begun: int) -> None:
        counted = self._counts[kind]
        counted[0] += 1
        counted[1] += length
        counted[2] += monotonic_ns() - begun

    def _counted(self) -> list[int]:
        counts, self._counts = self._counts, _no_counts()
        return lending.flat(counts)

    def sync(self) -> None:
        """Let the supervisor sync the image: it reports errors to all openers of the device."""
        self._ask(lending.SYNC)

    def written(self) -> None:
        """Make written data visible to all openers of the device."""
        self._ask(lending.WRITTEN)

    def _ask(self, question: int) -> None:
        with self._syncing:
            if not self._followed:  # the supervisor is not followed yet: do it later
                self._unseen = True
                return
            lending.say(self._channel, question, *self._counted())
            code = self._synced.get()
        if code:
            raise OSError(code, os.strerror(code))

    def uses(self, start: int, end: int) -> None:
        """Release the rest of the device for writes by others; ``start``, ``end`` are bytes."""
        lending.say(self._channel, lending.USES, start, end)

    def purpose(self, thread: int, ino: int) -> int:
        """Return the purpose of a thread's lookup that found a device. Only one thread may call
        it."""
        if not self._followed:
            return LOOK
        lending.say(self._channel, lending.LOOKUP, thread, ino)
        return self._purposes.get()

    # --- requests of the supervisor ----------------------------------------------------

    def follow_in_thread(self, connection: int) -> None:
        """Answer the supervisor's requests in a thread, and end this process when it ends.

        Args:
            connection: the /dev/fuse that is served.
        """
        try:
            start_new_thread(self._follow, (connection,))  # Thread.start() would wait for it
        except RuntimeError:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        self._followed = True
        if self._unseen:
            self.written()

    def _follow(self, connection: int) -> None:
        while data := (message := self._channel.receive()).data:
            kind, *words = lending.words_of(data)
            if kind == lending.SYNCED:
                self._synced.put(words[0])
                continue
            if kind == lending.PURPOSE:
                self._purposes.put(words[0])
                continue
            if kind == lending.CONTROL:  # it may have to wait for this thread
                start("control", self._control, words)
                continue
            answer: tuple[int, ...] = ()
            if kind == lending.CONNECTION:
                answer = (connection,)
            elif kind == lending.WINDOW:
                os.dup2(message.fds[0], self._fd, inheritable=False)
                self._offset, self._size = words
            elif kind == lending.DRAIN:
                _drain(connection)
            elif kind == lending.MAKES:
                self._makes(*words)
            close_all(message.fds)
            result = (self._tune(data[lending.WORD :]),) if kind == lending.TUNE else ()
            lending.say(self._channel, lending.ANSWER, *result, fds=answer)
        os._exit(1)  # the supervisor has ended

    def _control(self, words: list[int]) -> None:
        try:
            answer = (0, *self.control(words[0], words[1], words[2:]))
        except Exception as problem:  # the caller must have an answer
            answer = (errno_of(problem),)
        lending.say(self._channel, lending.ANSWER, *answer)

    def _makes(self, process: int, kind: int, number: int) -> None:
        if kind:
            self.making[process] = kind, number
        else:
            self.making.pop(process, None)

    def _tune(self, superblock: bytes) -> int:
        try:
            return int(self.tune(superblock))
        except Exception:
            return 0  # the write fails

    def done(self) -> None:
        """Report that everything has been written."""
        lending.say(self._channel, lending.DONE, *self._counted())

    def close(self) -> None:
        """End the loan. At exit the kernel frees the memory of a process before it closes its
        files, and umount2(2) would have to wait for that."""
        os.close(self._fd)
        self._channel.shut_down()


def _no_control(ino: int, command: int, words: Sequence[int]) -> Sequence[int]:
    """Carry out an ioctl for an engine that only reads."""
    if command == lending.REMOUNT:
        if words[0]:
            return (0,)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


def _no_counts() -> lending.Counts:
    return [[0, 0, 0] for _ in range(lending.KINDS)]


def _drain(connection: int) -> None:
    """Return when no request is waiting to be read. Requests that the kernel holds back, because
    too many are in flight, are queued before it processes the reply that makes room for them."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    end = monotonic() + _DRAINED_WITHIN
    while poller.poll(0) == [(connection, select.POLLIN)] and monotonic() < end:
        sleep(_PAUSE)
