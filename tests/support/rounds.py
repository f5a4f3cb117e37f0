"""The length of a stress test: CI has the short form, LOOPFS_ALL=1 the long one."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def rounds(short: T, long: T) -> T:
    """Return one of the two, depending on LOOPFS_ALL."""
    return long if os.environ.get("LOOPFS_ALL") else short
