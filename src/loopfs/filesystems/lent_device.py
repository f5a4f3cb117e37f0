"""A device whose file an engine has, and so does its I/O without us: a job that became the engine.

There is one cache of the image then, the page cache. What the engine writes is in the image at
once, it syncs through us, and nothing of it passes the device's node.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from queue import SimpleQueue

from loopfs.channel import Channel, Message, close_all
from loopfs.driver.bdev import BlockDevice, Opener, Use
from loopfs.errors import MAX_ERRNO, DriverError, errno_of
from loopfs.filesystems import blockdev, faces, lending
from loopfs.filesystems.backing import BackingFile
from loopfs.filesystems.covered import Mounter, has_left, is_covered, mounter_of
from loopfs.filesystems.held_device import HeldDevice
from loopfs.filesystems.image_lock import ImageLock
from loopfs.filesystems.loopfs import LoopFilesystem
from loopfs.filesystems.nodes import Node
from loopfs.filesystems.threads import spawn, start
from loopfs.lean import NamedTuple
from loopfs.process import Process

_CHARACTERS = 4096  # inodes that are remembered: an engine may name any
_MOUNTERS = 64  # threads that are remembered to mount something just now
_NOTHING = Message(b"", [], 0)  # an answer that will not come any more


class Loan(NamedTuple):
    """What an engine is to have.

    Args:
        offset, size: where in the file the device is, in bytes.
        read_only: it is write-protected.
        file: its descriptor, which has the lock too; it stays the device's.
        end: of the channel, a descriptor; it is the caller's to close.
    """

    device: LentDevice
    offset: int
    size: int
    read_only: bool
    file: int
    end: int


class LentDevice(HeldDevice):
    """Lent until the channel to the engine ends.

    Args:
        instance, node, use, lock: as those of a :class:`HeldDevice`.
        opener: the engine's; it is closed when the engine has ended.

    Attributes:
        characters: the numbers of inodes that may be open as regular files and are character
            devices.
        superblock: st_dev of what the engine serves, once it is known.
    """

    def __init__(
        self,
        instance: LoopFilesystem,
        node: Node,
        use: Use | None,
        lock: ImageLock,
        opener: Opener,
    ) -> None:
        super().__init__(instance, node, use, lock)
        self._opener = opener
        self._window = window_of(self._device)
        self._answers: SimpleQueue[Message | OSError] = SimpleQueue()
        self._part: tuple[int, int] | None = None
        self._asking = threading.Lock()
        self._asked = False
        self._channel: Channel | None = None
        self.characters: set[int] = set()
        self.superblock: int | None = None
        self._covered: set[int] = set()  # inodes that a mount was looked up for
        self._mounters: list[Mounter] = []

    def lend_in_thread(self) -> Loan:
        """Follow what the engine says, in a thread.

        Raises:
            OSError: EAGAIN: no thread can be started.
        """
        assert self._window is not None
        _, offset, size = self._window
        ours, engines = Channel.pair()
        self._channel = ours
        try:
            start("engine", self._follow, ours)
        except OSError:
            ours.close()
            engines.close()
            raise
        self._instance.lent[self._device] = self.follow_window
        read_only = self._device.read_only
        return Loan(self, offset, size, read_only, self.lock.fileno(), engines.detach())

    # --- what the engine is asked ---------------------------------------------------

    def connection(self) -> int | None:
        """A duplicate of the /dev/fuse that the engine serves; None when it has ended.

        Who keeps it keeps those waiting who use the filesystem of an engine that was killed.

        Raises:
            OSError: EMFILE.
        """
        message = self._ask(lending.CONNECTION)
        first, *others = message.fds or (None,)
        close_all([fd for fd in others if fd is not None])
        return first

    def drain(self) -> None:
        """Return once the engine has read all requests that were queued for it before, or for so
        long that it must have. What it is asked then it answers after those."""
        self._ask(lending.DRAIN)

    def tune(self, superblock: bytes) -> bool:
        """Have the engine take on what a tool has written to its superblock. False if it does not,
        and the write is to be refused."""
        words = struct.unpack(f"={len(superblock) // lending.WORD}q", superblock)
        return lending.words_of(self._ask(lending.TUNE, *words).data) == (lending.ANSWER, 1)

    def control(self, ino: int, command: int, *words: int) -> tuple[int, ...]:
        """Have the engine carry out an ioctl of one of its inodes; what it answers, which may be
        anything.

        Raises:
            OSError: what it says; ENOTCONN when it has ended.
        """
        message = self._ask(lending.CONTROL, ino, command, *words)
        kind, *answer = lending.words_of(message.data) or (0,)
        if kind != lending.ANSWER or not answer:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if answer[0]:
            code = answer[0] if 0 < answer[0] <= MAX_ERRNO else errno.EIO
            raise OSError(code, os.strerror(code))
        return tuple(answer[1:])

    @contextmanager
    def made_by(self, process: int, kind: int, number: int) -> Iterator[None]:
        """The FIFO that a process makes in the engine's filesystem is to be a device.

        Args:
            kind: S_IFCHR or S_IFBLK.
            number: the device's, as FUSE has it.
        """
        self._ask(lending.MAKES, process, kind, number)
        try:
            yield
        finally:
            self._ask(lending.MAKES, process, 0, 0)

    def begin_writing(self) -> None:
        """What was lent for reading is lent for writing.

        Raises:
            OSError: EACCES (the device is write-protected), EBUSY (another one writes a part of it,
                or its image is mounted elsewhere); as open(2) of the image.
        """
        device = self._device
        if device.read_only:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        self.lock.for_writing(device)
        try:
            self._use = self._instance.drive(partial(device.mounted, 0, device.capacity))
        except OSError:
            self.lock.for_reading()
            raise
        if self._part is not None:
            self._narrow(*self._part)
        self._instance.drop_pages(device)  # what was stored meanwhile
        assert self._window is not None
        self._ask(lending.WINDOW, *self._window[1:], fds=(self.lock.fileno(),))

    def end_writing(self) -> None:
        """It is lent for reading again: the engine has written nothing."""
        if self._use is not None:
            self._device.unmounted(self._use)
            self._use = None
        self.lock.for_reading()

    def follow_window(self) -> None:
        """The device's file may be another, or the part of it: the engine goes on with that."""
        window = window_of(self._device)
        if window is None or window == self._window:
            return
        self._window = window
        backing, offset, size = window
        self._ask(lending.WINDOW, offset, size, fds=(backing.fileno(),))

    def _ask(self, *question: int, fds: tuple[int, ...] = ()) -> Message:
        with self._asking:
            if self._channel is None:
                return _NOTHING
            self._asked = True
            try:
                lending.say(self._channel, *question, fds=fds)
            except (BrokenPipeError, ConnectionResetError):
                return _NOTHING
            answer = self._answers.get()
            if isinstance(answer, OSError):
                raise answer
            return answer

    # --- what it says -----------------------------------------------------------------

    def _follow(self, channel: Channel) -> None:
        try:
            while (message := self._receive(channel)) is not None:
                kind, *words = lending.words_of(message.data) or (0,)
                if kind == lending.ANSWER and self._asked:
                    self._asked = False
                    self._answers.put(message)
                    continue
                close_all(message.fds)
                if kind == lending.LOOKUP and len(words) == 2:
                    self._look(channel, *words)
                    continue
                if kind == lending.USES and len(words) == 2:
                    self._narrow(*words)
                    continue
                self._count(lending.counts_of(tuple(words)))
                if kind in (lending.SYNC, lending.WRITTEN):
                    spawn(partial(self._sync, channel, kind))
        finally:
            self._answers.put(_NOTHING)
            with self._asking:
                self._channel = None
            try:
                self._let_go()
            finally:
                self.lock.release()
                self.gone.set()

    def _receive(self, channel: Channel) -> Message | None:
        """The next message; None at the end."""
        while True:
            try:
                message = channel.receive()
            except OSError as problem:  # without room for its descriptor: it was an answer
                self._asked = False
                self._answers.put(problem)
                continue
            return message if message.data else None

    def _count(self, counts: lending.Counts) -> None:
        for kind, counted in enumerate(counts):
            if counted[0]:
                self._device.statistics.add(kind, *counted)

    def _narrow(self, start: int, end: int) -> None:
        """Of what it could use it uses a part only."""
        self._part = start, end
        use = self._use
        if use is None or not 0 <= start < end <= use.end - use.start:
            return
        self._use = self._instance.drive(lambda: self._device.uses_less(use, start, end))

    def _look(self, channel: Channel, thread: int, ino: int) -> None:
        try:
            purpose = self._purpose(Process(thread), ino)
        except OSError:  # it is gone
            purpose = faces.LOOK
        if purpose != faces.LOOK:
            if len(self.characters) >= _CHARACTERS:
                self.characters.clear()
                self._covered.clear()
                self._mounters.clear()
            self.characters.add(ino)
        with suppress(BrokenPipeError, ConnectionResetError):  # it was killed
            lending.say(channel, lending.PURPOSE, purpose)

    def _purpose(self, process: Process, ino: int) -> int:
        """What is mounted on a file goes with an answer that has the file's other face: so while
        it can be there, nobody gets that. Raises OSError: the thread is gone."""
        if faces.mounts(process):
            self._mounters = [*self._mounters[-_MOUNTERS:], mounter_of(process.tid)]
            self._covered.add(ino)
            return faces.HOLD
        purpose = faces.purpose(process)
        if purpose == faces.LOOK and ino in self._covered and self._may_be_covered():
            return faces.HOLD
        return purpose

    def _may_be_covered(self) -> bool:
        self._mounters = [mounter for mounter in self._mounters if not has_left(mounter)]
        if self._mounters or self.superblock is None:
            return True
        number = b"%d:%d" % (os.major(self.superblock), os.minor(self.superblock))
        if is_covered(number, None):
            return True
        self._covered.clear()
        return False

    def _sync(self, channel: Channel, kind: int) -> None:
        code = 0
        try:
            if kind == lending.SYNC:
                self.sync(datasync=False)
            else:
                self._instance.drop_pages(self._device)
        except Exception as problem:
            code = errno_of(problem)
        try:
            lending.say(channel, lending.SYNCED, code)
        except (BrokenPipeError, ConnectionResetError):
            return  # it was killed

    def _let_go(self) -> None:
        try:
            super()._let_go()
        finally:
            self._instance.lent.pop(self._device, None)
            self._instance.drive(lambda: self._device.disk.release(self._opener))


def window_of(device: BlockDevice) -> tuple[BackingFile, int, int] | None:
    """The file of a device, and where in it the device is: offset and size in bytes; None if it has
    no file with room for all of it."""
    try:
        extent = blockdev.extent_of(device, 0, device.capacity)
    except DriverError:
        return None
    return extent if extent is not None and extent[2] == device.capacity else None


def may_be_lent(device: BlockDevice) -> bool:
    """It is bound to a file that nobody has to serve: not to another device of ours, nor to a file
    of a FUSE filesystem."""
    window = window_of(device)
    return window is not None and window[0].loop_device is None and not window[0].slow


def open_lent(instance: LoopFilesystem, device: BlockDevice, *, read_only: bool) -> Opener:
    """Open a device as a mount does: exclusively.

    Raises:
        OSError: EBUSY, ENXIO; EACCES for writing to a device that is write-protected.
    """
    try:
        opener = instance.drive(lambda: device.open(write=not read_only, exclusive=True))
    except DriverError as problem:
        raise OSError(problem.code, os.strerror(problem.code)) from None
    if device.read_only and not read_only:
        instance.drive(lambda: device.disk.release(opener))
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return opener
