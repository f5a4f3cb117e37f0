"""The pytest plugin: tests in sandboxes (docs/python.md).

Every run of pytest imports this module, so other modules are imported where they are used.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from loopfs import Mount, Sandbox

MARKER = "loopfs"
MEBIBYTE = 1 << 20
_MKFS_OPTIONS = {
    **dict.fromkeys(("ext2", "ext3", "ext4"), ("-q", "-F")),
    **dict.fromkeys(("btrfs", "xfs", "ntfs"), ("-q", "-f")),
}


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(**options): run the test's function inside a sandbox of its own;"
        " the options are those of loopfs.Sandbox",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test in a sandbox if it has the marker."""
    mark = item.get_closest_marker(MARKER)
    if mark is None:
        return None
    from loopfs.api.pytest_items import run

    run(item, nextitem, mark)
    return True


@pytest.fixture
def loopfs_sandbox() -> Iterator[Sandbox]:
    """A sandbox that ends with the test."""
    from loopfs import Sandbox

    with Sandbox() as box:
        yield box


@pytest.fixture
def loopfs_image(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a formatted image and returns its path:
    ``loopfs_image(fstype="ext4", size=16 << 20)``."""

    def make(fstype: str = "ext4", size: int = 16 * MEBIBYTE) -> Path:
        from loopfs.sandbox.init import root_path

        number = sum(1 for _ in tmp_path.glob("disk*.img"))
        path = tmp_path / f"disk{number}.img"
        with path.open("xb") as file:
            file.truncate(size)
        search = root_path(os.environ.get("PATH", os.defpath))
        done = subprocess.run(
            [f"mkfs.{fstype}", *_MKFS_OPTIONS.get(fstype, ()), path],
            env={**os.environ, "PATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"mkfs.{fstype}: {done.stderr}"
        return path

    return make


@pytest.fixture
def loopfs_mounted(
    request: pytest.FixtureRequest, loopfs_image: Callable[..., Path]
) -> Callable[..., Mount]:
    """A function that mounts a formatted image, made as by loopfs_image.

    It is mounted in the sandbox of a test with the marker, otherwise in loopfs_sandbox.
    """
    if request.node.get_closest_marker(MARKER) is None:
        box: Sandbox = request.getfixturevalue("loopfs_sandbox")
        return lambda **kind: box.mount(loopfs_image(**kind))

    def mount(**kind: object) -> Mount:
        from loopfs.api.device import Mount
        from loopfs.api.inside import operate

        image = os.fspath(loopfs_image(**kind))
        target, fstype = operate("mount", source=image, target=None)
        return Mount(operate, image, target, fstype, temporary=True)

    return mount
