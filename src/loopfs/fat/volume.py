"""A mounted volume: its clusters, entries and state (fs/fat/inode.c, file.c)."""

from __future__ import annotations

import errno
import stat
import sys
import time

from loopfs.fat import boot
from loopfs.fat.cache import Runs
from loopfs.fat.errors import Damaged, refused
from loopfs.fat.fatent import Table
from loopfs.fat.inode import ATTR_DIR, ATTR_RO, MAX_DIR_SLOTS, MAX_SIZE, ROOT_INO, Inode
from loopfs.fat.names import Names
from loopfs.fat.options import Options
from loopfs.fat.times import Clock
from loopfs.file_device import Device
from loopfs.lean import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loopfs.fat.dir import Directory
    from loopfs.fat.msdos import MsdosNames

_MAX_DIR_SIZE = MAX_DIR_SLOTS * boot.ENTRY_SIZE
_FEW = 64  # clusters
_MOST_RUNS = 1 << 20  # of all files together
_MOST_HELD = 1 << 18  # the largest weight of directory contents: inodes, and slots
_SLOTS_AS_ONE = 16  # slots that weigh as much as an inode
_EXECUTABLE = frozenset({b"EXE", b"COM", b"BAT"})


class Volume:
    """A mounted FAT filesystem.

    Args:
        device: the device that it is on; it must stay open until :meth:`close`.
        read_only: nothing is written.
        now: returns nanoseconds since the epoch.
        log: is called with sentences about damage.
    Raises:
        OSError: EINVAL: it is not a FAT filesystem; or an error of the device.
    """

    def __init__(
        self,
        device: Device,
        options: Options,
        *,
        read_only: bool = False,
        now: Callable[[], int] = time.time_ns,
        log: Callable[[str], object] | None = None,
    ) -> None:
        self.device = device
        self.options = options
        self.read_only = read_only
        self.now = now
        self._log = log or _to_stderr
        self.names = _names(options)
        self.clock = Clock(options.offset)
        self._read()
        self.outdated = read_only  # the device may be written to while it is only read
        self._changed = False
        self._inos = ROOT_INO - 1
        self._runs_kept = 0
        self._with_runs: set[Inode] = set()
        self.unwritten: set[Directory] = set()  # with unwritten changes, or after an error
        self.orphans: set[Inode] = set()
        self._held: dict[Inode, int] = {}  # directories with contents in memory, and their weights
        self._weight = 0
        self._most_clusters = -(-MAX_SIZE // self.cluster)
        self.root = self.new_inode(None)
        self.root.attr = ATTR_DIR
        self.root.start = self.shape.root_cluster
        if self._was_dirty:
            self._log("not properly unmounted; please run fsck")

    def _read(self) -> None:
        """Read the boot sector and FSInfo, and begin a table."""
        device, options = self.device, self.options
        head = device.read(0, min(boot.BOOT_SIZE, device.size))
        self.shape = shape = boot.geometry(head, device.size, dos1xfloppy=options.dos1xfloppy)
        self.cluster = shape.cluster
        info = boot.read_info(self._info_sector(), shape.clusters) if shape.info_at else None
        self._has_info = info is not None
        # The count in FSInfo is trusted only with the option usefree, but always maintained.
        self._hint = info.free if info else None
        following = None if info is None or info.next is None else info.next + 1
        self.table = Table(device, shape, following)
        if options.usefree and self._hint is not None:
            self.table.free = self._hint
        self._was_dirty = bool(shape.state & boot.STATE_DIRTY)

    def read_again(self) -> None:
        """Read the boot sector again, and the table and the chains when they are needed.

        Raises:
            OSError: EBUSY: another filesystem is on the device now; EINVAL: none is.
        """
        before, was = dict(vars(self)), self.shape
        try:
            self._read()
            if self.shape._replace(state=was.state, volume_id=was.volume_id) != was:
                raise OSError(errno.EBUSY, "another filesystem is on the device now; unmount it")
        except OSError:
            vars(self).update(before)
            raise
        for inode in list(self._with_runs):
            self.drop_chain(inode)

    def _info_sector(self) -> bytes:
        try:
            return self.device.read(self.shape.info_at, boot.BOOT_SIZE)
        except OSError:  # it is beyond the end of the device: there is none
            return bytes(boot.BOOT_SIZE)

    def new_inode(self, parent: Inode | None) -> Inode:
        return Inode(self.new_ino(), parent)

    def new_ino(self) -> int:
        self._inos += 1
        return self._inos

    def fresh(self, attr: int) -> Inode:
        """Return a new inode without a name and clusters."""
        inode = self.new_inode(None)
        inode.attr = attr
        inode.date, inode.time, inode.ctime_cs = self.clock.pack(self.now())
        if self.options.msdos:
            inode.ctime_cs, inode.seen = 0, inode.date
        else:
            inode.cdate, inode.ctime, inode.adate = inode.date, inode.time, inode.date
        inode.runs = Runs()
        return inode

    # --- locations on the device -----------------------------------------------------

    def damaged(self, problem: Damaged) -> Damaged:
        """React to damage as fat_fs_error() does; return the exception to raise."""
        self._log(f"filesystem error: {problem.strerror}")
        self._was_dirty = True  # the dirty bit stays set
        if self.options.errors != "continue" and not self.read_only:
            self._log("the filesystem is now read-only")
            self.read_only = True
        return problem

    def _is_fixed_root(self, inode: Inode) -> bool:
        return inode is self.root and self.shape.root_size > 0

    def chain(self, inode: Inode) -> Runs:
        """Return a file's clusters. The object is invalid after those of another file are read."""
        if inode.runs is None:
            most = self._most_clusters
            if inode.is_dir:
                most = max(_MAX_DIR_SIZE // self.cluster, 1)
            try:
                runs = self.table.runs(inode.start, most) if inode.start else Runs()
            except Damaged as problem:
                raise self.damaged(problem) from None
            self._make_room(len(runs))
            self._with_runs.add(inode)
            inode.runs = runs
        return inode.runs

    def _make_room(self, runs: int) -> None:
        self._runs_kept += runs
        if self._runs_kept > _MOST_RUNS:
            for inode in self._with_runs:
                inode.runs = None
            self._with_runs.clear()
            self._runs_kept = runs

    def drop_chain(self, inode: Inode) -> None:
        """Drop a file's clusters from memory; they can be read again from the table."""
        if inode in self._with_runs:
            self._with_runs.discard(inode)
            self._runs_kept -= len(inode.runs or ())
        inode.runs = None

    def extents(self, inode: Inode, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield a range of a file as (offset on the device, length), in bytes.

        Raises:
            Damaged: the file has fewer clusters.
        """
        if self._is_fixed_root(inode):
            yield self.shape.root_at + offset, size
            return
        runs, unit = self.chain(inode), self.cluster
        if offset + size > runs.total * unit:
            raise self.damaged(Damaged(f"{inode.name!r} is longer than its chain"))
        index, skip = divmod(offset, unit)
        for first, count in runs.within(index, -(-(skip + size) // unit)):
            length = min(count * unit - skip, size)
            yield self.place(first) + skip, length
            size, skip = size - length, 0

    def place(self, cluster: int) -> int:
        """Return the offset of a cluster on the device, in bytes."""
        return self.shape.data_at + (cluster - boot.FAT_START_ENT) * self.cluster

    # --- directory contents in memory -----------------------------------------------

    def hold(self, inode: Inode, content: Directory) -> None:
        """Keep a directory's contents in memory, and drop others above the limit."""
        inode.dir = content
        self._held[inode] = weight = len(content.inodes) + len(content.used) // _SLOTS_AS_ONE
        self._weight += weight
        if self._weight <= _MOST_HELD:
            return
        for other in list(self._held):
            if other in (inode, self.root) or other.dir is None or not other.dir.is_idle():
                continue
            self.let_go(other)
            if self._weight <= _MOST_HELD:
                return

    def let_go(self, inode: Inode) -> None:
        """Drop a directory's contents from memory."""
        inode.dir = None
        self._weight -= self._held.pop(inode, 0)

    # --- clusters ----------------------------------------------------------------

    def grow(self, inode: Inode, clusters: int) -> None:
        """Extend a file to ``clusters``, or as far as possible if the volume is full."""
        runs = self.chain(inode)
        new = self.table.allocate(clusters - runs.total)
        if self._hint is not None:
            self._hint = max(self._hint - new.total, 0)
        if not new.total:
            return
        if runs.total:
            self.table.set(runs.last, new.start)
        else:
            inode.start = new.start
        for first, count in new:
            runs.append(first, count)

    def shrink(self, inode: Inode, clusters: int) -> None:
        """Free all clusters of a file except the first ``clusters``."""
        runs = self.chain(inode)
        gone = runs.cut(clusters)
        if not gone.total:
            return
        if runs.total:
            self.table.set(runs.last, self.table.end)
        else:
            inode.start = 0
        self.table.release(gone)
        if self._hint is not None:
            self._hint = min(self._hint + gone.total, self.shape.clusters)
        if self.options.discard:
            self._discard(gone)

    def _discard(self, runs: Runs) -> None:
        # Before the table is written: a crash in between leaves a file that was removed anyway with
        # empty clusters.
        for first, count in runs:
            try:
                self.device.discard(self.place(first), count * self.cluster)
            except OSError as problem:
                if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                return  # the device cannot discard; the option is ignored, as in the kernel

    def reserve(self, inode: Inode, size: int) -> None:
        """Allocate clusters for ``size`` bytes.

        Raises:
            OSError: ENOSPC: nothing has changed then.
        """
        before, want = self.chain(inode).total, -(-size // self.cluster)
        if want <= before:
            return
        # For a few clusters trying is faster than counting all free ones.
        if want - before > _FEW and want - before > self.table.count_free():
            raise refused(errno.ENOSPC)
        try:
            self.grow(inode, want)
            if self.chain(inode).total < want:
                raise refused(errno.ENOSPC)
        except OSError:
            self.shrink(inode, before)
            self.table.flush()
            raise

    def zero(self, inode: Inode, offset: int, end: int) -> None:
        """Write zeros from ``offset`` to ``end``."""
        if end > offset:
            for place, length in self.extents(inode, offset, end - offset):
                self.device.zero(place, length)

    # --- entries and attributes ---------------------------------------------

    def mode(self, inode: Inode) -> int:
        """Return st_mode (fat_make_mode())."""
        options, attr = self.options, inode.attr
        mode = 0o777
        if attr & ATTR_DIR:
            if attr & ATTR_RO and options.rodir:
                mode &= ~0o222
            return stat.S_IFDIR | mode & ~options.dmask
        if options.showexec and inode.short[8:] not in _EXECUTABLE:
            mode = 0o666
        if attr & ATTR_RO:
            mode &= ~0o222
        return stat.S_IFREG | mode & ~options.fmask

    def save(self, inode: Inode) -> None:
        """Write the entry, if it has changed."""
        if (content := self._stage(inode)) is not None:
            content.flush()

    def commit(self, inode: Inode) -> None:
        """Write the table and then the entry, which refers to the clusters in the table.

        Raises:
            OSError: an error of the device; the next sync writes what is not written.
        """
        content = self._stage(inode)
        self.table.flush()
        if content is not None:
            content.flush()

    def _stage(self, inode: Inode) -> Directory | None:
        if inode.gone or inode.parent is None:
            return None
        content = inode.parent.dir
        assert content is not None, "the parent of an inode in memory is in memory"
        content.replace(inode.slot, inode.packed())
        return content

    def touch(self, inode: Inode) -> None:
        """Set mtime to now, and write the entry."""
        if inode is not self.root:
            inode.date, inode.time, _ = self.clock.pack(self.now())
            self.save(inode)

    # --- state ---------------------------------------------------------------------

    def change(self) -> None:
        """Prepare for a change: set the dirty bit at the first one.

        Raises:
            OSError: EROFS.
        """
        if self.read_only:
            raise refused(errno.EROFS)
        if not self._changed:
            self._write_state(self.shape.state | boot.STATE_DIRTY)
            self._changed = True

    def _write_state(self, state: int) -> None:
        if self.shape.state_at and not self._was_dirty:
            self.device.write(self.shape.state_at, bytes([state]))

    def write_back(self) -> None:
        """Write all changes in memory. The caller syncs the device afterwards."""
        if not self._changed:
            return
        self.table.flush()
        for content in list(self.unwritten):
            content.flush()
        free = self.table.free if self.table.free is not None else self._hint
        if self._has_info:
            last = self.table.next - 1 if self.table.next > 2 else self.table.limit - 1
            counts = boot.pack_counts(free, last)
            self.device.write(self.shape.info_at + boot.INFO_COUNTS, counts)

    def remount(self, *, read_only: bool) -> bool:
        """Remount read-only, after everything is written, or read-write (fat_remount).

        Returns:
            Whether the state has changed.
        """
        if self.read_only == read_only:
            return False
        if read_only:
            self.write_back()
            if self._changed:
                self._write_state(self.shape.state)
            self._changed = False
        self.read_only = read_only
        return True

    def close(self) -> None:
        """Unmount. An error is raised after everything else has been tried."""
        problem: OSError | None = None
        if self._changed and not self.read_only:
            for inode in list(self.orphans):
                try:
                    self.shrink(inode, 0)
                except OSError as failed:
                    problem = problem or failed
        self.orphans.clear()
        try:
            self.write_back()
            if self._changed and problem is None:
                self._write_state(self.shape.state)
        except OSError as failed:
            problem = problem or failed
        if problem is not None:
            raise problem


def _names(options: Options) -> Names | MsdosNames:
    if not options.msdos:
        return Names(options)
    from loopfs.fat.msdos import MsdosNames

    return MsdosNames(options)


def _to_stderr(sentence: str) -> None:
    print(f"vfat: {sentence}", file=sys.stderr, flush=True)
