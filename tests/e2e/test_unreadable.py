"""Programs that can be executed but not read: the kernel carries out their calls."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.user import Run

pytestmark = pytest.mark.e2e


@pytest.fixture
def programs(needs_root: None, workdir: Path) -> Path:
    """A directory of such programs, which are the host's root's."""
    place = workdir / "unreadable"
    place.mkdir(mode=0o755)
    for name in ("cat", "stat", "mount", "umount", "sync"):
        path = shutil.which(name)
        assert path is not None
        shutil.copy(path, place / name)
        os.chmod(place / name, 0o711)
    os.chmod(place, 0o755)
    return place


def test_they_run_while_devices_and_mounts_are_there(
    loopfs_run: Run, programs: Path, image: Path
) -> None:
    script = f"""
    set -eu; x={programs}; mkdir mnt other
    d=$(losetup -f --show {image}); exec 5<$d; mount $d mnt; echo text >mnt/file
    $x/cat mnt/file </dev/null; $x/stat -c %s - <&5; $x/stat -f -c %T mnt; $x/sync mnt/file
    $x/mount -t tmpfs none other; $x/stat -f -c %T other; $x/umount other
    $x/mount -t loop none other 2>/dev/null || echo no loop; $x/umount mnt
    exec 5<&-; losetup -d $d
    """
    result = loopfs_run(script)
    seen = ["text", str(16 << 20), "fuseblk", "tmpfs", "no loop"]
    assert (result.stdout.splitlines(), result.stderr, result.returncode) == (seen, "", 0)
