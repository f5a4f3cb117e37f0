"""Remounting for reading only, and for writing again."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.ext4.errors import Damaged
from loopfs.ext4.super import OFFSET
from loopfs.filesystems.lending import REMOUNT
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import fsck

Image = Callable[[str], Path]


@pytest.mark.parametrize("kind", ["-b 1024 -O mmp", "-b 4096 -O ^has_journal"])
def test_there_and_back(image: Image, mounted: Mounted, kind: str) -> None:
    path = image(kind)
    tree = mounted(path)
    tree.start()
    calls = Direct(tree)
    for n in range(3):
        calls.write(f"file {n}", b"data" * n)
        assert tree.control(2, REMOUNT, (1,)) == (1,)
        assert tree.control(2, REMOUNT, (1,)) == (0,)
        before = path.read_bytes()
        assert (found := fsck(path)) == "", found
        assert not before[OFFSET + 96] & 4, "no journal is to be replayed"
        assert calls.read(f"file {n}") == b"data" * n
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            calls.unlink(f"file {n}")
        if n == 2:
            tree.destroy()
        assert path.read_bytes() == before
        if n < 2:
            assert tree.control(2, REMOUNT, (0,)) == (1,)
    again = mounted(path)
    assert sorted(Direct(again).list()) == ["file 0", "file 1", "file 2", "lost+found"]
    again.destroy()


def test_what_is_not_written_again(image: Image, mounted: Mounted) -> None:
    """What was mounted for reading, and what has had an error."""
    path = image("-b 1024")
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        mounted(path, read_only=True).control(2, REMOUNT, (0,))
    tree = mounted(path, options="errors=remount-ro")
    tree.start()
    calls = Direct(tree)
    calls.write("file", b"data")
    with tree.server.lock:
        tree.failed(Damaged("a test"))

    assert tree.control(2, REMOUNT, (1,)) == (0,)
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        tree.control(2, REMOUNT, (0,))
    tree.destroy()
    assert Direct(mounted(path)).read("file") == b"data"
