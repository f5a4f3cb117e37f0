"""The file under a device: its properties, and I/O on it."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loopfs import syscalls
from loopfs.filesystems import backing
from loopfs.filesystems.backing import BackingFile, FileFacts, facts
from loopfs.filesystems.nodes import Nodes
from loopfs.uapi import magic
from tests.driver.fakes import FakeBacking, bind, new_device
from tests.support.skip import need

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(os.urandom(SIZE))
    return path


Open = Callable[..., BackingFile]


def fstat(fd: int) -> FileFacts:
    return facts(os.fstat(fd))


@pytest.fixture
def opened() -> Iterator[Open]:
    """Opens files as backing files; none may be left open at the end."""
    before = len(os.listdir("/proc/self/fd"))
    files: list[BackingFile] = []

    def open_(path: Path | str, flags: int = os.O_RDWR) -> BackingFile:
        files.append(BackingFile(os.open(path, flags | os.O_CLOEXEC), None, fstat))
        return files[-1]

    yield open_
    for file in files:
        file.close()
    files.clear()
    assert len(os.listdir("/proc/self/fd")) == before


# --- what is known ------------------------------------------------------------------------


def test_a_regular_file(image: Path, opened: Open) -> None:
    file = opened(image)
    st = image.stat()
    assert file.identity == (st.st_dev, st.st_ino, 0)
    assert (file.supported, file.writable, file.direct, file.slow) == (True, True, False, False)
    assert file.size() == SIZE
    assert file.path == str(image)
    os.truncate(image, 5)
    assert file.size() == SIZE  # what it was when it was last looked at
    file.refresh()
    assert file.size() == 5


def test_a_file_that_was_opened_for_reading(image: Path, opened: Open) -> None:
    assert not opened(image, os.O_RDONLY).writable
    assert opened(image, os.O_WRONLY).writable


@pytest.mark.parametrize("path", ["/dev/null", "/", "/proc/self/fd"])
def test_files_of_other_kinds_are_not_supported(path: str, opened: Open) -> None:
    assert not opened(path, os.O_RDONLY).supported


def test_a_path_descriptor_is_no_file(image: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fd = os.open(image, os.O_PATH)
    with pytest.raises(OSError, match="Bad file descriptor"):
        BackingFile(fd, None, fstat)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_node_of_ours_is_asked_through_the_driver(image: Path) -> None:
    device = new_device()
    bind(device, FakeBacking(4096))
    node = Nodes(0).add_device(device, 0)
    file = BackingFile(os.open(image, os.O_RDWR), node, fstat)
    assert file.supported
    assert file.identity == (image.stat().st_dev, 3, os.makedev(7, 0))
    assert file.size() == 4096
    image.unlink()  # as the kernel does to a name when it next shows the node's other face
    assert file.path == str(image.parent / "loop0")
    file.close()


# --- transfers -----------------------------------------------------------------------------


def test_reading_and_writing(image: Path, opened: Open) -> None:
    file = opened(image)
    content = image.read_bytes()
    buffer = bytearray(10)
    file.read_into(memoryview(buffer), SIZE - 10)
    assert buffer == content[-10:]
    file.write(b"12345", 100)
    file.sync(True)
    file.sync(False)
    assert image.read_bytes() == content[:100] + b"12345" + content[105:]


def test_a_read_past_the_end_is_an_error(image: Path, opened: Open) -> None:
    file = opened(image)
    with pytest.raises(OSError, match="Input/output"):
        file.read_into(memoryview(bytearray(11)), SIZE - 10)


@pytest.mark.parametrize("flag", [os.O_APPEND, os.O_DIRECT], ids=["O_APPEND", "O_DIRECT"])
def test_flags_that_would_change_a_write_are_taken_off(
    image: Path, opened: Open, flag: int
) -> None:
    file = opened(image, os.O_RDWR | flag)
    assert file.direct == (flag == os.O_DIRECT)
    file.write(b"odd", 1)
    assert image.read_bytes()[1:4] == b"odd"
    assert file.size() == SIZE


def test_after_close_there_is_no_file(image: Path, opened: Open) -> None:
    file = opened(image)
    file.close()
    calls: list[Callable[[], None]] = [
        lambda: file.read_into(memoryview(bytearray(1)), 0),
        lambda: file.write(b"x", 0),
        lambda: file.sync(False),
        file.refresh,
    ]
    for call in calls:
        with pytest.raises(OSError, match="Input/output") as problem:
            call()
        assert problem.value.errno == errno.EIO
    file.close()


# --- views -----------------------------------------------------------------------------------


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> int:
    """Windows that a small file has several of; returns their size."""
    size = 128 << 10
    monkeypatch.setattr(backing, "VIEW_WINDOW", size)
    monkeypatch.setattr(backing, "VIEW_MINIMUM", 4096)
    return size


@pytest.mark.may_skip(reason="on tmpfs there are no views")
def test_a_view_is_what_a_read_would_give(image: Path, opened: Open, small_windows: int) -> None:
    content = image.read_bytes()
    file = opened(image)
    seen = 0
    for offset in [*range(0, SIZE, 4096), 0, SIZE - 4096, small_windows]:
        view = file.view(offset, 4096)
        if view is not None:
            seen += 1
            assert view == content[offset : offset + 4096]
            view.release()
    need(seen, "on tmpfs there are no views")


def test_a_view_follows_writes(image: Path, opened: Open, small_windows: int) -> None:
    file = opened(image)
    file.view(0, 8192)
    file.write(b"new", 100)
    view = file.view(0, 8192)
    assert view is None or bytes(view[100:103]) == b"new"


def test_no_view_where_a_mapping_does_not_reach(
    image: Path, opened: Open, small_windows: int
) -> None:
    file = opened(image)
    assert file.view(0, 4095) is None, "too little"
    assert file.view(small_windows - 4096, 8192) is None, "over the seam of two windows"
    assert file.view(SIZE - 4096, 8192) is None
    assert file.view(SIZE, 4096) is None


def test_no_view_of_what_a_file_has_lost(image: Path, opened: Open, small_windows: int) -> None:
    os.truncate(image, 100)
    file = opened(image)
    assert file.view(0, 4096) is None
    assert file.view(4 * small_windows, 4096) is None, "it ends long before"


def test_a_file_that_grows_is_seen(image: Path, opened: Open, small_windows: int) -> None:
    os.truncate(image, 8192)
    file = opened(image)
    file.view(0, 4096)
    with open(image, "ab") as more:
        more.write(b"grown" * 1000)
    assert file.view(8192, 4096) is None
    view = file.view(8192, 4096)
    assert view is None or bytes(view[:5]) == b"grown"


@pytest.mark.may_skip(reason="on tmpfs there are no views")
def test_each_thread_has_a_view_of_its_own(image: Path, opened: Open, small_windows: int) -> None:
    """What one thread reads elsewhere does not move another's window, at whatever moment."""
    content = image.read_bytes()
    file = opened(image)
    need(file.view(0, 4096) is not None, "on tmpfs there are no views")
    wrong: list[int] = []

    def read(start: int) -> None:
        for offset in [*range(start, start + small_windows, 4096)] * 50:
            view = file.view(offset, 4096)
            if view is None or view != content[offset : offset + 4096]:
                wrong.append(offset)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        starts = [n * small_windows for n in range(4)]
        threads = [threading.Thread(target=read, args=(start,)) for start in starts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


# --- whose files may wait for a process ----------------------------------------------------------


@pytest.mark.parametrize(
    ("filesystem", "has_extents", "slow"),
    [
        (magic.EXT4_SUPER_MAGIC, False, False),
        (magic.TMPFS_MAGIC, False, False),
        (magic.FUSE_SUPER_MAGIC, False, True),
        (0x6969, True, True),  # NFS
        (magic.OVERLAYFS_SUPER_MAGIC, True, False),
        (magic.OVERLAYFS_SUPER_MAGIC, False, True),
    ],
)
def test_only_what_this_kernel_answers_for_is_quick(
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    filesystem: int,
    has_extents: bool,
    slow: bool,
) -> None:
    monkeypatch.setattr(syscalls, "filesystem_type", lambda fd: filesystem)
    monkeypatch.setattr(backing, "_has_extents", lambda fd: has_extents)
    file = BackingFile(os.open(image, os.O_RDWR | os.O_CLOEXEC), None, fstat)
    assert file.slow is slow
    file.close()


def test_a_fifo_is_not_opened_again(tmp_path: Path) -> None:
    """It would wait for another end."""
    os.mkfifo(tmp_path / "fifo")
    keep = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
    fd = os.open(tmp_path / "fifo", os.O_WRONLY | os.O_APPEND)
    os.close(keep)
    file = BackingFile(fd, None, fstat)
    assert not file.supported
    file.close()
