"""How often a stress test does its work: CI has the short form, LOOPFS_ALL=1 the long one."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")


def rounds(short: T, long: T) -> T:
    """One of the two, as the environment says."""
    return long if os.environ.get("LOOPFS_ALL") else short
