"""Partition tables and filesystem types, as libblkid reads them.

An image is untrusted input. So this runs in a process of the sandbox's user namespace (a job of
:mod:`loopfs.engines.helper`), never in the supervisor.
"""

from __future__ import annotations

import ctypes
import errno
import os

from loopfs.driver.partition import Found
from loopfs.text import to_bytes, to_str
from loopfs.uapi.block import SECTOR_SIZE

LIBRARY = "libblkid.so.1"
BOOT_BLOCK = 1024  # accessible bytes of an extended partition, for a boot loader

_P = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[object, list[object]]] = {
    "blkid_new_probe": (_P, []),
    "blkid_free_probe": (None, [_P]),
    "blkid_probe_set_device": (
        ctypes.c_int,
        [_P, ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong],
    ),
    "blkid_probe_set_sectorsize": (ctypes.c_int, [_P, ctypes.c_uint]),
    "blkid_probe_get_partitions": (_P, [_P]),
    "blkid_partlist_numof_partitions": (ctypes.c_int, [_P]),
    "blkid_partlist_get_partition": (_P, [_P, ctypes.c_int]),
    "blkid_partition_get_partno": (ctypes.c_int, [_P]),
    "blkid_partition_get_start": (ctypes.c_longlong, [_P]),
    "blkid_partition_get_size": (ctypes.c_longlong, [_P]),
    "blkid_partition_get_name": (ctypes.c_char_p, [_P]),
    "blkid_partition_is_extended": (ctypes.c_int, [_P]),
    "blkid_probe_filter_superblocks_type": (
        ctypes.c_int,
        [_P, ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
    ),
    "blkid_do_probe": (ctypes.c_int, [_P]),
}
BLKID_FLTR_ONLYIN = 2


def read_table(fd: int, offset: int, size: int, block_size: int) -> list[Found]:
    """Return the partitions of a disk whose data is a part of an open file.

    Args:
        fd: the file.
        offset, size: the part, in bytes.
        block_size: the disk's logical block size in bytes.
    Raises:
        OSError: ENOENT if libblkid is not installed.
    """
    library = load()
    probe = library.blkid_new_probe()
    if not probe:
        raise MemoryError
    try:
        if library.blkid_probe_set_device(probe, fd, offset, size):
            return []  # the file has been truncated: nothing can be read
        library.blkid_probe_set_sectorsize(probe, block_size)
        table = library.blkid_probe_get_partitions(probe)
        if not table:
            return []
        count = library.blkid_partlist_numof_partitions(table)
        entries = (library.blkid_partlist_get_partition(table, i) for i in range(count))
        return [_found(library, entry, block_size) for entry in entries]
    finally:
        library.blkid_free_probe(probe)


def holds(fd: int, fstype: str, offset: int = 0, size: int | None = None) -> bool:
    """Return whether libblkid finds a filesystem of a type on an open device.

    Args:
        fstype: the type, by libblkid's name.
        offset, size: the part of the open file that is the device, in bytes.
    Raises:
        OSError: ENOENT if libblkid is not installed.
    """
    library = load()
    probe = library.blkid_new_probe()
    if not probe:
        raise MemoryError
    try:
        size = os.lseek(fd, 0, os.SEEK_END) if size is None else size
        if library.blkid_probe_set_device(probe, fd, offset, size):
            return False
        names = (ctypes.c_char_p * 2)(to_bytes(fstype), None)
        library.blkid_probe_filter_superblocks_type(probe, BLKID_FLTR_ONLYIN, names)
        return bool(library.blkid_do_probe(probe) == 0)
    finally:
        library.blkid_free_probe(probe)


def _found(library: ctypes.CDLL, entry: int, block_size: int) -> Found:
    start = library.blkid_partition_get_start(entry) * SECTOR_SIZE
    size = library.blkid_partition_get_size(entry) * SECTOR_SIZE
    if library.blkid_partition_is_extended(entry):
        size = min(size, max(block_size, BOOT_BLOCK))
    name = volume_name(library.blkid_partition_get_name(entry) or b"")
    return Found(library.blkid_partition_get_partno(entry), start, size, to_str(name))


def volume_name(name: bytes) -> bytes:
    """Return a partition's name as the kernel shows it in PARTNAME: the lower byte of each UTF-16
    unit, or "!" if that is not a character of Latin-1 (utf16_le_to_7bit, block/partitions/efi.c).

    Args:
        name: the name in UTF-8 from libblkid; for an Apple table in another encoding.
    """
    try:
        text = name.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = name.decode("latin-1")
    low = text.encode("utf-16-le", "surrogatepass")[::2].partition(b"\0")[0]
    return bytes(c if 0x20 <= c < 0x7F or c >= 0xA0 else ord("!") for c in low)


def load() -> ctypes.CDLL:
    """Load the library. Raises OSError ENOENT."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise OSError(errno.ENOENT, f"{LIBRARY} is not installed") from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
