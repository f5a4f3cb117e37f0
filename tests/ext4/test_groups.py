"""Block groups: more of them than have their bitmaps in memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loopfs.ext4 import groups
from tests.ext4.conftest import Mounted
from tests.ext4.direct import Direct
from tests.ext4.images import tool

MOST = 3


@pytest.mark.parametrize("kind", ["-b 1024 -g 1024", "-b 1024 -g 1024 -O ^has_journal"])
def test_few_bitmaps_are_in_memory(
    image: Callable[[str], Path], mounted: Mounted, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """All of 64 groups are changed, by one call and by many; no change is lost."""
    monkeypatch.setattr(groups, "_MOST_BITMAPS", MOST)
    path = image(kind)
    tree = mounted(path)
    calls, volume = Direct(tree), tree.volume

    def loaded() -> int:
        return sum(
            not (group.block_map is None and group.inode_map is None) for group in volume.groups.all
        )

    def allocate(name: str) -> None:
        file = calls.open(name, os.O_CREAT | os.O_RDWR)
        tree.fallocate(file.handle, 0, 0, 40 << 20)
        file.close()

    allocate("large")
    assert loaded() <= MOST
    for number in range(40):
        calls.mkdir(f"d{number}")
        calls.write(f"d{number}/f", bytes([number]) * 5000)
        assert loaded() <= MOST
    calls.unlink("large")
    assert tree._commits is not None
    tree._commits.commit()
    assert volume.groups.held > 30 << 10
    assert loaded() <= MOST
    allocate("other")
    tree.destroy()
    checked = tool("e2fsck", "-fn", path)
    assert checked.returncode == 0, checked.stdout
    again = Direct(mounted(path, read_only=True))
    for number in range(40):
        assert again.read(f"d{number}/f") == bytes([number]) * 5000
