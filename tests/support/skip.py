"""Skip a test with a reason."""

from __future__ import annotations

import pytest


def need(condition: object, reason: str) -> None:
    """Skip the calling test, saying ``reason``, unless ``condition`` holds.

    In CI that fails, unless the test has the marker ``may_skip``.
    """
    if not condition:
        pytest.skip(reason)
