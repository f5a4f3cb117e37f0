"""A write costs as much in a large file as in a small one. Operations are counted, not timed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.ext4.conftest import Mounted
from tests.ext4.images import fsck
from tests.ext4.test_calls import ROOT, make

FEW, MANY = 300, 3000  # extents
BLOCK = 1024  # bytes


def calls_of(work: Callable[[], object]) -> int:
    """Count the functions, of Python and of C, that are called."""
    count = 0

    def called(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event.endswith("call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("kind", [f"-b {BLOCK} -t ext2", f"-b {BLOCK}"])
def test_a_write(image: Callable[[str], Path], mounted: Mounted, kind: str) -> None:
    path = image(kind)
    tree = mounted(path)
    handle = tree.open(ROOT, make(tree, b"holes", b""), os.O_RDWR)

    def write(number: int) -> None:
        tree.write(handle, 2 * number * BLOCK, memoryview(bytes(BLOCK)))

    counted = {}
    for number in range(MANY + 1):
        if number in (FEW, MANY):
            counted[number] = calls_of(partial(write, number))
        else:
            write(number)
    assert counted[MANY] < 3 * counted[FEW]
    tree.destroy()
    fsck(path)
