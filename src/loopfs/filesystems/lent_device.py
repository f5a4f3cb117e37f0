"""A device whose backing file is lent to an engine that was a job: the engine makes the I/O itself.

Then the page cache is the only cache of the image. What the engine writes is in the image at once,
it syncs through the supervisor, and none of its I/O goes through the device's node.
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
from loopfs.filesystems.threads import spawn
from loopfs.lean import NamedTuple
from loopfs.process import Process

_CHARACTERS = 4096  # maximum number of recorded inodes: an engine may name any number
_MOUNTERS = 64  # maximum number of recorded threads that are mounting something
_NOTHING = Message(b"", [], 0)  # the answer if the engine has ended


class Loan(NamedTuple):
    """What an engine is lent.

    Args:
        offset, size: the part of the file that the device shows, in bytes.
        read_only: whether the device is write-protected.
        file: a descriptor of the file, which also holds the lock; the device owns it.
        end: a descriptor of the engine's end of the channel; the caller must close it.
    """

    device: LentDevice
    offset: int
    size: int
    read_only: bool
    file: int
    end: int


class LentDevice(HeldDevice):
    """A device that is lent until the channel to the engine ends.

    Args:
        instance, node, use, lock: as those of :class:`HeldDevice`.
        opener: the engine's opener, which is released when the engine has ended.

    Attributes:
        characters: inode numbers of character devices that may be open as regular files.
        superblock: st_dev of the filesystem that the engine serves, once it is known.
        nested: whether the image is on a filesystem that a process serves, as ours are.
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
        self.nested = self._window is not None and self._window[0].slow
        self._answers: SimpleQueue[Message | OSError] = SimpleQueue()
        self._part: tuple[int, int] | None = None
        self._asking = threading.Lock()
        self._asked = False
        self._channel: Channel | None = None
        self.characters: set[int] = set()
        self.superblock: int | None = None
        self._covered: set[int] = set()  # inodes whose lookup was for a mount
        self._mounters: list[Mounter] = []

    def lend_in_thread(self) -> Loan:
        """Start a thread that receives the messages of the engine.

        Raises:
            OSError: EAGAIN if no thread can be started.
        """
        assert self._window is not None
        _, offset, size = self._window
        ours, engines = Channel.pair()
        self._channel = ours
        try:
            spawn(partial(self._follow, ours))
        except OSError:
            ours.close()
            engines.close()
            raise
        self._instance.lent[self._device] = self.follow_window
        read_only = self._device.read_only
        return Loan(self, offset, size, read_only, self.lock.fileno(), engines.detach())

    # --- requests to the engine ------------------------------------------------------

    def connection(self) -> int | None:
        """Return a duplicate of the /dev/fuse that the engine serves; None if the engine has ended.

        As long as the duplicate is open, processes that use the filesystem of a killed engine stay
        blocked.

        Raises:
            OSError: EMFILE.
        """
        message = self._ask(lending.CONNECTION)
        first, *others = message.fds or (None,)
        close_all([fd for fd in others if fd is not None])
        return first

    def drain(self) -> None:
        """Wait until the engine has read all requests that were queued for it, or as long as that
        can take. Later requests on the channel are answered after these."""
        self._ask(lending.DRAIN)

    def tune(self, superblock: bytes) -> bool:
        """Make the engine use the superblock that a tool has written. Return False if it refuses;
        the write must then fail."""
        words = struct.unpack(f"={len(superblock) // lending.WORD}q", superblock)
        return lending.words_of(self._ask(lending.TUNE, *words).data) == (lending.ANSWER, 1)

    def control(self, ino: int, command: int, *words: int) -> tuple[int, ...]:
        """Make the engine carry out an ioctl of one of its inodes, and return its answer, which can
        be anything.

        Raises:
            OSError: the error that it returns; ENOTCONN if it has ended.
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
        """Make the FIFO that a process creates in the engine's filesystem a device.

        Args:
            kind: S_IFCHR or S_IFBLK.
            number: the device number, as FUSE encodes it.
        """
        self._ask(lending.MAKES, process, kind, number)
        try:
            yield
        finally:
            self._ask(lending.MAKES, process, 0, 0)

    def begin_writing(self) -> None:
        """Lend for writing what was lent for reading.

        Raises:
            OSError: EACCES (the device is write-protected), EBUSY (a part of it is mounted for
                writing, or its image is mounted elsewhere); as open(2) of the image.
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
        self._instance.drop_pages(device)  # stores made since the mount
        assert self._window is not None
        self._ask(lending.WINDOW, *self._window[1:], fds=(self.lock.fileno(),))

    def end_writing(self) -> None:
        """Lend for reading again; the engine has written nothing."""
        if self._use is not None:
            self._device.unmounted(self._use)
            self._use = None
        self.lock.for_reading()

    def follow_window(self) -> None:
        """Tell the engine if the device's backing file, or the part of it that it shows, has
        changed."""
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

    # --- messages of the engine -------------------------------------------------------

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
        """Return the next message; None if the channel has ended."""
        while True:
            try:
                message = channel.receive()
            except OSError as problem:  # no room for its descriptor: the message was an answer
                self._asked = False
                self._answers.put(problem)
                continue
            return message if message.data else None

    def _count(self, counts: lending.Counts) -> None:
        for kind, counted in enumerate(counts):
            if counted[0]:
                self._device.statistics.add(kind, *counted)

    def _narrow(self, start: int, end: int) -> None:
        """Reduce the use to the part of the device that the engine uses."""
        self._part = start, end
        use = self._use
        if use is None or not 0 <= start < end <= use.end - use.start:
            return
        self._use = self._instance.drive(lambda: self._device.uses_less(use, start, end))

    def _look(self, channel: Channel, thread: int, ino: int) -> None:
        try:
            purpose = self._purpose(Process(thread), ino)
        except OSError:  # the thread has ended
            purpose = faces.LOOK
        if purpose != faces.LOOK:
            if len(self.characters) >= _CHARACTERS:
                self.characters.clear()
                self._covered.clear()
                self._mounters.clear()
            self.characters.add(ino)
        with suppress(BrokenPipeError, ConnectionResetError):  # the engine was killed
            lending.say(channel, lending.PURPOSE, purpose)

    def _purpose(self, process: Process, ino: int) -> int:
        """Return the purpose of a lookup. While something may be mounted on the file, it is HOLD:
        the answer with the other face would unmount it. Raises OSError if the thread has ended."""
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
            return  # the engine was killed

    def _let_go(self) -> None:
        try:
            super()._let_go()
        finally:
            self._instance.lent.pop(self._device, None)
            self._instance.drive(lambda: self._device.disk.release(self._opener))


def window_of(device: BlockDevice) -> tuple[BackingFile, int, int] | None:
    """Return the backing file of a device and the offset and size of the device in it, in bytes.

    None if the device has no file, or the file is too short for it."""
    try:
        extent = blockdev.extent_of(device, 0, device.capacity)
    except DriverError:
        return None
    return extent if extent is not None and extent[2] == device.capacity else None


def may_be_lent(device: BlockDevice) -> bool:
    """Return whether a device is bound to a file that no process serves: neither another device of
    ours nor a file of a FUSE filesystem."""
    window = window_of(device)
    return window is not None and window[0].loop_device is None and not window[0].slow


def open_lent(instance: LoopFilesystem, device: BlockDevice, *, read_only: bool) -> Opener:
    """Open a device exclusively, as a mount does.

    Raises:
        OSError: EBUSY, ENXIO; EACCES for writing to a write-protected device.
    """
    try:
        opener = instance.drive(lambda: device.open(write=not read_only, exclusive=True))
    except DriverError as problem:
        raise OSError(problem.code, os.strerror(problem.code)) from None
    if device.read_only and not read_only:
        instance.drive(lambda: device.disk.release(opener))
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    return opener
