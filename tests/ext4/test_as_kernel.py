"""loopfs compared with the kernel's ext4, short form; for the long forms see docs/ext4.md."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.ext4.fuzz import play
from tests.support.patience import scaled
from tests.support.skip import need
from tests.support.user import CHECKOUT

CALLS = 160
# An image's kind, a seed, and how many names a directory has that the kernel made before.
SEQUENCES = (
    ("-b 1024", 1, 0),
    ("-b 4096", 2, 400),
    ("-b 1024 -O inline_data -I 512", 3, 0),
    ("-b 1024 -t ext2", 4, 400),
    ("-b 4096 -t ext3 -O uninit_bg -I 128", 5, 0),
    ("-b 1024 -O meta_bg,^resize_inode,sparse_super2,^64bit -g 512", 6, 0),
    ("-b 4096 -O orphan_file,metadata_csum_seed", 7, 0),
)


@pytest.fixture(autouse=True)
def kernel(kernel_loops: None) -> None:
    need(os.access("/dev/fuse", os.R_OK | os.W_OK), "needs /dev/fuse")


@pytest.mark.parametrize(("kind", "seed", "names"), SEQUENCES)
def test_random_calls(kind: str, seed: int, names: int) -> None:
    assert (found := play(kind, seed, CALLS, names)) == "", found


@pytest.mark.parametrize(
    ("command", "words"),
    [("replay", ["30"]), ("crash", ["10"]), ("names", ["6500", "--kind", "-b 1024"])],
)
def test_a_command_in_short(command: str, words: list[str]) -> None:
    """They make mounts: each in a process, and a mount namespace, of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.ext4.{command}", *words, "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=scaled(100),
        cwd=CHECKOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
