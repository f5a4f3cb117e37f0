"""NTFS, by dissect.ntfs; the system files are hidden."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from dissect.ntfs import ntfs

from loopfs.engines.embedded.volume import Inode, Ownership, Volume

ROOT = 5  # FILE_Root
FIRST_USER = 24  # the records below this number are system files
FILE_NAME_DOS = 2


def volume(device: BinaryIO, options: list[str]) -> Volume:
    fs = ntfs.NTFS(device)
    bpb = fs.boot_sector
    root = NtfsFile(fs.mft.get(ROOT), Ownership.of_options(options))
    return Volume(root, bpb.NumberSectors * fs.sector_size, fs.cluster_size)


class NtfsFile(NamedTuple):
    record: Any
    owner: Ownership

    @property
    def key(self) -> object:
        return self.record.segment

    def inode(self) -> Inode:
        record = self.record
        about = record.attributes.STANDARD_INFORMATION[0]
        modified, changed = about.last_modification_time_ns, about.last_change_time_ns
        times = (about.last_access_time_ns, modified, changed)
        if record.is_dir():
            return self.owner.directory(record.segment, 4096, times)
        size = record.size() if record.has_stream() else 0
        links = sum(name.flags != FILE_NAME_DOS for name in record.attributes.FILE_NAME)
        return self.owner.regular(record.segment, size, times)._replace(nlink=links)

    def names(self) -> Iterator[tuple[bytes, NtfsFile]]:
        for entry in self.record.iterdir(ignore_dos=True):
            record = entry.dereference()
            if record.segment >= FIRST_USER:
                # A name need not be valid UTF-16, only 16-bit units (encoded as by ntfs-3g).
                name = entry.attribute.file_name.encode("utf-8", "surrogatepass")
                yield name, NtfsFile(record, self.owner)

    def target(self) -> bytes:
        raise NotImplementedError

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.record.open()
        return stream
