"""Errors that are found in an image while it is mounted for writing."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.ext4.errors import Damaged
from loopfs.ext4.filesystem import Ext4
from loopfs.fuse.tree import Caller
from loopfs.uapi import fuse as uapi
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import tool

Image = Callable[[str], Path]
KINDS = ("-b 1024", "-b 4096 -O ^has_journal")


def damage(path: Path, mounted: Mounted) -> int:
    """An image with a directory whose block has a wrong checksum; the directory's number."""
    tree = mounted(path)
    Direct(tree).mkdir("wrong")
    with Direct(tree).node("wrong") as node:
        place = tree.volume.map(node)[0][2] * tree.volume.super.block_size
        ino = node.ino
    tree.destroy()
    with path.open("r+b") as file:
        file.seek(place + 500)
        file.write(b"text")
    return ino


def ask(tree: Ext4, name: bytes) -> None:
    """A lookup in "wrong", as the kernel asks; and the end."""
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, kernels:
        root = tree.root()
        node, _ = tree.lookup(root, b"wrong")
        tree.server.count_lookup(node)
        for opcode, nodeid, body in (
            (uapi.FUSE_LOOKUP, node.nodeid, name + b"\0"),
            (uapi.FUSE_DESTROY, 1, b""),
        ):
            size = uapi.IN_HEADER.size + len(body)
            kernels.send(uapi.IN_HEADER.pack(size, opcode, 7, nodeid, 0, 0, 1, 0, 0) + body)
        tree.server._fd = ours.fileno()
        tree.server.serve()
        answer = uapi.OUT_HEADER.unpack_from(kernels.recv(1 << 16))
    assert answer[1] == -errno.EBADMSG


def told(path: Path) -> dict[str, str]:
    """What dumpe2fs shows of errors."""
    lines = tool("dumpe2fs", "-h", path).stdout.splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key: value.strip() for key, value in pairs if re.search("rror|state", key)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_superblock_records_it(image: Image, mounted: Mounted, kind: str) -> None:
    path = image(kind)
    ino = damage(path, mounted)
    for count in ("1", "2"):
        ask(mounted(path), b"name")
        found = told(path)
        assert found["Filesystem state"] == "clean with errors"
        assert found["FS Error count"] == count
        for which in ("First", "Last"):
            assert found[f"{which} error function"] == "_check_sum"
            assert found[f"{which} error inode #"] == str(ino)
            assert found[f"{which} error err"] == "EFSBADCRC"
    assert tool("e2fsck", "-p", path).returncode not in (0, 8)
    tool("e2fsck", "-fy", path)
    assert told(path)["Filesystem state"] == "clean"


@pytest.mark.parametrize("how", ["errors=remount-ro", "errors=panic", "tune2fs"])
def test_it_is_read_only_then(image: Image, mounted: Mounted, how: str) -> None:
    """What was done before is there; nothing is done afterwards."""
    path = image("-b 4096")
    damage(path, mounted)
    if how == "tune2fs":
        assert tool("tune2fs", "-e", "remount-ro", path).returncode == 0
    tree = mounted(path, options="" if how == "tune2fs" else how)
    calls = Direct(tree)
    calls.write("before", b"data")
    with pytest.raises(OSError, match="checksum") as caught:
        calls.list("wrong")
    tree.failed(caught.value)
    acts: tuple[Callable[[], None], ...] = (
        lambda: calls.mkdir("after"),
        lambda: calls.write("before", b"other"),
        lambda: tree.removexattr(Caller(0, 0, 1), tree.root(), b"user.x"),
    )
    for act in acts:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            act()
    tree.destroy()
    assert told(path)["FS Error count"] == "1"
    again = Direct(mounted(path, options="errors=continue"))
    assert again.read("before") == b"data"
    with pytest.raises(OSError, match="checksum") as caught:
        again.list("wrong")
    again.tree.failed(caught.value)
    again.mkdir("after")


def test_no_transaction_can_be_made(image: Image, mounted: Mounted) -> None:
    """The superblock tells of it at once; and still when the journal has been replayed."""
    path = image("-b 1024")
    tree = mounted(path)
    calls = Direct(tree)
    calls.write("file", b"data", sync=True)
    commits = tree._commits
    assert commits is not None
    tree.volume.release(9000, 1)  # which is free
    with pytest.raises(Damaged):
        commits.commit()
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        calls.mkdir("d")
    tree.destroy()
    assert told(path)["First error function"] == "hold"
    tree = mounted(path)
    assert Direct(tree).read("file") == b"data"
    tree.destroy()
    assert told(path)["FS Error count"] == "1"


def test_a_thread_that_waits_for_a_failed_write_gets_its_error(
    image: Image, mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files are synced at once; one thread writes what both have changed: no room."""
    tree = mounted(image("-b 1024"))
    syncs = []
    for name in (b"one", b"two"):
        _, handle = tree.create(Caller(0, 0, 1), tree.root(), name, 0o644, 0)
        syncs.append(tree.fsync(handle, False))

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tree.volume.device, "write", full)
    for sync in syncs:
        assert sync is not None
        with pytest.raises(OSError, match=r"No space|has failed") as caught:
            sync.work()
        assert caught.value.errno == errno.ENOSPC


def test_without_discards_below(
    image: Image, mounted: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = mounted(image("-b 1024"), options="discard")
    calls, commits = Direct(tree), tree._commits
    assert commits is not None
    calls.write("file", b"x" * 100_000, sync=True)

    def unsupported(*arguments: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(tree.volume.device, "discard", unsupported)
    calls.unlink("file")
    commits.commit_and_wait()
    assert tree.volume.groups.held == 0


def test_a_file_that_cannot_be_freed(image: Image, mounted: Mounted) -> None:
    """Its name goes; it stays one without a name, which e2fsck frees."""
    path = image("-b 1024")
    tree = mounted(path)
    calls = Direct(tree)
    calls.write("file", b"d" * 5000)
    with calls.node("file") as node:
        ino = node.ino
    tree.destroy()
    tool("debugfs", "-w", "-R", f"sif <{ino}> block[1] 0x10", path)
    tree = mounted(path)
    Direct(tree).unlink("file")
    assert "file" not in Direct(tree).list()
    tree.destroy()
    assert told(path)["Filesystem state"] == "clean with errors"
    tool("e2fsck", "-fy", path)
    assert tool("e2fsck", "-fn", path).returncode == 0
