"""The syncs of io_submit(2), as found in a caller's memory: this process."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest

from loopfs.intercept.sync import iocbs
from loopfs.process import Process
from loopfs.uapi.aio import IOCB, IOCB_CMD_FDSYNC, IOCB_CMD_FSYNC

CALLER = Process(os.getpid())
PAGE = mmap.PAGESIZE
MAP_FIXED_NOREPLACE = 0x100000  # linux/mman.h; mmap does not have it


class Iocb(ctypes.Structure):
    """As linux/aio_abi.h has it."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int),
        ("lio_opcode", ctypes.c_uint16),
        ("reqprio", ctypes.c_int16),
        ("fildes", ctypes.c_uint32),
        ("buf", ctypes.c_uint64),
        ("nbytes", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved2", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("resfd", ctypes.c_uint32),
    )


@pytest.fixture
def low() -> Iterator[int]:
    """The address of two pages below 4 GiB, where the memory of a 32-bit program is."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mmap.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    for wanted in range(0x10000000, 0x80000000, 0x10000000):  # the heap can be anywhere
        start = libc.mmap(wanted, 2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if start == wanted:
            break
    assert start == wanted, os.strerror(ctypes.get_errno())
    yield wanted
    libc.munmap(wanted, 2 * PAGE)


def test_iocbs_are_read_as_far_as_they_are_there() -> None:
    assert ctypes.sizeof(Iocb) == IOCB.size == 64
    made = [Iocb(lio_opcode=IOCB_CMD_FSYNC, fildes=7), Iocb(lio_opcode=IOCB_CMD_FDSYNC, fildes=8)]
    expected = [(IOCB_CMD_FSYNC, 7), (IOCB_CMD_FDSYNC, 8)]
    pointers = (ctypes.c_uint64 * 4)(*map(ctypes.addressof, made), 0, ctypes.addressof(made[0]))
    where = ctypes.addressof(pointers)
    assert iocbs(CALLER, 2, where, 8) == expected
    assert iocbs(CALLER, 1, where, 8) == expected[:1]
    assert iocbs(CALLER, 4, where, 8) == expected  # the third is NULL
    assert iocbs(CALLER, 2**64 - 1, where, 8) == expected
    assert iocbs(CALLER, 2, 0, 8) == []
    assert iocbs(CALLER, 0, where, 8) == []


def test_iocbs_of_a_32_bit_program(low: int) -> None:
    request = bytes(Iocb(lio_opcode=IOCB_CMD_FSYNC, fildes=9))
    ctypes.memmove(low, request, len(request))
    ctypes.memmove(low + PAGE, low.to_bytes(4, "little") * 2, 8)
    assert iocbs(CALLER, 2, low + PAGE, 4) == [(IOCB_CMD_FSYNC, 9)] * 2
    assert iocbs(CALLER, 2**32 | 1, low + PAGE, 4) == [(IOCB_CMD_FSYNC, 9)]
