"""docs/reference.md has a row for each ioctl that the driver knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from loopfs.driver.block import BLOCK_IOCTLS
from loopfs.driver.ioctl import LOOP_IOCTLS
from loopfs.uapi import block, loop

REFERENCE = Path(__file__).resolve().parents[2] / "docs/reference.md"
# The names of the numbers that are handled, and HDIO_GETGEO, which is not in the uapi modules.
NAMES = {
    name
    for module in (block, loop)
    for name, value in vars(module).items()
    if name.startswith(("BLK", "LOOP_", "IOC_PR_")) and isinstance(value, int)
    if value in BLOCK_IOCTLS.keys() | LOOP_IOCTLS.keys()
} | {"HDIO_GETGEO", "LOOP_CTL_ADD", "LOOP_CTL_REMOVE", "LOOP_CTL_GET_FREE"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_an_ioctl_has_a_row(name: str) -> None:
    assert re.search(rf"^\| {name}\b", REFERENCE.read_text(), re.M)


def test_all_are_named() -> None:
    assert len(NAMES) > len(BLOCK_IOCTLS) + len(LOOP_IOCTLS) - 2
