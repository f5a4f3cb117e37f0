"""Random calls on small images and on a model; crashes; damaged structures."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.ext4 import crash, faults, hostile, model, replay
from tests.ext4.logs import Version
from tests.support.patience import scaled
from tests.support.rounds import rounds
from tests.support.user import CHECKOUT


@pytest.mark.parametrize(
    "kind",
    [
        "-b 1024",
        "-b 1024 -O inline_data -I 512",
        "-b 1024 -t ext2",
        "-b 4096 -O ^metadata_csum,uninit_bg",
    ],
)
def test_a_small_image_gets_full(kind: str) -> None:
    assert model.run(kind, rounds(200, 5000), 1) > 0


def test_blocks_that_this_kernel_does_not_mount() -> None:
    model.run("-b 65536 -O inline_data", 80, 1)


@pytest.mark.parametrize("kind", crash.KINDS)
def test_a_crash(kind: str) -> None:
    """The server ends, and the power goes; without the kernel, which the command has."""
    for seed in range(2, rounds(3, 12)):
        assert crash.check(kind, seed, kernel=False) == []


@pytest.mark.parametrize("kind", faults.KINDS)
def test_calls_that_fail_half_way(kind: str) -> None:
    assert faults.run(kind, 3, 60) > 0


@pytest.mark.parametrize("version", list(replay.VERSIONS))
def test_a_journal_is_replayed_as_by_e2fsck(version: Version) -> None:
    assert [replay.by_chance(version, seed) for seed in range(3)] == [[]] * 3


def test_hostile_images() -> None:
    """In a process of its own, whose memory is limited."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.ext4.hostile", str(rounds(35, 1000)), "--seed", "1"],
        capture_output=True,
        text=True,
        timeout=scaled(100),
        cwd=CHECKOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_change_is_found() -> None:
    """The mutations do change images, and are the same for a seed."""
    kind = hostile.KINDS[0]
    one, said = hostile.mutated(kind, 1)
    assert bytes(one) != hostile.image(kind).whole[0]
    assert hostile.mutated(kind, 1) == (one, said)
