"""Replies that are the same for every FUSE server of loopfs."""

from __future__ import annotations

from mmap import PAGESIZE

from loopfs.uapi import fuse as uapi

# Bytes of a request. The kernel counts pages, and allows 256 (FUSE_MAX_MAX_PAGES): 1 MiB where a
# page has 4 KiB. Pages of 16 or 64 KiB must not make a READ larger than the buffers for it.
MAX_WRITE = 1 << 20
MAX_PAGES = MAX_WRITE // PAGESIZE
BUFFER_SIZE = MAX_WRITE + 4096
# Seconds for which the kernel may cache attributes. Every change of them is made through the kernel
# or followed by Session.invalidate().
ATTR_VALID = 3600

WANTED = (
    uapi.FUSE_ASYNC_READ
    | uapi.FUSE_BIG_WRITES
    | uapi.FUSE_ASYNC_DIO
    | uapi.FUSE_CACHE_SYMLINKS
    | uapi.FUSE_PARALLEL_DIROPS
    | uapi.FUSE_MAX_PAGES
)


def pack_init(body: bytes, wanted: int = WANTED) -> bytes:
    """Return a struct fuse_init_out for the fuse_init_in in ``body``; ``wanted``: FUSE_* flags."""
    _, _, readahead, flags = uapi.INIT_IN.unpack_from(body)
    version = uapi.FUSE_KERNEL_VERSION, uapi.FUSE_KERNEL_MINOR_VERSION
    background = 64, 48
    limits = MAX_WRITE, 1, MAX_PAGES, 0, 0
    return uapi.INIT_OUT.pack(*version, readahead, flags & wanted, *background, *limits)


def pack_entry(nodeid: int, attr: uapi.Attr, valid: int, attr_valid: int = ATTR_VALID) -> bytes:
    """Return a struct fuse_entry_out; the kernel may cache the name for ``valid`` seconds."""
    return uapi.ENTRY_OUT.pack(nodeid, 0, valid, attr_valid, 0, 0) + attr.pack()


def pack_attr(attr: uapi.Attr, valid: int = ATTR_VALID) -> bytes:
    """Return a struct fuse_attr_out."""
    return uapi.ATTR_OUT.pack(valid, 0, 0) + attr.pack()
