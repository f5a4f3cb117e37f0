"""Commit: the changes in memory become a transaction, which is then written.

A transaction is made with the server's lock held, which is short; it is written without the lock,
so that fsync(2) does not block other calls. The order on disk: file data (written earlier), the
journal, a flush, the checkpoint. Only then can freed blocks be reused.
"""

from __future__ import annotations

import errno
import sys
import threading
from bisect import bisect_left
from collections import deque

from loopfs.ext4 import damage
from loopfs.ext4 import dir as directories
from loopfs.ext4.device import write_blocks
from loopfs.ext4.errors import BadChecksum, Damaged
from loopfs.ext4.journal import Journal, Transaction
from loopfs.ext4.super import (
    COMPAT_HAS_JOURNAL,
    INCOMPAT_RECOVER,
    OFFSET,
    SIZE,
    STATE_VALID,
)
from loopfs.ext4.volume import Volume

_MOST_WITHOUT_LOG = 2048  # blocks of a transaction
_SECOND = 1_000_000_000


class Commits:
    """The transactions of a filesystem that is mounted for writing.

    Args:
        journal: None if the filesystem has none.

    Attributes:
        most: the number of blocks that a transaction should not exceed.
    """

    def __init__(self, volume: Volume, journal: Journal | None) -> None:
        self._volume = volume
        self._journal = journal
        self._queue: deque[Transaction] = deque()
        self._written: deque[Transaction] = deque()
        self._writing = threading.Lock()
        self.most = journal.most if journal else _MOST_WITHOUT_LOG
        volume.wait_for_blocks = self.commit_and_wait

    # --- with the server's lock -----------------------------------------------------------

    @property
    def is_due(self) -> bool:
        """Whether the transaction has reached its size limit."""
        volume = self._volume
        return len(volume.changed) // 8 + len(volume.blocks.dirty) > self.most

    @property
    def is_pending(self) -> bool:
        """Whether there is a change that is not committed."""
        volume = self._volume
        dirty = volume.changed or volume.blocks.dirty or volume.freed
        return bool(dirty or volume.orphans_changed or volume.super_changed)

    @property
    def is_unwritten(self) -> bool:
        """Whether a committed transaction waits to be written."""
        return bool(self._queue)

    def commit(self) -> None:
        """Make a transaction of what has changed.

        Raises:
            OSError: EUCLEAN, or an error of the device; the filesystem is read-only afterwards.
        """
        self.collect()
        if not self.is_pending or self._volume.error:
            return
        try:
            self._commit()
        except Exception as problem:  # half of a transaction must never be written
            self.fail(problem)
            if isinstance(problem, (Damaged, BadChecksum)):
                self._tell(problem)
            raise

    def _tell(self, problem: Damaged | BadChecksum) -> None:
        """Record in the superblock on disk an error after which no more commits are made."""
        device, sb = self._volume.device, self._volume.super
        with self._writing, sb.lock:
            raw = bytearray(device.read(OFFSET, SIZE))
            damage.record(raw, problem, self._volume.now() // _SECOND)
            device.write(OFFSET, sb.with_settable(raw))

    def fail(self, problem: Exception) -> None:
        """Make the filesystem read-only after an error that cannot be undone."""
        self._volume.error = getattr(problem, "errno", 0) or errno.EIO
        sys.stderr.write(f"ext4: the filesystem is now read-only: {problem}\n")

    def _commit(self) -> None:
        volume = self._volume
        volume.super_changed = volume.sync_due = False
        if volume.orphans_changed:
            self._chain_orphans()
        for inode in list(volume.changed):
            volume.store(inode)
            if not inode.known and inode.nlink:
                volume.inodes.pop(inode.ino, None)
        volume.changed.clear()
        freed = volume.freed
        volume.freed = []
        for run in freed:
            volume.groups.hold(*run)
        volume.groups.store()
        blocks = volume.blocks
        names = frozenset(blocks.directories)
        directories.seal(volume)
        self._store_super()
        numbers = sorted(blocks.dirty)
        contents = [bytes(blocks.get(number)) for number in numbers]
        for number in numbers:
            blocks.busy[number] = blocks.busy.get(number, 0) + 1
        blocks.dirty.clear()
        self._queue.append(Transaction(numbers, contents, freed, names))

    def _chain_orphans(self) -> None:
        """Link the orphan inodes into a list through their dtime fields."""
        volume = self._volume
        volume.orphans_changed = False
        following = 0
        for inode in volume.orphans:
            inode.dtime, following = following, inode.ino
            volume.changed.add(inode)
        volume.super.set_u32(232, following)

    def _store_super(self) -> None:
        volume, sb = self._volume, self._volume.super
        sb.set_free(volume.groups.free_blocks, volume.groups.free_inodes)
        sb.set_u32(48, volume.now() // _SECOND)
        number, offset = divmod(OFFSET, sb.block_size)
        block = volume.blocks.get(number)
        block[:offset] = volume.device.read(0, OFFSET)[:offset]
        block[offset : offset + SIZE] = sb.sealed()
        volume.blocks.dirty.add(number)

    def collect(self) -> None:
        """Make the blocks available that the completely written transactions have freed."""
        volume = self._volume
        while self._written:
            transaction = self._written.popleft()
            busy = volume.blocks.busy
            for number in transaction.numbers:
                busy[number] -= 1
                if not busy[number]:
                    del busy[number]
            for run in transaction.freed:
                volume.groups.let_go(*run)
                self._discard(*run)
        volume.blocks.trim()

    def _discard(self, place: int, count: int) -> None:
        """Discard freed blocks. As in the kernel, a failure is not reported to the caller."""
        options, size = self._volume.options, self._volume.super.block_size
        if not options.discard:
            return
        try:
            self._volume.device.discard(place * size, count * size)
        except OSError as problem:
            sys.stderr.write(f"ext4: discarding failed and is disabled: {problem}\n")
            options.discard = False

    def commit_and_wait(self) -> None:
        """Commit, and wait until everything is on disk. Raises OSError."""
        self.commit()
        self.write_out()
        self.collect()

    # --- without the lock ---------------------------------------------------------------

    def write_out(self) -> None:
        """Write the committed transactions; return when they and all file data are on disk.

        Raises:
            OSError: an error of the device; the filesystem is read-only afterwards.
        """
        volume = self._volume
        with self._writing:
            batch = []
            while self._queue:
                batch.append(self._queue.popleft())
            if volume.error:  # perhaps in the write by another thread that was waited for
                raise OSError(volume.error, "an earlier write has failed")
            try:
                self._write(batch)
            except Exception as problem:  # also MemoryError: the batch is in no queue any more
                self.fail(problem)
                raise
            self._written.extend(batch)
            volume.device.written()

    def _write(self, batch: list[Transaction]) -> None:
        journal = self._journal
        if journal is None or not batch:
            self._volume.device.barrier()
            for transaction in batch:
                self._home(transaction)
            if batch:
                self._volume.device.barrier()
            return
        logged: list[Transaction] = []
        for transaction in batch:
            if not journal.has_room(len(transaction.numbers)):
                self._settle(journal, logged)
                journal.clear()
            if not journal.fits(len(transaction.numbers)):
                self._write_unlogged(transaction)
                continue
            journal.append(transaction)
            logged.append(transaction)
        self._settle(journal, logged)
        live = sorted(journal.logged)
        runs = [run for transaction in batch for run in transaction.freed]
        if any(bisect_left(live, place) < bisect_left(live, place + n) for place, n in runs):
            journal.clear()

    def _settle(self, journal: Journal, logged: list[Transaction]) -> None:
        """Flush the journal, then checkpoint: write the logged blocks to their final locations."""
        self._volume.device.barrier()
        for transaction in logged:
            self._home(transaction)
        logged.clear()

    def _home(self, transaction: Transaction) -> None:
        size, names = self._volume.super.block_size, transaction.names
        pairs = list(zip(transaction.numbers, transaction.blocks, strict=True))
        parts = [pairs]
        if self._journal is None and names:
            parts = [
                [pair for pair in pairs if pair[0] not in names],
                [pair for pair in pairs if pair[0] in names],
            ]
        for part in parts:
            if part and part[0][0] == OFFSET // size:  # other programs may write the boot block
                self._home_super(part.pop(0)[1][OFFSET % size :][:SIZE])
            numbers, blocks = [n for n, _ in part], [block for _, block in part]
            write_blocks(self._volume.device, size, numbers, blocks)

    def _home_super(self, raw: bytes) -> None:
        """Write the superblock, keeping what a tool has changed in it since the commit."""
        sb = self._volume.super
        with sb.lock:
            self._volume.device.write(OFFSET, sb.with_settable(raw))

    def _write_unlogged(self, transaction: Transaction) -> None:
        """Write a transaction that is larger than the journal to its final location.

        Until that is done the state is not STATE_VALID, so that e2fsck checks the filesystem.
        """
        sb, device = self._volume.super, self._volume.device
        state = sb.u16(58)
        self._write_super(device.read(OFFSET, SIZE), state & ~STATE_VALID)
        self._home(transaction)
        device.barrier()

    def _write_super(self, raw: bytes, state: int) -> None:
        from loopfs.ext4.crc import crc32c

        changed = bytearray(raw)
        changed[58:60] = state.to_bytes(2, "little")
        if self._volume.super.csum:
            changed[1020:] = crc32c(0xFFFFFFFF, changed[:1020]).to_bytes(4, "little")
        self._volume.device.write(OFFSET, changed)
        self._volume.device.barrier()

    # --- begin and end ------------------------------------------------------------------

    def begin(self) -> None:
        """Mark the filesystem as mounted. Raises OSError."""
        volume, sb = self._volume, self._volume.super
        now = volume.now() // _SECOND
        sb.set_u32(44, now)
        sb.set_u16(52, min(sb.u16(52) + 1, 0xFFFF))
        if sb.compat & COMPAT_HAS_JOURNAL:
            sb.set_u32(96, sb.incompat | INCOMPAT_RECOVER)
        else:
            sb.set_u16(58, sb.u16(58) & ~STATE_VALID)
        volume.device.write(OFFSET, sb.sealed())
        volume.device.barrier()

    def end(self) -> None:
        """Write everything to its final location, and mark the filesystem clean. Raises OSError."""
        volume, sb = self._volume, self._volume.super
        self.commit_and_wait()
        if self._journal is not None:
            self._journal.clear()
        volume.device.barrier()
        if sb.compat & COMPAT_HAS_JOURNAL:
            sb.set_u32(96, sb.incompat & ~INCOMPAT_RECOVER)
        else:
            sb.set_u16(58, sb.u16(58) | STATE_VALID)
        volume.device.write(OFFSET, sb.sealed())
        volume.device.barrier()
        volume.device.written()


class Flusher:
    """The thread that commits at regular intervals (jbd2's kjournald2).

    Args:
        lock: the server's lock.
        interval: seconds.
    """

    def __init__(self, commits: Commits, lock: threading.Lock, interval: float) -> None:
        self._commits = commits
        self._lock = lock
        self._interval = interval
        self._woken = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="ext4 flusher", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Commit now instead of at the end of the interval."""
        self._woken.set()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._ended = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._woken.wait(self._interval)
            self._woken.clear()
            if self._ended:
                return
            try:
                with self._lock:
                    self._commits.commit()
                if self._commits.is_unwritten:
                    self._commits.write_out()
                    with self._lock:
                        self._commits.collect()
            except OSError as problem:  # kept in the volume and reported by the next sync
                sys.stderr.write(f"ext4: {problem}\n")
