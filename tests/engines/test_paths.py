"""Path resolution compared with the kernel's, and the difference: /proc/self."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopfs.engines.paths import MAX_LINKS, CallerProc, resolve, resolve_parent

TREE = """
mkdir -p dir/sub dir/deep/deeper
echo file > file; echo inner > dir/inner
ln -s file to-file; ln -s dir to-dir; ln -s ../file dir/to-file; ln -s sub/.. dir/around
ln -s missing dangling; ln -s circle-b circle-a; ln -s circle-a circle-b; ln -s . here
ln -s to-to-dir/inner through; ln -s to-dir to-to-dir; ln -s /proc/self/fd/0 magic
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    subprocess.run(["sh", "-ec", TREE], cwd=tmp_path, check=True)
    (tmp_path / "absolute").symlink_to(tmp_path / "dir")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[int]:
    """A process whose standard input and working directory are not ours."""
    (tmp_path / "its-stdin").write_text("")
    (tmp_path / "its-cwd").mkdir()
    with open(tmp_path / "its-stdin") as its_stdin:
        child = subprocess.Popen(
            ["sleep", "1000"], stdin=its_stdin, stdout=subprocess.DEVNULL, cwd=tmp_path / "its-cwd"
        )
    with child:
        yield child.pid
        child.kill()


@pytest.fixture
def proc(caller: int) -> Iterator[CallerProc]:
    fds = [os.open(p, os.O_PATH) for p in (f"/proc/{caller}", f"/proc/{caller}/task/{caller}")]
    yield CallerProc(fds[0], fds[1])
    for fd in fds:
        os.close(fd)


def identity(fd: int) -> tuple[int, int]:
    try:
        st = os.fstat(fd)
        return st.st_dev, st.st_ino
    finally:
        os.close(fd)


def ours(path: str, proc: CallerProc) -> tuple[int, int] | int:
    """What we find, or the errno."""
    try:
        return identity(resolve(path, proc))
    except OSError as problem:
        return problem.errno or -1


def kernels(path: str) -> tuple[int, int] | int:
    try:
        return identity(os.open(path, os.O_PATH))
    except OSError as problem:
        return problem.errno or -1


@pytest.mark.parametrize(
    "path",
    [
        *("file", "dir", "dir/inner", "./file", "dir/./inner", "dir//inner", "dir/", "dir/sub/"),
        *(".", "..", "/", "//", "/..", "../..", "dir/..", "dir/deep/../../file"),
        *("to-file", "to-dir", "to-dir/inner", "to-dir/", "dir/to-file", "dir/around"),
        *("dir/around/to-file", "through", "here/here/here/file", "to-dir/../file"),
        *("absolute", "absolute/inner", "absolute/..", "absolute/deep/deeper/../.."),
        *("missing", "missing/..", "dir/missing/file", "dangling", "dangling/file"),
        *("file/..", "file/more", "file/.", "to-file/more", "file/", "to-file/"),
        *("circle-a", "circle-a/file", "", "n" * 255, "n" * 256, "dir/" + "n" * 256),
        *("/proc", "/proc/1", "/proc/sys/kernel", "/dev/null", "/etc/passwd", "/usr/../etc"),
    ],
)
def test_as_the_kernel(tree: Path, proc: CallerProc, path: str) -> None:
    assert ours(path, proc) == kernels(path)


@pytest.mark.parametrize("links", [1, MAX_LINKS, MAX_LINKS + 1])
def test_as_many_links_as_the_kernel_follows(tree: Path, proc: CallerProc, links: int) -> None:
    Path("link0").symlink_to("file")
    for number in range(1, links):
        Path(f"link{number}").symlink_to(f"link{number - 1}")
    path = f"link{links - 1}"
    assert ours(path, proc) == kernels(path)
    assert (ours(path, proc) == errno.ELOOP) == (links > MAX_LINKS)


def test_a_directory_that_may_not_be_searched(tree: Path, proc: CallerProc) -> None:
    Path("dir").chmod(0)
    try:
        assert ours("dir/inner", proc) == kernels("dir/inner")
    finally:
        Path("dir").chmod(0o755)


def test_what_is_found_is_only_a_path(tree: Path, proc: CallerProc) -> None:
    os.mkfifo("fifo")
    fd = resolve("fifo", proc)  # opening it for real would wait
    assert not os.get_inheritable(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(fd, 1)
    os.close(fd)


# --- /proc/self is the caller's --------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/proc/self", "/proc/{pid}"),
        ("/proc/self/fd/0", "/proc/{pid}/fd/0"),
        ("/proc/thread-self", "/proc/{pid}/task/{pid}"),
        ("/proc/thread-self/fd/0", "/proc/{pid}/fd/0"),
        ("/proc/self/task/../fd/0", "/proc/{pid}/fd/0"),
        ("/proc/../proc/self/fd/0", "/proc/{pid}/fd/0"),
        ("/proc/self/cwd", "/proc/{pid}/cwd"),
        ("/proc/self/cwd/..", "/proc/{pid}/cwd/.."),
        ("/proc/self/cwd/../file", "/proc/{pid}/cwd/../file"),
        ("/proc/self/root/etc", "/etc"),
        ("/proc/self/exe", "/proc/{pid}/exe"),
        ("/dev/fd/0", "/proc/{pid}/fd/0"),
        ("magic", "/proc/{pid}/fd/0"),
        ("/proc/mounts", "/proc/{pid}/mounts"),
        ("/proc/1/root/..", "/proc/1/root/.."),
        ("/proc/self/fd/99", "/proc/{pid}/fd/99"),
        ("/proc/self/fd/0/more", "/proc/{pid}/fd/0/more"),
    ],
)
def test_proc_self(tree: Path, caller: int, proc: CallerProc, path: str, real: str) -> None:
    assert ours(path, proc) == kernels(real.format(pid=caller))


def test_proc_self_is_not_us(tree: Path, proc: CallerProc) -> None:
    assert ours("/proc/self", proc) != kernels("/proc/self")


def test_a_directory_that_is_only_called_self(tree: Path, proc: CallerProc) -> None:
    Path("self").symlink_to("dir")
    assert ours("self/inner", proc) == kernels("dir/inner")


# --- the parent of what is named ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parent", "name"),
    [
        ("dir/inner", "dir", "inner"),
        ("file", ".", "file"),
        ("to-file", ".", "file"),
        ("to-dir/inner", "dir", "inner"),
        ("dir/new", "dir", "new"),
        ("dangling", ".", "missing"),
        ("dir/..", ".", ""),
        ("/", "/", ""),
        (".", ".", ""),
    ],
)
def test_parent(tree: Path, proc: CallerProc, path: str, parent: str, name: str) -> None:
    directory, last = resolve_parent(path, proc)
    assert (identity(directory), last) == (kernels(parent), name)


@pytest.mark.parametrize(
    ("path", "parent", "name"),
    [
        ("to-file", ".", "to-file"),
        ("to-dir/to-file", "dir", "to-file"),
        ("circle-a", ".", "circle-a"),
    ],
)
def test_the_last_link_need_not_be_followed(
    tree: Path, proc: CallerProc, path: str, parent: str, name: str
) -> None:
    directory, last = resolve_parent(path, proc, follow=False)
    assert (identity(directory), last) == (kernels(parent), name)
