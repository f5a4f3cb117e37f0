"""The syncs of io_submit(2), as they are in a caller's memory: this process."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from loopfs.intercept.sync import iocbs
from loopfs.process import Process
from loopfs.uapi.aio import IOCB, IOCB_CMD_FDSYNC, IOCB_CMD_FSYNC

CALLER = Process(os.getpid())
PAGE = mmap.PAGESIZE


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


def address(thing: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(thing))


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


def test_iocbs_of_a_32_bit_program() -> None:
    low = mmap.mmap(-1, 2 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40)  # MAP_32BIT
    start = address(low)
    if start >= 1 << 32:
        pytest.fail("MAP_32BIT is not heeded")
    low[:64] = bytes(Iocb(lio_opcode=IOCB_CMD_FSYNC, fildes=9))
    low[PAGE : PAGE + 8] = start.to_bytes(4, "little") * 2
    assert iocbs(CALLER, 2, start + PAGE, 4) == [(IOCB_CMD_FSYNC, 9)] * 2
    assert iocbs(CALLER, 2**32 | 1, start + PAGE, 4) == [(IOCB_CMD_FSYNC, 9)]
