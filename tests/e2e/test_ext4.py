"""The engine ext4, chosen by name."""

from __future__ import annotations

import pytest

from tests.support.sandbox import PRELUDE
from tests.support.user import Run

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("fstype", ["ext2", "ext3", "ext4"])
def test_an_image_is_filled(loopfs_run: Run, fstype: str) -> None:
    result = loopfs_run(
        PRELUDE
        + f"""
        truncate -s 64M disk.img; mkfs.{fstype} -q -F disk.img; mkdir mnt
        mount -o loop -t {fstype} disk.img mnt
        cp -a /etc/. mnt/ 2>/dev/null || :
        echo text >mnt/{"n" * 255}; sync mnt; chmod g+s mnt; mkdir mnt/inner; stat -c %A mnt/inner
        umount mnt; e2fsck -fn disk.img >log 2>&1 || cat log
        mount -o loop,ro disk.img mnt; cat mnt/nnn*; umount mnt
        """,
        f"--engine={fstype}=ext4",
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split() == ["drwxr-sr-x", "text"]
