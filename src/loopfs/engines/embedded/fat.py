"""FAT12, FAT16 and FAT32, by dissect.fat. Times are local, and taken for UTC."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple

from dissect.fat import fat

from loopfs.engines.embedded.volume import File, Inode, Ownership, Volume

LOWER_BASE, LOWER_EXTENSION = 0x08, 0x10  # in DIR_NTRes


def volume(device: BinaryIO, options: list[str]) -> Volume:
    fs = fat.FATFS(device)
    bpb = fs.bpb
    sectors = bpb.BPB_TotSec16 or bpb.BPB_TotSec32
    root = FatFile(fs.root, Ownership.of_options(options), "")
    return Volume(root, sectors * bpb.BPB_BytsPerSec, fs.cluster_size, _fold)


def _fold(name: bytes) -> bytes:
    return name.decode(errors="surrogateescape").upper().encode(errors="surrogateescape")


class FatFile(NamedTuple):
    entry: Any
    owner: Ownership
    path: str

    @property
    def key(self) -> object:
        return self.path  # an empty file has no cluster that it could be known by

    def inode(self) -> Inode:
        entry = self.entry
        times = (_ns(entry.atime), _ns(entry.mtime), _ns(entry.ctime))
        ino = hash(self.path) & 0x7FFFFFFF or 1
        if entry.is_directory():
            return self.owner.directory(ino, entry.size, times)
        return self.owner.regular(ino, entry.size, times, writable=not entry.is_readonly())

    def names(self) -> Iterator[tuple[bytes, File]]:
        for entry in self.entry.iterdir():
            name = _name(entry)
            if name not in (".", "..") and not entry.is_volume_id():
                file = FatFile(entry, self.owner, f"{self.path}/{name}")
                yield name.encode("utf-8", "surrogatepass"), file

    def target(self) -> bytes:
        raise NotImplementedError

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.entry.open()
        return stream


def _name(entry: Any) -> str:
    """A short name is stored in capitals, with a flag where it is meant in small letters."""
    name: str = entry.name
    if entry.ldirents:
        return name
    base, dot, extension = name.partition(".")
    if entry.dirent.DIR_NTRes & LOWER_BASE:
        base = base.lower()
    if entry.dirent.DIR_NTRes & LOWER_EXTENSION:
        extension = extension.lower()
    return base + dot + extension


def _ns(time: datetime) -> int:
    return int(time.replace(tzinfo=UTC).timestamp()) * 1_000_000_000
