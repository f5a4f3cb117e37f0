"""The face that a caller gets: decided by the system call that it waits in."""

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
from tests.support.patience import scaled

NATIVE = abis()[0]
PATIENCE = scaled(10.0)  # seconds
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


# --- what a lookup is for --------------------------------------------------------------------


class Silent(Waiting):
    """Its memory never comes."""

    def read(self, address: int, size: int) -> bytes:
        raise AssertionError("a lookup must not wait for a caller's memory")


def purpose(name: str, *args: int) -> int:
    return faces.purpose(Silent(NATIVE.numbers[name], *args))


def test_opens_get_the_data_face() -> None:
    assert purpose("openat", AT_FDCWD, 0x1000, FLAGS) == faces.OPEN
    assert purpose("openat", AT_FDCWD, 0x1000, os.O_PATH | os.O_NOFOLLOW) == faces.HOLD
    assert purpose("openat2", AT_FDCWD, 0x1000, HOW, 24) == faces.HOLD  # it may be O_PATH


@pytest.mark.parametrize("name", ["mount", "move_mount", "open_tree"])
def test_what_is_bound_elsewhere_is_the_data_face(name: str) -> None:
    assert purpose(name, 0x1000, 0x2000) == faces.HOLD


class Worker(Silent):
    """A thread of the kernel's for io_uring, or one that looks like it but for its flags."""

    def __init__(self, stat: Path, number: int | None, flags: int) -> None:
        super().__init__(number)
        self._stat = stat
        fields = ["S", *"12345", str(flags), *"6789"]
        stat.write_text(f"4711 (a) (R b) {' '.join(fields)}\n")

    def path(self, name: str) -> str:
        assert name == "stat"
        return os.fspath(self._stat)


@pytest.mark.parametrize("number", [None, NATIVE.numbers["newfstatat"]])
def test_a_worker_of_io_uring_may_be_opening(tmp_path: Path, number: int | None) -> None:
    flags = 0x4140  # PF_USER_WORKER, PF_RANDOMIZE, PF_FORKNOEXEC
    worker = Worker(tmp_path / "stat", number, flags | faces.PF_IO_WORKER)
    assert faces.purpose(worker) == faces.HOLD
    assert faces.purpose(Worker(tmp_path / "stat", number, flags)) == faces.LOOK


@pytest.mark.parametrize("name", ["newfstatat", "statx", "umount2", "statfs"])
def test_other_calls_get_the_special_face(tmp_path: Path, name: str) -> None:
    assert faces.purpose(Worker(tmp_path / "stat", NATIVE.numbers[name], 0)) == faces.LOOK


def test_data_faces_that_the_kernel_knows() -> None:
    known = faces.DataFaces()
    known.given(5, faces.OPEN)
    assert not known.held(), "the OPEN will tell"
    known.given(5, faces.HOLD)
    known.given(7, faces.HOLD)
    known.given(5, faces.OPEN)
    known.forgotten(5, 2)
    known.forgotten(7, 1)
    known.forgotten(99, 1)  # a special face
    assert known.held()
    known.forgotten(5, 1)
    assert not known.held()


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


# Opens a file by IORING_OP_OPENAT, which a worker has to do.
BY_RING = """
import ctypes, mmap, os, struct, sys
path = ctypes.create_string_buffer(os.fsencode(sys.argv[1]))
syscall = ctypes.CDLL(None, use_errno=True).syscall
params = ctypes.create_string_buffer(120)
polled = len(sys.argv) > 2
struct.pack_into("=I", params, 8, 2 if polled else 0)  # IORING_SETUP_SQPOLL
ring = syscall(425, 4, params)
if ring < 0:
    sys.exit(f"io_uring_setup: {os.strerror(ctypes.get_errno())}")
(mask_at, entries_at, _, _, array_at) = struct.unpack_from("=5I", params, 48)
(tail_at,) = struct.unpack_from("=I", params, 44)
queue = mmap.mmap(ring, 4096, offset=0)
sqes = mmap.mmap(ring, 4096, offset=0x10000000)
struct.pack_into("=BBHiQQIIQ", sqes, 0, 18, 16, 0, -100, 0, ctypes.addressof(path), 0, 0, 1)
struct.pack_into("=I", queue, struct.unpack_from("=I", params, 64)[0], 0)
struct.pack_into("=I", queue, tail_at, 1)
syscall(426, ring, 1, 1, 3 if polled else 1, None, 0)
"""


@pytest.mark.parametrize("polled", [[], ["polled"]], ids=["entered", "polled"])
def test_a_real_worker_of_io_uring(tmp_path: Path, polled: list[str]) -> None:
    """It waits in the open of a FIFO."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = [sys.executable, "-c", BY_RING, os.fspath(fifo), *polled]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as child:
        try:
            deadline = time.monotonic() + PATIENCE
            while True:
                assert time.monotonic() < deadline and child.poll() is None, child.stderr
                tids = [int(tid) for tid in os.listdir(f"/proc/{child.pid}/task")]
                workers = [Process(tid) for tid in tids if tid != child.pid]
                if len(workers) > len(polled) and all(map(faces.is_io_worker, workers)):
                    break
            assert [faces.purpose(worker) for worker in workers] == [faces.HOLD] * len(workers)
            assert faces.purpose(Process(child.pid)) == faces.LOOK  # it only waits
        finally:
            child.kill()


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
