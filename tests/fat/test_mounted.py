"""Unmodified programs on a volume that is served through FUSE, as the ordinary user."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.fat.conftest import InVolume
from tests.fat.images import MIB, tool
from tests.support.user import User

WORDS = ("Readme", "MAKEFILE", "lower", "Ünïcödé", "日本語の長い名前", "with space", ".dotfile")
ENDS = ("", ".txt", ".TXT", ".jpeg")


@pytest.fixture
def source(workdir: Path, user: User) -> Path:
    """A tree of odd names, sizes and times."""
    chance, root = random.Random(1), workdir / "source"
    root.mkdir()
    places = [root]
    for n in range(12):
        place = chance.choice(places) / f"{chance.choice(WORDS)} dir{n}"
        place.mkdir()
        places.append(place)
    for n in range(150):
        path = chance.choice(places) / f"{chance.choice(WORDS)}{n}{chance.choice(ENDS)}"
        path.write_bytes(chance.randbytes(chance.choice([0, 10, 1000, 5000, 20000])))
        moment = chance.randrange(400_000_000, 1_700_000_000)
        os.utime(path, (moment, moment))
    for path in [root, *root.rglob("*")]:
        os.chown(path, user.uid, user.gid)
    return root


def assert_clean(image: Path) -> None:
    done = tool("fsck.fat", "-n", image)
    assert done.returncode == 0, done.stdout


def contents(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("size", "words"),
    [
        (64 * MIB, "-F 32"),
        (16 * MIB, "-F 16"),
        (3 * MIB, "-F 12"),
        (300 * MIB, "-F 32 -S 4096 -s 1"),
    ],
)
def test_cp_rsync_and_mtools(
    in_volume: InVolume, workdir: Path, source: Path, size: int, words: str
) -> None:
    in_volume(
        f"cp -a --no-preserve=ownership {source}/. . && diff -r {source} . && sync -f .",
        size,
        words,
    )
    assert_clean(workdir / "image")
    (workdir / "out").mkdir()
    done = tool("mcopy", "-s", "-m", "-n", "-i", workdir / "image", "::", workdir / "out")
    assert done.returncode == 0, done.stderr
    assert contents(workdir / "out") == contents(source)
    again = in_volume(f"diff -r {source} . && find . -mindepth 1 -delete && ls -A")
    assert again.stdout == ""
    assert_clean(workdir / "image")


@pytest.mark.e2e
def test_rsync_twice_has_nothing_to_do(in_volume: InVolume, workdir: Path, source: Path) -> None:
    # into a directory, for the root has no times, on a kernel's vfat either
    command = f"rsync -rt --modify-window=1 --out-format=%n {source}/ copy/"
    first = in_volume(command, 32 * MIB, "-F 16")
    assert len(first.stdout.splitlines()) > 100
    assert in_volume(command).stdout == ""
    assert in_volume(f"diff -r {source} copy", options="ro").stdout == ""
    assert_clean(workdir / "image")


@pytest.mark.e2e
def test_what_mcopy_wrote(in_volume: InVolume, workdir: Path, source: Path) -> None:
    image = workdir / "image"
    with image.open("wb") as file:
        file.truncate(32 * MIB)
    tool("mkfs.fat", "-F", "16", image)
    for path in source.iterdir():
        assert tool("mcopy", "-s", "-m", "-i", image, path, "::").returncode == 0
    os.chmod(image, 0o666)
    in_volume(f"diff -r {source} .", options="ro,utf8")


PROGRAM = r"""
import errno, fcntl, mmap, os, struct, threading, time
with open("Long Name.txt", "wb") as file:
    file.write(b"contents")
# names that mean the same, cached or not
assert os.stat("LONG NAME.TXT").st_ino == os.stat("longna~1.txt").st_ino
os.rename("LONG NAME.txt", "other")
for name in ("Long Name.txt", "LONG NAME.TXT", "longna~1.txt"):
    assert not os.path.exists(name), name
held = open("other", "r+b")
os.unlink("OTHER")
assert held.read() == b"contents" and os.fstat(held.fileno()).st_nlink == 0
held.close()
# It was open, and went by another spelling: the kernel is told, but not at once.
end = time.monotonic() + 20
while os.path.exists("other"):
    assert time.monotonic() < end
# two requests at once: reads while an fsync is under way
with open("big", "wb") as file:
    file.write(os.urandom(1 << 20))
    threads = [threading.Thread(target=os.fsync, args=(file.fileno(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert len(open("big", "rb").read()) == 1 << 20
    for thread in threads:
        thread.join()
# shared mappings
with open("big", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
    view[5000:5004] = b"mmap"
    view.flush()
assert open("big", "rb").read()[5000:5004] == b"mmap"
# ioctls of files and directories
fd = os.open("big", os.O_RDONLY)
assert struct.unpack("I", fcntl.ioctl(fd, 0x80047210, bytes(4))) == (32,)
assert struct.unpack("I", fcntl.ioctl(fd, 0x80047213, bytes(4))) == (0x12345678,)
fcntl.ioctl(fd, 0x40047211, struct.pack("I", 33))
assert os.fstat(fd).st_mode & 0o222 == 0
os.close(fd)
directory = os.open(".", os.O_RDONLY)
names = []
while True:
    # libc's ioctl: Python's cannot both return a number and copy out as much
    import ctypes
    buffer = ctypes.create_string_buffer(560)
    result = ctypes.CDLL(None, use_errno=True).ioctl(directory, ctypes.c_ulong(0x82307201), buffer)
    assert result in (0, 1), os.strerror(ctypes.get_errno())
    if not result:
        break
    pair = [struct.unpack_from("=qqH256s", buffer.raw, at) for at in (0, 280)]
    names.append(tuple(name[:length].decode() for _, _, length, name in pair))
assert names[:2] == [(".", ""), ("..", "")] and ("BIG", "big") in names, names
trimmed = fcntl.ioctl(directory, 0xC0185879, struct.pack("QQQ", 0, 1 << 62, 0))
assert struct.unpack("QQQ", trimmed)[1] > 0
os.fsync(directory)
# what vfat has not
for call in (
    lambda: os.symlink("a", "b"),
    lambda: os.link("big", "b"),
    lambda: os.mkfifo("b"),
    lambda: os.chown("big", 1, 1),
):
    try:
        call()
        raise AssertionError
    except OSError as problem:
        assert problem.errno in (errno.EPERM, errno.EINVAL), problem
"""


@pytest.mark.e2e
def test_calls_of_a_program(in_volume: InVolume, workdir: Path) -> None:
    (workdir / "program").write_text(PROGRAM)
    in_volume("python3 ../program", 32 * MIB, "-F 32")
    assert_clean(workdir / "image")


@pytest.mark.e2e
def test_killed_while_writing(in_volume: InVolume, workdir: Path) -> None:
    """The server ends by SIGKILL: what was fsync'ed is there."""
    script = """
        head -c 300000 /dev/urandom >../kept; cp ../kept 'kept file'; sync 'kept file'
        (while :; do echo x >"name $RANDOM$$"; mkdir -p d; mv name* d 2>/dev/null; rm -rf d; done) &
        writer=$!; sleep 0.5; kill -9 $server; kill -9 $writer; wait $writer || :; cd ..
    """
    in_volume(script, 16 * MIB, "-F 16", check=False)
    image = workdir / "image"
    assert tool("fsck.fat", "-a", image).returncode in (0, 1)
    assert_clean(image)
    in_volume("cmp 'kept file' ../kept", options="ro")


def test_bad_options_are_refused(in_volume: InVolume) -> None:
    done = in_volume("true", 16 * MIB, "-F 16", options="nonsense", check=False)
    assert done.returncode != 0
    assert "unknown option nonsense" in done.stderr
