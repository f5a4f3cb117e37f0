"""A mounted volume: its clusters, its entries and its states (fs/fat/inode.c, file.c)."""

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
_MOST_HELD = 1 << 18  # inodes of directories that nobody uses
_SLOTS_AS_ONE = 16  # that weigh as much as an inode
_EXECUTABLE = frozenset({b"EXE", b"COM", b"BAT"})


class Volume:
    """A mounted FAT filesystem.

    Args:
        device: what it is on; it must be there until :meth:`close`.
        read_only: nothing is written, whatever is asked.
        now: nanoseconds since the epoch.
        log: takes sentences about damage.
    Raises:
        OSError: EINVAL, no FAT filesystem; or the device's.
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
        head = device.read(0, min(boot.BOOT_SIZE, device.size))
        self.shape = shape = boot.geometry(head, device.size, dos1xfloppy=options.dos1xfloppy)
        self.cluster = shape.cluster
        info = boot.read_info(self._info_sector(), shape.clusters) if shape.info_at else None
        self._has_info = info is not None
        # What FSInfo says of free clusters is only believed when asked for; written back it is.
        self._hint = info.free if info else None
        following = None if info is None or info.next is None else info.next + 1
        self.table = Table(device, shape, following)
        if options.usefree and self._hint is not None:
            self.table.free = self._hint
        self._was_dirty = bool(shape.state & boot.STATE_DIRTY)
        self._changed = False
        self._inos = ROOT_INO - 1
        self._runs_kept = 0
        self._with_runs: set[Inode] = set()
        self.unwritten: set[Directory] = set()  # that have changes, or whose last writes failed
        self.orphans: set[Inode] = set()
        self._held: dict[Inode, int] = {}  # directories, with what their contents weigh
        self._weight = 0
        self._most_clusters = -(-MAX_SIZE // self.cluster)
        self.root = self.new_inode(None)
        self.root.attr = ATTR_DIR
        self.root.start = shape.root_cluster
        if self._was_dirty:
            self._log("not properly unmounted; please run fsck")

    def _info_sector(self) -> bytes:
        try:
            return self.device.read(self.shape.info_at, boot.BOOT_SIZE)
        except OSError:  # it lies beyond the end: then there is none
            return bytes(boot.BOOT_SIZE)

    def new_inode(self, parent: Inode | None) -> Inode:
        return Inode(self.new_ino(), parent)

    def new_ino(self) -> int:
        self._inos += 1
        return self._inos

    def fresh(self, attr: int) -> Inode:
        """A new file or directory, without name and clusters."""
        inode = self.new_inode(None)
        inode.attr = attr
        inode.date, inode.time, inode.ctime_cs = self.clock.pack(self.now())
        if self.options.msdos:
            inode.ctime_cs, inode.seen = 0, inode.date
        else:
            inode.cdate, inode.ctime, inode.adate = inode.date, inode.time, inode.date
        inode.runs = Runs()
        return inode

    # --- where things are -----------------------------------------------------

    def damaged(self, problem: Damaged) -> Damaged:
        """What fat_fs_error() does; returns what to raise."""
        self._log(f"filesystem error: {problem.strerror}")
        self._was_dirty = True  # and stays so
        if self.options.errors != "continue" and not self.read_only:
            self._log("the filesystem is read-only from now on")
            self.read_only = True
        return problem

    def _is_fixed_root(self, inode: Inode) -> bool:
        return inode is self.root and self.shape.root_size > 0

    def chain(self, inode: Inode) -> Runs:
        """A file's clusters; not to be kept when another's are asked for."""
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
        """It can be read again from the table."""
        if inode in self._with_runs:
            self._with_runs.discard(inode)
            self._runs_kept -= len(inode.runs or ())
        inode.runs = None

    def extents(self, inode: Inode, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Bytes of a file as (place on the device, length).

        Raises:
            Damaged: there are not as many clusters.
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
        """Of a cluster on the device."""
        return self.shape.data_at + (cluster - boot.FAT_START_ENT) * self.cluster

    # --- what is held of directories ---------------------------------------------

    def hold(self, inode: Inode, content: Directory) -> None:
        """Keep a directory's content in memory, and let others go if there is too much of it."""
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
        """Do not keep a directory's content."""
        inode.dir = None
        self._weight -= self._held.pop(inode, 0)

    # --- clusters ----------------------------------------------------------------

    def grow(self, inode: Inode, clusters: int) -> None:
        """Have ``clusters`` of them, or all that could be had: fewer when the volume is full."""
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
        """Give back all but ``clusters`` of them."""
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
        # before the table is written: a kill leaves the old file's clusters empty, and it was lost
        for first, count in runs:
            try:
                self.device.discard(self.place(first), count * self.cluster)
            except OSError as problem:
                if problem.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                return  # the option asks for what cannot be, as on a disk without it

    def reserve(self, inode: Inode, size: int) -> None:
        """Clusters for ``size`` bytes, all of them.

        Raises:
            OSError: ENOSPC, and nothing has changed.
        """
        before, want = self.chain(inode).total, -(-size // self.cluster)
        if want <= before:
            return
        # Few are sooner tried than all free ones counted.
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
        """Zeros from ``offset`` to ``end``."""
        if end > offset:
            for place, length in self.extents(inode, offset, end - offset):
                self.device.zero(place, length)

    # --- entries and attributes ---------------------------------------------

    def mode(self, inode: Inode) -> int:
        """st_mode (fat_make_mode())."""
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
        """Write the entry, if it is another than on the device."""
        if (content := self._stage(inode)) is not None:
            content.flush()

    def commit(self, inode: Inode) -> None:
        """Write the table and then the entry, which promises what the table has now.

        Raises:
            OSError: of the device; what was not written is by the next sync.
        """
        content = self._stage(inode)
        self.table.flush()
        if content is not None:
            content.flush()

    def _stage(self, inode: Inode) -> Directory | None:
        if inode.gone or inode.parent is None:
            return None
        content = inode.parent.dir
        assert content is not None, "a child's directory is held"
        content.replace(inode.slot, inode.packed())
        return content

    def touch(self, inode: Inode) -> None:
        """Modified now, and saved."""
        if inode is not self.root:
            inode.date, inode.time, _ = self.clock.pack(self.now())
            self.save(inode)

    # --- states --------------------------------------------------------------------

    def change(self) -> None:
        """To be called before something is changed.

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
        """Write what waits in memory; to be followed by the device's sync."""
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
        """Have all in its place and write nothing any more, or go on (fat_remount).

        Returns:
            it was otherwise.
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
        """At the unmount. What fails is raised after all else was tried."""
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
