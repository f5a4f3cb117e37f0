"""Bad arguments of the calls that mount: the errors of a filesystem of the kernel."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Program

pytestmark = pytest.mark.e2e


def test_all_say_what_the_kernel_says(program: Program) -> None:
    """Of an instance, and of what is the kernel's in a sandbox, too."""
    natively = program("arguments", "tmpfs", natively=True)
    for fstype in ("loop", "tmpfs"):
        ours = program("arguments", fstype)
        assert len(ours) > 500
        assert {k: (ours[k], v) for k, v in natively.items() if ours[k] != v} == {}, fstype
