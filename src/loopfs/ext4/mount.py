"""Mounting and unmounting (fs/ext4/super.c: ext4_fill_super, ext4_put_super; orphan.c)."""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loopfs.ext4 import damage, recovery
from loopfs.ext4.commit import Commits
from loopfs.ext4.device import Device, write_blocks
from loopfs.ext4.errors import Damaged, invalid
from loopfs.ext4.extents import MAX_BLOCK
from loopfs.ext4.inode import FL_VERITY, Inode
from loopfs.ext4.journal import Journal, JournalSuper
from loopfs.ext4.options import Options
from loopfs.ext4.super import (
    COMPAT_HAS_JOURNAL,
    COMPAT_ORPHAN_FILE,
    INCOMPAT_MMP,
    INCOMPAT_RECOVER,
    OFFSET,
    RO_COMPAT_ORPHAN_PRESENT,
    Super,
)
from loopfs.ext4.volume import Volume
from loopfs.lean import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from loopfs.ext4.mmp import MultipleMountProtection

_ORPHAN_MAGIC = 0x0B10CA04
_SB_UNIT = 1024  # bytes: of the option sb=
_ORPHAN_TAIL = 8  # bytes: struct ext4_orphan_block_tail


def mount(
    device: Device,
    options: Options,
    *,
    read_only: bool,
    fstype: str = "ext4",
    now: Callable[[], int] = time.time_ns,
    wait: Callable[[float], None] = time.sleep,
) -> tuple[Volume, Commits | None]:
    """Mount a filesystem: replay its journal, free orphan inodes.

    A read-only mount writes nothing: the journal is replayed in memory only.

    Args:
        wait: a function that sleeps for a number of seconds (multiple mount protection).
    Raises:
        OSError: EINVAL, EROFS, EBUSY with a sentence; EUCLEAN, EBADMSG.
    """
    sb = Super(device, fstype, options.sb * _SB_UNIT)
    options.check(sb, has_journal=bool(sb.compat & COMPAT_HAS_JOURNAL) and not options.noload)
    if read_only:
        return _read(device, sb, options, fstype, now, read_only=True), None
    if options.sb != 1:
        raise invalid("by a copy of the superblock it can only be read; mount it with -o ro")
    sb.refuse_writing()
    with _protected(device, sb, wait) as protection:
        volume = _read(device, sb, options, fstype, now, read_only=False)
        volume.protection = protection
        return volume, _begin_writing(volume)


def remount(
    volume: Volume, *, wait: Callable[[float], None] = time.sleep
) -> tuple[Commits, list[Inode]]:
    """Remount for writing a filesystem that was mounted read-only (ext4_remount).

    Returns:
        and the inodes in use that were changed on the device meanwhile.
    Raises:
        OSError: EROFS (it can only be read), EBUSY (another machine has it; the device has another
            filesystem by now, or other files in place of those in use), EINVAL (its journal was
            not replayed) with a sentence; EUCLEAN, EBADMSG.
    """
    if volume.options.sb != 1:
        raise OSError(errno.EROFS, "it was mounted by a copy of the superblock; mount it anew")
    with _protected(volume.device, volume.super, wait) as protection:
        changed = _read_again(volume)
        volume.protection = protection
        volume.read_only = volume.blocks.read_only = False
        try:
            return _begin_writing(volume), changed
        except BaseException:
            volume.read_only = volume.blocks.read_only = True
            volume.protection = None
            raise


def _read_again(volume: Volume) -> list[Inode]:
    """Replay the journal, and read what the device has now.

    Others may have written to it while it was mounted for reading. The kernel's driver sees that,
    as it reads metadata from the page cache of the device.
    """
    device, overlay = volume.device, volume.device.overlay
    device.overlay = {}
    try:
        sb = Super(device)
        sb.refuse_writing()
        header = recovery.journal_super(Volume(device, sb, volume.options, read_only=True))
        if header is not None and header.start:
            if volume.options.noload:
                raise OSError(errno.EINVAL, "its journal was not replayed; unmount and mount it")
            _replay(device, sb, header, read_only=False)
            sb = Super(device)
        return volume.read_again(sb)
    except BaseException:
        device.overlay = overlay
        raise


@contextmanager
def _protected(
    device: Device, sb: Super, wait: Callable[[float], None]
) -> Iterator[MultipleMountProtection | None]:
    """Begin multiple mount protection, if the filesystem has it; end it if the body raises."""
    if not sb.incompat & INCOMPAT_MMP:
        yield None
        return
    from loopfs.ext4.mmp import MultipleMountProtection

    protection = MultipleMountProtection(device, sb, wait)
    protection.begin()
    try:
        yield protection
    except BaseException:
        protection.end()
        raise


def _read(
    device: Device,
    sb: Super,
    options: Options,
    fstype: str,
    now: Callable[[], int],
    *,
    read_only: bool,
) -> Volume:
    volume = Volume(device, sb, options, read_only=read_only, now=now)
    header = recovery.journal_super(volume)
    if header is not None and header.start and not (options.noload and read_only):
        if options.noload:
            raise invalid("its journal must be replayed; with noload, mount it read-only")
        _replay(device, sb, header, read_only)
        sb = Super(device, fstype, options.sb * _SB_UNIT)
        volume = Volume(device, sb, options, read_only=read_only, now=now)
    if not volume.get(2).is_dir:
        raise Damaged("the root is not a directory")
    return volume


def _begin_writing(volume: Volume) -> Commits:
    device, sb = volume.device, volume.super
    header = recovery.journal_super(volume)
    journal = None
    if header is not None:
        header.take_features(sb)
        # An unfinished transaction with the same number may be in the journal.
        header.sequence = header.sequence + 1 & 0xFFFFFFFF
        header.write(header.sequence, 0)
        journal = Journal(device, sb, header)
    commits = Commits(volume, journal)
    commits.begin()
    try:
        _free_orphans(volume)
    except OSError as problem:
        if not damage.is_damage(problem):
            raise
        volume.note(problem)  # the orphans that remain do no harm
        volume.orphans_changed = True
    volume.orphans_changed |= sb.u32(232) != 0
    commits.commit_and_wait()
    return commits


def _replay(device: Device, sb: Super, header: JournalSuper, read_only: bool) -> None:
    if device.read_only:
        why = "its journal must be replayed, and the device is read-only; mount it with -o noload"
        raise OSError(errno.EROFS, why)
    replay = recovery.scan(device, sb, header)
    if read_only:
        device.overlay = {number * sb.block_size: data for number, data in replay.blocks.items()}
        return
    numbers = sorted(replay.blocks)
    write_blocks(device, sb.block_size, numbers, [replay.blocks[n] for n in numbers])
    device.barrier()
    header.start, header.sequence = 0, replay.sequence
    header.write(replay.sequence, 0)
    after = Super(device)
    damage.keep(sb.raw, after.raw)
    after.set_u32(96, after.u32(96) & ~INCOMPAT_RECOVER)
    device.write(OFFSET, after.sealed())
    device.barrier()


def _free_orphans(volume: Volume) -> None:
    """Free the inodes that were unlinked and open, and finish truncations, after a crash."""
    seen: set[int] = set()
    ino = volume.super.u32(232)
    while ino:
        if ino in seen:
            raise Damaged("the orphan list contains a loop")
        seen.add(ino)
        inode = _orphan(volume, ino)
        following, inode.dtime = inode.dtime, 0
        _finish(volume, inode)
        ino = following
    sb = volume.super
    if sb.compat & COMPAT_ORPHAN_FILE and sb.ro_compat & RO_COMPAT_ORPHAN_PRESENT:
        _free_orphan_file(volume)
        sb.ro_compat &= ~RO_COMPAT_ORPHAN_PRESENT
        sb.set_u32(100, sb.ro_compat)


def _orphan(volume: Volume, ino: int) -> Inode:
    if (
        ino < volume.super.first_inode
        or ino > volume.super.inodes
        or not volume.groups.is_used(ino)
    ):
        raise Damaged(f"inode {ino} in the orphan list is free", ino)
    return volume.get(ino, special=True)


def _finish(volume: Volume, inode: Inode) -> None:
    if inode.nlink:
        unit = volume.super.block_size
        # A verity file has its hashes beyond its size.
        if not inode.has_inline_data and not inode.is_fast_link and not inode.flags & FL_VERITY:
            volume.remove(inode, -(-inode.size // unit), MAX_BLOCK + 1)
        volume.touch(inode)
    else:
        volume.free(inode)


def _free_orphan_file(volume: Volume) -> None:
    """Free the inodes that are listed in the orphan file (fs/ext4/orphan.c)."""
    sb = volume.super
    holder = volume.get(sb.u32(640), special=True)
    for _, count, place, _ in volume.map(holder):
        for number in range(place, place + count):
            block = volume.blocks.get(number)
            if struct.unpack_from("<I", block, sb.block_size - _ORPHAN_TAIL)[0] != _ORPHAN_MAGIC:
                raise Damaged("a block of the orphan file is invalid")
            for (ino,) in struct.iter_unpack("<I", bytes(block[:-_ORPHAN_TAIL])):
                if ino:
                    _finish(volume, _orphan(volume, ino))
            if any(block[:-_ORPHAN_TAIL]):
                _clear_orphans(volume, holder, number, block)


def _clear_orphans(volume: Volume, holder: Inode, number: int, block: bytearray) -> None:
    from loopfs.ext4.crc import crc32c

    block[:-_ORPHAN_TAIL] = bytes(len(block) - _ORPHAN_TAIL)
    if volume.super.csum:
        value = crc32c(crc32c(holder.seed, struct.pack("<Q", number)), block[:-_ORPHAN_TAIL])
        struct.pack_into("<I", block, len(block) - 4, value)
    volume.blocks.dirty.add(number)
