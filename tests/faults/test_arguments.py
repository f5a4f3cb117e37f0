"""Bad arguments of the calls that mount: what the kernel says of a filesystem of its own."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Program

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("fstype", ["loop", "tmpfs"])
def test_all_say_what_the_kernel_says(program: Program, fstype: str) -> None:
    """Of an instance, and of what is the kernel's in a sandbox, too."""
    natively = program("arguments", "tmpfs", natively=True)
    ours = program("arguments", fstype)
    assert len(ours) > 500
    assert {k: (ours[k], v) for k, v in natively.items() if ours[k] != v} == {}
