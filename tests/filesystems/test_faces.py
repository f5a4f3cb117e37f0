"""Which face a caller sees: decided by the system call that it waits in."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loopfs.filesystems import faces
from loopfs.process import Process
from loopfs.uapi.mount import AT_FDCWD
from loopfs.uapi.syscalls import abis

NATIVE = abis()[0]
PATIENCE = 10.0  # seconds
HOW = 0x7000  # where a struct open_how lies


class Waiting(Process):
    """A thread that waits in a call of our choice."""

    def __init__(self, number: int | None, *args: int, memory: bytes = b"") -> None:
        super().__init__(1)
        self._number = number
        self._args = [*args, *[0] * (6 - len(args))]
        self._memory = memory

    def current_syscall(self) -> tuple[int, list[int]] | None:
        return None if self._number is None else (self._number, self._args)

    def read(self, address: int, size: int) -> bytes:
        if address != HOW or size > len(self._memory):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return self._memory[:size]


FLAGS = os.O_RDWR | os.O_EXCL | os.O_NONBLOCK


@pytest.mark.parametrize("number", [abi.numbers["openat"] for abi in abis()])
def test_flags_of_openat(number: int) -> None:
    high = 0xABCD << 32  # a register's upper half means nothing
    process = Waiting(number, AT_FDCWD, 0x1000, high | FLAGS)
    assert faces.open_flags(process) == FLAGS


@pytest.mark.skipif("open" not in NATIVE.numbers, reason="the machine has no open(2)")
@pytest.mark.may_skip(reason="the machine has no open(2)")
def test_flags_of_open_and_creat() -> None:
    assert faces.open_flags(Waiting(NATIVE.numbers["open"], 0x1000, FLAGS)) == FLAGS
    # creat(2) has no flags but those that its name says: no O_PATH, no O_EXCL.
    assert faces.open_flags(Waiting(NATIVE.numbers["creat"], 0x1000, FLAGS)) == 0


@pytest.mark.parametrize("name", ["mount", "newfstatat", "statx", "umount2", "open_tree"])
def test_other_calls_are_no_open(name: str) -> None:
    assert faces.open_flags(Waiting(NATIVE.numbers[name], 0, 0, FLAGS)) is None


def test_a_thread_between_calls() -> None:
    assert faces.open_flags(Waiting(None)) is None
    assert faces.flags_in_memory(Waiting(None)) is None


def test_openat2_has_its_flags_in_memory() -> None:
    how = struct.pack("=QQQ", FLAGS, 0o600, 8)
    process = Waiting(NATIVE.numbers["openat2"], AT_FDCWD, 0x1000, HOW, len(how), memory=how)
    with pytest.raises(faces.InMemory):
        faces.open_flags(process)
    assert faces.flags_in_memory(process) == FLAGS


def test_openat2_with_a_bad_pointer() -> None:
    with pytest.raises(OSError, match="Bad address"):
        faces.flags_in_memory(Waiting(NATIVE.numbers["openat2"], AT_FDCWD, 0x1000, 0x1, 24))


# --- a real thread, which waits because it opens a FIFO that nobody writes to --------------

OPEN = """
import ctypes, os, struct, sys
path, kind = sys.argv[1:]
flags = os.O_RDONLY | os.O_EXCL
if kind == "openat2":
    how = struct.pack("=QQQ", flags, 0, 0)
    ctypes.CDLL(None).syscall(437, -100, path.encode(), how, len(how))
else:
    os.open(path, flags)
"""


@pytest.mark.parametrize("kind", ["openat", "openat2"])
def test_a_thread_that_waits(tmp_path: Path, kind: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    child = subprocess.Popen([sys.executable, "-c", OPEN, fifo, kind])
    process = Process(child.pid)
    try:
        number = NATIVE.numbers[kind]
        wait_until_it_opens(process, number, os.fsencode(fifo))
        if kind == "openat":
            flags = faces.open_flags(process)
        else:
            with pytest.raises(faces.InMemory):
                faces.open_flags(process)
            flags = faces.flags_in_memory(process)
        assert flags is not None
        assert flags & (os.O_EXCL | os.O_ACCMODE | os.O_PATH) == os.O_EXCL | os.O_RDONLY
    finally:
        child.kill()
        child.wait()


def wait_until_it_opens(process: Process, number: int, path: bytes) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        call = process.current_syscall()
        if call and call[0] == number and process.read_string(call[1][1], 4096) == path:
            return
    pytest.fail("the child does not open the FIFO")


def test_a_thread_that_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(OSError, match="No such"):
        faces.open_flags(Process(child.pid))
