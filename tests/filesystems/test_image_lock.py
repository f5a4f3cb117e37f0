"""The lock on the part of an image that is mounted."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopfs.driver.bdev import BlockDevice
from loopfs.driver.loop import LoopDevice
from loopfs.driver.partition import Found
from loopfs.errors import LoopfsError
from loopfs.filesystems import image_lock
from loopfs.filesystems.backing import BackingFile, facts
from loopfs.filesystems.image_lock import BASE, ImageLock
from loopfs.filesystems.nodes import Nodes
from loopfs.uapi.fcntl import Flock
from loopfs.uapi.loop import LoopConfig, LoopInfo64
from tests.driver.fakes import new_device

MIB = 1 << 20
SIZE = 4 * MIB
OFF_T_MAX = 2**63 - 1


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE)
    return path


Bound = Callable[..., LoopDevice]


@pytest.fixture
def bound() -> Iterator[Bound]:
    """Binds a new device to a file; nothing may be left open at the end."""
    before = len(os.listdir("/proc/self/fd"))
    files: list[BackingFile] = []

    def bind(
        path: Path | str,
        *,
        offset: int = 0,
        sizelimit: int = 0,
        flags: int = os.O_RDWR,
        fd: int | None = None,
        below: LoopDevice | None = None,
    ) -> LoopDevice:
        node = Nodes(0).add_device(below, 0) if below else None
        own = os.open(path, flags | os.O_CLOEXEC) if fd is None else os.dup(fd)
        files.append(BackingFile(own, node, lambda fd: facts(os.fstat(fd))))
        device = new_device()
        info = LoopInfo64(offset=offset, sizelimit=sizelimit)
        device.configure(device.open(write=True), files[-1], LoopConfig(info=info))
        return device

    yield bind
    for file in files:
        file.close()
    files.clear()
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_lock, "PATIENCE", 0.1)


def take(device: BlockDevice, *, write: bool = True) -> ImageLock:
    return ImageLock.take(device, 0, device.capacity, write=write)


@contextmanager
def held(device: BlockDevice, *, write: bool = True) -> Iterator[ImageLock]:
    lock = take(device, write=write)
    try:
        yield lock
    finally:
        lock.release()


def refused(device: BlockDevice, *, write: bool = True) -> str:
    """The sentence of a refusal; "" when there was none."""
    try:
        take(device, write=write).release()
    except LoopfsError as problem:
        code, sentence = problem.code, str(problem.strerror)
    else:
        return ""
    assert code == errno.EBUSY
    return sentence


@contextmanager
def another_process(action: Callable[[], object]) -> Iterator[int]:
    """A process that does something and then waits to be killed; it is, at the end."""
    ours, its = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = action()
            os.write(its, b"." if kept is not None else b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(its)
    try:
        assert os.read(ours, 1) == b"."
        yield pid
    finally:
        os.close(ours)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_from_reading_to_writing_and_back(image: Path, bound: Bound) -> None:
    """Not while another one reads; and then it is still locked for reading."""
    device, other = bound(image), bound(image)
    with held(device, write=False) as lock:
        with held(other, write=False), pytest.raises(LoopfsError, match="mounted by another"):
            lock.for_writing(device)
        assert refused(other)
        assert not refused(other, write=False)
        lock.for_writing(device)
        os.pwrite(lock.fileno(), b"x", 0)
        assert refused(other, write=False)
        lock.for_reading()
        assert refused(other)
        assert not refused(other, write=False)
    assert not refused(other)


# --- who excludes whom -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [(True, True, False), (True, False, False), (False, True, False), (False, False, True)],
    ids=["two writers", "writer, reader", "reader, writer", "two readers"],
)
def test_a_writer_excludes_all(
    image: Path, bound: Bound, first: bool, second: bool, both: bool
) -> None:
    device, other = bound(image), bound(image)
    with held(device, write=first):
        sentence = refused(other, write=second)
        assert (sentence == "") == both
        if not both:
            assert f"{image}: it is mounted" in sentence
            assert ("for writing" in sentence) == (not second)
    assert refused(other, write=second) == "", "and when it is gone, there is no lock"


def test_a_lock_that_is_released_soon_is_waited_for(
    image: Path, bound: Bound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a mount that is being undone."""
    monkeypatch.setattr(image_lock, "PATIENCE", 60.0)
    first = take(bound(image))
    with ThreadPoolExecutor(1) as thread:
        second = thread.submit(take, bound(image))
        with pytest.raises(TimeoutError):
            second.result(0.1)
        first.release()
        second.result(30).release()


def test_another_process_excludes_until_it_is_killed(image: Path, bound: Bound) -> None:
    device = bound(image)
    with another_process(lambda: take(bound(image))):
        assert "it is mounted" in refused(device)
        assert "it is mounted" in refused(device, write=False)
    assert refused(device) == ""


def test_the_same_file_by_another_path(image: Path, bound: Bound) -> None:
    other = image.with_name("other.img")
    os.link(image, other)
    with held(bound(image)):
        assert str(other) in refused(bound(other))
        assert refused(bound(f"/proc/self/fd/../../self/root{image}"))


MIDDLE = (MIB, MIB)  # offset and size limit in bytes


@pytest.mark.parametrize(
    ("offset", "sizelimit", "overlaps"),
    [
        (0, MIB, False),
        (2 * MIB, MIB, False),
        (0, MIB + 512, True),
        (2 * MIB - 512, MIB, True),
        (0, 0, True),
        (MIB + 512, 512, True),
        (MIB, MIB, True),
    ],
)
def test_parts_that_overlap(
    image: Path, bound: Bound, offset: int, sizelimit: int, overlaps: bool
) -> None:
    with held(bound(image, offset=MIDDLE[0], sizelimit=MIDDLE[1])):
        assert bool(refused(bound(image, offset=offset, sizelimit=sizelimit))) == overlaps


def test_a_partition_is_a_part_of_its_disk(image: Path, bound: Bound) -> None:
    disk, other = bound(image), bound(image)
    for device in (disk, other):
        device.partitions.scanned([Found(1, MIB, MIB), Found(2, 2 * MIB, MIB)])
    with held(disk.partitions[1]):
        assert refused(other.partitions[1])
        assert refused(other)
        assert refused(bound(image, offset=MIB, sizelimit=MIB))
        assert not refused(other.partitions[2])
        assert not refused(disk.partitions[2])


def test_a_device_that_is_bound_to_a_device(image: Path, bound: Bound) -> None:
    below = bound(image, offset=MIB)
    above = bound(image, offset=MIB, sizelimit=MIB, below=below)
    with held(above) as lock:
        wanted = Flock(fcntl.F_WRLCK, 0, 0).pack()
        with image.open("r+b") as file:
            found = Flock.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, wanted))
        assert (found.start, found.len) == (BASE + 2 * MIB // 512, MIB // 512)
        assert refused(bound(image, offset=2 * MIB, sizelimit=512))
        assert not refused(bound(image, sizelimit=2 * MIB))
        assert lock.without == ""


def test_without_data_there_is_nothing_to_lock(image: Path, bound: Bound) -> None:
    with pytest.raises(OSError, match="Input/output"):
        take(bound(image, offset=SIZE))


# --- the range ---------------------------------------------------------------------------


PARTS = st.tuples(st.integers(0, OFF_T_MAX - 1), st.integers(1, OFF_T_MAX)).map(
    lambda part: range(part[0], min(sum(part), OFF_T_MAX))
)


@given(PARTS, PARTS)
def test_ranges_fit_and_overlap_as_the_parts_do(a: range, b: range) -> None:
    locks = []
    for part in (a, b):
        flock = Flock.unpack(image_lock.range_of(fcntl.F_WRLCK, part.start, len_of(part)))
        assert flock.start >= BASE
        assert 0 < flock.len <= OFF_T_MAX - flock.start
        locks.append(range(flock.start, flock.start + flock.len))
    share_a_sector = a.start // 512 <= (b.stop - 1) // 512 and b.start // 512 <= (a.stop - 1) // 512
    first, second = locks
    assert (first.start < second.stop and second.start < first.stop) == share_a_sector


def len_of(part: range) -> int:
    return part.stop - part.start  # len() takes no more than ssize_t


@pytest.mark.parametrize("size", [2**40, 2**43])
def test_the_end_of_a_large_file(image: Path, bound: Bound, size: int) -> None:
    os.truncate(image, size)
    with held(bound(image, offset=size - 512)):
        assert refused(bound(image))
        assert not refused(bound(image, sizelimit=size - 512))


# --- other programs' locks ---------------------------------------------------------------


def test_locks_of_others_are_not_disturbed(image: Path, bound: Bound) -> None:
    """What qemu-img locks, and flock(2): both before and after ours."""
    device = bound(image)

    def others() -> list[object]:
        file = image.open("r+b")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, Flock(fcntl.F_RDLCK, 100, 104).pack())
        process_wide = image.open("r+b")
        fcntl.lockf(process_wide, fcntl.LOCK_EX | fcntl.LOCK_NB, SIZE - 300, 300)
        return [file, process_wide]

    with another_process(others), held(device) as lock:
        assert lock.without == ""
        assert refused(bound(image))
    with held(device), another_process(others):
        assert refused(bound(image))


def test_a_lock_on_the_whole_file_is_no_mount(image: Path, bound: Bound) -> None:
    device = bound(image)

    def lock() -> object:
        file = image.open("r+b")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    with another_process(lock) as pid, held(device) as ours:
        assert f"process {pid} has locked all of it" in ours.without


def test_a_lock_on_the_whole_file_by_a_description(image: Path, bound: Bound) -> None:
    with image.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, Flock(fcntl.F_RDLCK, 0, 0).pack())
        with held(bound(image), write=False) as lock:
            assert lock.without == ""
        with held(bound(image)) as lock:
            assert "another program has locked all of it" in lock.without


# --- who holds it ------------------------------------------------------------------------


def test_a_process_that_has_the_descriptor_has_the_lock(image: Path, bound: Bound) -> None:
    """So the process can hold it that mounts by the kernel, after the supervisor's end."""
    lock, other = take(bound(image)), bound(image)
    held_there = os.dup(lock.fileno())
    with another_process(lambda: held_there):
        os.close(held_there)
        del lock
        assert refused(other)
    assert not refused(other)


def test_the_descriptor_does_not_pass_an_exec(image: Path, bound: Bound) -> None:
    with held(bound(image)) as lock:
        assert not os.get_inheritable(lock.fileno())


def test_closing_another_descriptor_of_the_file_keeps_the_lock(image: Path, bound: Bound) -> None:
    """As it would not keep one of a process."""
    with held(bound(image)):
        image.open("r+b").close()
        assert refused(bound(image))


@contextmanager
def nobody(image: Path) -> Iterator[None]:
    """We may no longer open the image."""
    image.chmod(0)
    uid = os.geteuid()
    if uid == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(uid)


def test_a_file_that_cannot_be_opened_anew(image: Path, bound: Bound) -> None:
    """The lock is that of the descriptor that was passed: others' are kept out."""
    fd = os.open(image, os.O_RDWR)
    passed, opened = bound(image, fd=fd), bound(image)
    with nobody(image):
        lock = take(passed)
        assert "cannot be reopened (Permission denied)" in lock.without
        assert refused(opened)
        assert refused(opened, write=False)
        lock.release()  # though fd is still open
        assert not refused(opened)
    os.close(fd)


def test_a_descriptor_for_reading_that_cannot_be_opened_anew(image: Path, bound: Bound) -> None:
    device = bound(image, flags=os.O_RDONLY)
    other = bound(image)
    with nobody(image), held(device, write=False) as lock:
        assert "cannot be reopened" in lock.without
        assert refused(other)
        assert not refused(other, write=False)


# --- filesystems without locks -----------------------------------------------------------


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS", "EINVAL", "EOVERFLOW"])
def test_a_filesystem_without_locks(
    image: Path, bound: Bound, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(errno, code)

    def no_locks(fd: int, command: int, argument: object) -> bytes:
        raise OSError(number, os.strerror(number))

    device = bound(image)
    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with held(device) as lock:
        assert f"{image} cannot be locked ({os.strerror(number)})" in lock.without


def test_another_error_is_one(image: Path, bound: Bound, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(fd: int, command: int, argument: object) -> bytes:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    device = bound(image)
    monkeypatch.setattr(fcntl, "fcntl", gone)
    with pytest.raises(OSError, match="not connected"):
        take(device)
