"""The file of a device, as the job has it that the supervisor has lent it: the engine's end of
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
from loopfs.file_device import Buffer, FileDevice
from loopfs.filesystems import lending
from loopfs.filesystems.faces import LOOK
from loopfs.filesystems.threads import start

Control = Callable[[int, int, Sequence[int]], Sequence[int]]

_DRAINED_WITHIN = 30.0  # seconds, of a mount that has no idle moment
_PAUSE = 0.001  # seconds


class Lent(FileDevice):
    """The device, on its file.

    Args:
        fd: of the file; ours from now on.
        channel: to the supervisor; the same.
        offset, size: where in the file the device is, in bytes.
        read_only: the device is write-protected.

    Attributes:
        tune: takes on what a tool has written to the superblock, or does not.
        control: carries out an ioctl, of an inode's number.
        making: the devices that processes make, as :class:`loopfs.ext4.filesystem.Ext4` has them.
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
        """The file's descriptor, and where in it the device is: offset and size in bytes."""
        return self._fd, self._offset, self._size

    @property
    def read_only(self) -> bool:
        return self._read_only

    # --- I/O, which is counted ------------------------------------------------------

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
        """Have the supervisor sync the image: it reports errors to all openers."""
        self._ask(lending.SYNC)

    def written(self) -> None:
        """Everybody who has the device open sees what was written."""
        self._ask(lending.WRITTEN)

    def _ask(self, question: int) -> None:
        with self._syncing:
            if not self._followed:  # nobody has heard an answer yet
                self._unseen = True
                return
            lending.say(self._channel, question, *self._counted())
            code = self._synced.get()
        if code:
            raise OSError(code, os.strerror(code))

    def uses(self, start: int, end: int) -> None:
        """Others may write the rest of the device; bytes."""
        lending.say(self._channel, lending.USES, start, end)

    def purpose(self, thread: int, ino: int) -> int:
        """What a thread's lookup is for, which has found a device. By one thread of ours."""
        if not self._followed:
            return LOOK
        lending.say(self._channel, lending.LOOKUP, thread, ino)
        return self._purposes.get()

    # --- what the supervisor says ------------------------------------------------------

    def follow_in_thread(self, connection: int) -> None:
        """Answer the supervisor, and end with it.

        Args:
            connection: the /dev/fuse that is served.
        """
        try:
            start_new_thread(self._follow, (connection,))  # a Thread would wait until it runs
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
            if kind == lending.CONTROL:  # waits for the filesystem, which may wait for us
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
        os._exit(1)  # the supervisor is gone

    def _control(self, words: list[int]) -> None:
        try:
            answer = (0, *self.control(words[0], words[1], words[2:]))
        except OSError as problem:
            answer = (problem.errno or errno.EIO,)
        lending.say(self._channel, lending.ANSWER, *answer)

    def _makes(self, process: int, kind: int, number: int) -> None:
        if kind:
            self.making[process] = kind, number
        else:
            self.making.pop(process, None)

    def _tune(self, superblock: bytes) -> int:
        try:
            return int(self.tune(superblock))
        except OSError:
            return 0  # the write is refused

    def done(self) -> None:
        """Everything is written."""
        lending.say(self._channel, lending.DONE, *self._counted())

    def close(self) -> None:
        """End the loan. A process that only exits gives back its memory before it closes its files,
        and umount2(2) would wait for that."""
        os.close(self._fd)
        self._channel.shut_down()


def _no_control(ino: int, command: int, words: Sequence[int]) -> Sequence[int]:
    """Of an engine that only reads."""
    if command == lending.REMOUNT:
        if words[0]:
            return (0,)
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))


def _no_counts() -> lending.Counts:
    return [[0, 0, 0] for _ in range(lending.KINDS)]


def _drain(connection: int) -> None:
    """Return once no request waits to be read. Those that the kernel holds back, as too many are
    under way, it queues before it has taken the answer that makes room for them."""
    poller = select.poll()
    poller.register(connection, select.POLLIN)
    end = monotonic() + _DRAINED_WITHIN
    while poller.poll(0) == [(connection, select.POLLIN)] and monotonic() < end:
        sleep(_PAUSE)
