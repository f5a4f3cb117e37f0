"""The options of a mount."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.engines.ext4 import EXT4
from loopfs.ext4.device import Device
from loopfs.ext4.mount import mount
from loopfs.ext4.options import Options
from loopfs.file_device import FileDevice
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import fsck, tool
from tests.support.kernel import new_loop_device
from tests.support.patience import scaled

Image = Callable[[str], Path]

# Each is mounted with by the kernel, too; those that all kernels of ours treat in the same way.
WORDS = """
bsddf minixdf grpid=1 resuid=0x10 resuid=08 resgid=+7 resuid=4294967295 resuid=4294967296 sb=1
sb=0x1 sb=2 errors=panic errors=remount nouid32 noload commit=0 commit=10 commit=5
commit=8589935 max_batch_time=0 max_batch_time= max_batch_time=x journal_dev=0
journal_checksum nojournal_checksum journal_async_commit journal_async_commit,data=writeback
journal_async_commit,data=journal data=ordered data=writeback data=journal data=x
data=journal,delalloc data=journal,nodelalloc data_err=abort data_err=ignore usrjquota= usrjquota=a
usrjquota=a,jqfmt=vfsv0 usrjquota=a/b,jqfmt=vfsv0 grpjquota=a jqfmt=vfsv1 jqfmt=x usrquota prjquota
barrier=010 barrier=09 dax=never dax=no stripe=7 delalloc nodelalloc debug_want_extra_isize=4
debug_want_extra_isize=7 debug_want_extra_isize=128 debug_want_extra_isize=130 block_validity
inode_readahead_blks=64 inode_readahead_blks=63 inode_readahead_blks=2147483648 journal_ioprio=7
journal_ioprio=8 auto_da_alloc auto_da_alloc=3 dioread_nolock discard=1 init_itable init_itable=9
mb_optimize_scan=1 mb_optimize_scan=2 nombcache noload,data=writeback noload,commit=10 lazytime=x
sync async=1 abort xip
"""
KINDS = {
    "ext4": "-t ext4 -b 1024 -I 256",
    "ext3": "-t ext3 -b 1024 -I 256",
    "ext2": "-t ext2 -b 1024 -I 256",
    "ext4, no journal": "-t ext4 -b 1024 -I 256 -O ^has_journal",
}
UNSHARED = ("unshare", "--mount", sys.executable, "-c")
BY_KERNEL = """
import sys
from loopfs import syscalls
from loopfs.uapi.mount import MS_RDONLY
device, place, fstype, *words = sys.argv[1:]
for word in words:
    try:
        syscalls.mount(device, place, fstype, MS_RDONLY, word)
    except OSError as problem:
        print(problem.errno)
    else:
        syscalls.umount2(place, 0)
        print(0)
"""


@pytest.mark.parametrize("words", ["", "barrier=7,sb=1", "acl,,user_xattr", "data=ordered"])
def test_what_changes_nothing(words: str) -> None:
    assert EXT4.without_effect(words, "ext4") in ((), ("barrier=7",))


@pytest.mark.parametrize(
    "word", ["strange", "barrier=x", "barrier=", "commit=x", "nouser_xattr", "stripe"]
)
def test_what_is_refused(word: str) -> None:
    with pytest.raises(OSError, match=word) as refusal:
        Options(f"acl,{word}")
    assert refusal.value.errno == errno.EINVAL


def test_what_only_the_kernels_driver_has_a_use_for() -> None:
    data = "acl,stripe=7,errors=panic,commit=9,nodelalloc,usrjquota="
    dropped = ("stripe=7", "errors=panic", "nodelalloc", "usrjquota=")
    assert EXT4.without_effect(data, "ext4") == dropped
    assert EXT4.translated(f"defaults,{data}", "ext4") == tuple(data.split(","))


@pytest.mark.usefixtures("needs_root")
@pytest.mark.parametrize("kind", KINDS)
def test_as_the_kernel(image: Image, tmp_path: Path, kind: str) -> None:
    path, fstype = image(KINDS[kind]), kind[:4]
    (tmp_path / "m").mkdir()
    words = WORDS.split()
    with new_loop_device() as device:
        subprocess.run(["losetup", device, path], check=True, timeout=scaled(20))
        done = subprocess.run(
            [*UNSHARED, BY_KERNEL, device, str(tmp_path / "m"), fstype, *words],
            env=os.environ | {"PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=scaled(60),
        )
    theirs = dict(zip(words, map(int, done.stdout.split()), strict=True))
    assert {word: attempt(path, word, fstype) for word in words} == theirs
    assert 20 < list(theirs.values()).count(0) < len(theirs) - 20


def attempt(path: Path, word: str, fstype: str) -> int:
    """The errno of a mount for reading by ours, or 0."""
    fd = os.open(path, os.O_RDONLY)
    try:
        options = Options(word, fstype)
        mount(Device(FileDevice(fd)), options, read_only=True, fstype=fstype)
    except OSError as problem:
        return problem.errno or -1
    finally:
        os.close(fd)
    return 0


def test_a_copy_of_the_superblock(image: Image, mounted: Mounted) -> None:
    """``sb=`` finds it where the first one is lost; for reading."""
    path = image("-b 1024")
    tree = mounted(path)
    Direct(tree).write("file", b"data")
    tree.destroy()
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(2048))  # the first descriptors, too
    with pytest.raises(OSError, match="there is no ext2"):
        mounted(path, read_only=True)
    again = mounted(path, read_only=True, options="sb=8193")
    assert Direct(again).read("file") == b"data"
    with pytest.raises(OSError, match="-o ro"):
        mounted(path, options="sb=8193")
    tool("e2fsck", "-fy", "-b", "8193", path)
    assert fsck(path) == ""
