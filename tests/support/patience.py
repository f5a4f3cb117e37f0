"""Time limits of tests: LOOPFS_TIMEOUT_SCALE multiplies them, for emulated machines."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("LOOPFS_TIMEOUT_SCALE", "1"))


def scaled(seconds: float) -> float:
    """A time limit in seconds on this machine."""
    return seconds * SCALE
