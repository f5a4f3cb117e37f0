"""Reading and writing another process while it is stopped."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs.process import ASLEEP_WITHIN, Process
from loopfs.uapi.sched import CAP_SYS_ADMIN
from tests.support.parts import wait_until

# It has one readable page, a hole after it, and says where; then it waits in read(0, …).
TEXT = b"a string"
CHILD = f"""
import ctypes, mmap, os, sys
page = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
memory = mmap.mmap(-1, 3 * page)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munmap(base + 2 * page, page)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
memory[: {len(TEXT)}] = {TEXT!r}
memory[2 * page - 4 : 2 * page] = b"tail"
reader, writer = os.pipe()
os.write(writer, b"through the pipe")
print(base, reader, flush=True)
os.read(0, 1)
sys.stdout.buffer.write(memory[: 2 * page])
sys.stdout.flush()
os._exit(0)
"""


class Tracee:
    """A child of ours, and the addresses that it told."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        self.child = child
        self.base, self.pipe = map(int, child.stdout.readline().split())
        self.end = self.base + 2 * mmap.PAGESIZE
        self.process = Process(child.pid)

    def memory(self) -> bytes:
        """Let it go on to its end; returns what its two pages then held."""
        return self.child.communicate(b"x")[0]


@pytest.fixture
def tracee() -> Iterator[Tracee]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        try:
            yield Tracee(child)
        finally:
            child.kill()


def refusal(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as problem:  # noqa: PT011 the errno is what is asked for
        call()
    assert problem.value.errno is not None
    return problem.value.errno


# --- memory --------------------------------------------------------------------------


def test_read(tracee: Tracee) -> None:
    process = tracee.process
    assert process.read(tracee.base, len(TEXT)) == TEXT
    assert process.read(tracee.base, 2 * mmap.PAGESIZE)[-4:] == b"tail"
    assert process.read(tracee.base, 0) == b""


@pytest.mark.parametrize("address", [0, 8, 2**47 - 4096, 2**63, 2**64 - 8])
def test_addresses_that_are_not_mapped(tracee: Tracee, address: int) -> None:
    process = tracee.process
    assert refusal(lambda: process.read(address, 8)) == errno.EFAULT
    assert refusal(lambda: process.read_some(address, 8)) == errno.EFAULT
    assert refusal(lambda: process.read_string(address, 8)) == errno.EFAULT
    assert refusal(lambda: process.write(address, bytes(8))) == errno.EFAULT


def test_memory_that_ends(tracee: Tracee) -> None:
    process = tracee.process
    assert process.read(tracee.end - 4, 4) == b"tail"
    assert refusal(lambda: process.read(tracee.end - 4, 5)) == errno.EFAULT
    assert process.read_some(tracee.end - 4, 100) == b"tail"
    assert refusal(lambda: process.read_some(tracee.end, 1)) == errno.EFAULT


def test_write(tracee: Tracee) -> None:
    tracee.process.write(tracee.base, b"A")
    tracee.process.write(tracee.end - 4, b"TAIL")
    tracee.process.write(tracee.end - 4, b"")
    memory = tracee.memory()
    assert memory.startswith(b"A" + TEXT[1:])
    assert memory.endswith(b"TAIL")


def test_a_write_beyond_the_end_is_a_fault(tracee: Tracee) -> None:
    assert refusal(lambda: tracee.process.write(tracee.end - 4, b"12345")) == errno.EFAULT


def test_strings(tracee: Tracee) -> None:
    process = tracee.process
    assert process.read_string(tracee.base, 4096) == TEXT
    assert process.read_string(tracee.base + 2, len(TEXT) - 1) == TEXT[2:]
    assert process.read_string(tracee.base + len(TEXT), 1) == b""
    too_small = len(TEXT)
    assert refusal(lambda: process.read_string(tracee.base, too_small)) == errno.ENAMETOOLONG


def test_a_string_over_the_end_of_a_page(tracee: Tracee) -> None:
    seam = tracee.base + mmap.PAGESIZE - 3
    tracee.process.write(seam, b"seamless\0")
    assert tracee.process.read_string(seam, 4096) == b"seamless"


def test_a_string_before_a_hole(tracee: Tracee) -> None:
    assert refusal(lambda: tracee.process.read_string(tracee.end - 4, 4096)) == errno.EFAULT
    tracee.process.write(tracee.end - 1, b"\0")
    assert tracee.process.read_string(tracee.end - 4, 4096) == b"tai"


# --- descriptors, calls, credentials ---------------------------------------------------------


@pytest.fixture(params=["6.9", "before"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has PIDFD_THREAD, and one that has not."""
    if request.param == "before":
        real = os.pidfd_open

        def pidfd_open(pid: int, flags: int = 0) -> int:
            if flags:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real(pid)

        monkeypatch.setattr(os, "pidfd_open", pidfd_open)


THREAD = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
fd = os.open(sys.argv[1], os.O_RDONLY)
shared = os.open(sys.argv[2], os.O_RDWR | os.O_APPEND)
def thread():
    assert libc.unshare(0x400) == 0  # CLONE_FILES
    os.dup2(os.open(sys.argv[2], os.O_RDWR), fd)
    print(threading.get_native_id(), fd, shared, flush=True)
    os.read(0, 1)
threading.Thread(target=thread).start()
if sys.argv[3] == "alone":
    libc.syscall(int(sys.argv[4]), 0)
"""


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("first", ["stays", "alone"])
def test_a_descriptor_of_a_thread_with_a_table_of_its_own(tmp_path: Path, first: str) -> None:
    files = [tmp_path / name for name in ("process", "thread")]
    for file in files:
        file.touch()
    leave = {"x86_64": 60, "aarch64": 93}[platform.machine()]
    words = [sys.executable, "-c", THREAD, *map(str, files), first, str(leave)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        tid, *fds = map(int, child.stdout.readline().split())
        if first == "alone":
            wait_until(lambda: b") Z" in Path(f"/proc/{child.pid}/stat").read_bytes(), "it is")
        for fd, flags in zip(fds, (0, os.O_APPEND), strict=True):
            got = Process(tid).descriptor(fd)
            assert os.readlink(f"/proc/self/fd/{got}") == str(files[1])
            assert (
                fcntl.fcntl(got, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND) == os.O_RDWR | flags
            )
            os.close(got)
        child.communicate(b"x")


@pytest.mark.usefixtures("kernel")
def test_a_descriptor_is_duplicated(tracee: Tracee) -> None:
    fd = tracee.process.descriptor(tracee.pipe)
    try:
        assert not os.get_inheritable(fd)
        assert os.read(fd, 100) == b"through the pipe"
    finally:
        os.close(fd)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("fd", [999, -1, 2**31 - 1])
def test_a_descriptor_that_is_not_open(tracee: Tracee, fd: int) -> None:
    before = os.listdir("/proc/self/fd")
    assert refusal(lambda: tracee.process.descriptor(fd)) == errno.EBADF
    assert os.listdir("/proc/self/fd") == before


def test_the_call_that_it_waits_in(tracee: Tracee) -> None:
    read = {"x86_64": 0, "aarch64": 63}[platform.machine()]

    def waits() -> tuple[int, list[int]] | None:
        call = tracee.process.current_syscall()  # it can still be on its way there
        return call if call and call[0] == read else None

    call = wait_until(waits, "the child reads")
    assert call is not None
    number, args = call
    assert (number, args[0], args[2]) == (read, 0, 1)
    assert len(args) == 6


def test_a_running_thread_is_waited_for(tracee: Tracee, monkeypatch: pytest.MonkeyPatch) -> None:
    said = itertools.chain(
        [b"running\n"] * 1500, itertools.repeat(b"0 0x7 0x8 0x9 0xa 0xb 0xc 0 0")
    )
    monkeypatch.setattr(os, "read", lambda fd, size: next(said))
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: next(said))
    assert tracee.process.current_syscall() == (0, [7, 8, 9, 10, 11, 12])


def test_a_thread_that_keeps_running_is_given_up(
    tracee: Tracee, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(os, "read", lambda fd, size: b"running\n")
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: b"running\n")
    assert tracee.process.current_syscall() is None
    assert next(clock) > ASLEEP_WITHIN


def test_who_it_is(tracee: Tracee) -> None:
    process = tracee.process
    assert process.tgid == tracee.child.pid
    for name in ("user", "mnt", "pid"):
        assert process.namespace(name) == os.stat(f"/proc/self/ns/{name}").st_ino
    own = Process(os.getpid())
    assert process.has_capability() == own.has_capability()
    assert not process.has_capability(63)


def test_capabilities_are_the_effective_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(os.getpid())
    fields = {"CapEff": f"{1 << CAP_SYS_ADMIN:016x}", "CapPrm": "f" * 16}
    monkeypatch.setattr(Process, "status", lambda self: fields)
    assert process.has_capability()
    assert not process.has_capability(CAP_SYS_ADMIN - 1)


def test_a_process_that_is_gone(tracee: Tracee) -> None:
    tracee.child.kill()
    tracee.child.wait()
    process = tracee.process
    gone = (errno.ENOENT, errno.ESRCH)
    assert refusal(lambda: process.read(tracee.base, 1)) in gone
    assert refusal(lambda: process.write(tracee.base, b"x")) in gone
    # Before Linux 6.8, EBADF: a process that has ended has no descriptors (pidfd_getfd).
    assert refusal(lambda: process.descriptor(0)) in (*gone, errno.EBADF)
    assert refusal(process.current_syscall) in gone
    assert refusal(lambda: process.namespace("user")) in gone


def test_what_a_descriptor_refers_to(tracee: Tracee) -> None:
    own = os.memfd_create("loopfs-test")
    try:
        process = Process(os.getpid())
        assert process.descriptor_device(own) == os.fstat(own).st_dev
        assert process.descriptor_device(2**31 + own) is None
    finally:
        os.close(own)
    assert tracee.process.descriptor_device(tracee.pipe) is not None
    assert tracee.process.descriptor_device(999) is None
    assert not tracee.process.closed_to_us()
    tracee.memory()
    assert tracee.process.descriptor_device(tracee.pipe) is None
    assert not tracee.process.closed_to_us()


def test_our_own_memory() -> None:
    buffer = ctypes.create_string_buffer(b"ours", 16)
    process = Process(os.getpid())
    process.write(ctypes.addressof(buffer), b"y")
    assert buffer.value == b"yurs"
