"""Images made by mke2fs, of all kinds, and a device of bytes in memory."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from loopfs.ext4.commit import Commits
from loopfs.ext4.device import Device
from loopfs.ext4.errors import refused
from loopfs.ext4.filesystem import Ext4
from loopfs.ext4.mount import mount
from loopfs.ext4.options import Options
from loopfs.file_device import Buffer, FileDevice
from loopfs.file_device import Device as Lower
from loopfs.fuse.server import Server
from tests.support.patience import scaled
from tests.support.skip import need

TIMEOUT = scaled(120.0)  # seconds
MIB = 1 << 20
UUID = "12345678-9abc-def0-1234-56789abcdef0"
# The arguments of mke2fs, and commands to follow: all sizes of blocks and inodes, and sets of
# features, that are written.
KINDS = (
    "-b 4096",
    "-b 1024",
    "-b 1024 -O inline_data -I 512",
    "-b 2048 -I 512",
    "-b 4096 -I 128",
    "-b 4096 -I 1024 -O inline_data",
    "-b 1024 -t ext2",
    "-b 4096 -t ext2 -I 128",
    "-b 1024 -t ext3",
    "-b 4096 -t ext3 -O uninit_bg -I 128",
    "-b 1024 -O ^has_journal",
    "-b 4096 -O ^has_journal,^64bit",
    "-b 1024 -O ^64bit,^metadata_csum",
    "-b 4096 -O ^metadata_csum,uninit_bg",
    "-b 1024 -O meta_bg,^resize_inode -g 1024",
    "-b 1024 -O meta_bg,^resize_inode,sparse_super2,^64bit -g 512",
    "-b 4096 -O metadata_csum_seed",
    "-b 4096 -O orphan_file",
    "-b 4096 -O encrypt,verity,mmp",
    "-b 4096 -O ea_inode",
    "-b 1024 -I 512 -O ea_inode,inline_data",
    "-b 1024 -O ea_inode,^extent,^64bit,^metadata_csum",
    "-b 1024 -O ^extent,^64bit",
    "-b 4096 -O ^extent,^64bit,^metadata_csum",
    "-b 1024 -O ^dir_index",
    "-b 4096 -O ^filetype,^dir_index,^large_file,^huge_file",
    "-b 4096 -O ^filetype",
    "-b 1024 -O ^flex_bg,^sparse_super,^dir_nlink,^resize_inode",
    "-b 2048 -O large_dir,^resize_inode",
    "-b 2048 -O sparse_super2,^flex_bg,inline_data",
    "-b 1024 ; tune2fs -E hash_alg=tea",
    "-b 1024 -I 256 -O ^extra_isize ; tune2fs -E hash_alg=legacy",
    "-b 4096 -E stride=4 -J size=4 -N 4096",
)


def tool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool of e2fsprogs."""
    need(shutil.which(str(words[0])), f"needs {words[0]}")
    return subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
    )


def make_image(path: Path, words: str, size: int = 64 * MIB) -> None:
    """Make an image of ``size`` bytes with the given arguments of mke2fs."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    first, *more = (part.split() for part in words.split(";"))
    for command in (["mkfs.ext4", "-q", "-F", *first], *more):
        done = tool(*command, path)
        assert done.returncode == 0, done.stderr


def fsck(image: Path) -> str:
    """Return the errors that e2fsck finds; empty if the image is clean."""
    done = tool("e2fsck", "-fn", image)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@lru_cache(4)
def _made(words: str, size: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="loopfs-test-") as directory:
        path = Path(directory, "image")
        make_image(path, f"-U {UUID} -E hash_seed={UUID} {words}", size)
        return path.read_bytes()


def made(words: str, size: int) -> bytearray:
    """Return a new image in memory, always the same except for the times in it."""
    return bytearray(_made(words, size))


@contextmanager
def on_disk(image: bytes | bytearray) -> Iterator[Path]:
    """Yield an image as a file, for the tools."""
    with tempfile.TemporaryDirectory(prefix="loopfs-test-") as directory:
        path = Path(directory, "image")
        path.write_bytes(image)
        yield path


class Memory:
    """A device of bytes."""

    read_only = False

    def __init__(self, data: bytearray) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        if offset < 0 or offset + len(buffer) > self.size:
            raise refused(errno.EIO)
        buffer[:] = self.data[offset : offset + len(buffer)]

    def write(self, offset: int, *parts: Buffer) -> None:
        self.store(offset, b"".join(parts))

    def store(self, offset: int, data: bytes) -> None:
        """One write."""
        if offset < 0 or offset + len(data) > self.size:
            raise refused(errno.EIO)
        self.data[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int) -> None:
        self.store(offset, bytes(length))

    def zero(self, offset: int, length: int) -> None:
        self.store(offset, bytes(length))

    def barrier(self) -> None:
        """Do nothing: writes are complete at once."""

    written = sync = barrier


def use(
    device: Lower, *, read_only: bool = False, options: str = ""
) -> tuple[Ext4, Commits | None]:
    """Mount an image without FUSE."""
    volume, commits = mount(
        Device(device), Options(options), read_only=read_only, wait=lambda seconds: None
    )
    tree = Ext4(volume, commits)
    Server(-1, tree)  # which keeps the root, and a lock
    return tree, commits


def open_image(path: Path, *, read_only: bool = False) -> tuple[Ext4, int]:
    """Mount an image file without FUSE; return also its descriptor, which the caller must close."""
    fd = os.open(path, os.O_RDONLY if read_only else os.O_RDWR)
    return use(FileDevice(fd), read_only=read_only)[0], fd
