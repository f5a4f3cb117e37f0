"""The supervisor's resources after the work are the same as before."""

from __future__ import annotations

import subprocess
from typing import NamedTuple

import pytest

from loopfs.filesystems.threads import KEPT
from tests.faults.conftest import Start
from tests.support.parts import children_of, descriptors, parts_of, threads, wait_until

pytestmark = pytest.mark.e2e

# What it does in each turn, and once before the first look: what is made once may stay.
TURNS = {
    "attach": "d=$(losetup -f --show disk.img); losetup -d $d",
    "mount": "mount -o loop disk.img mnt; ls mnt >/dev/null; umount mnt",
    "instance": "mount -t loop none mnt; losetup -a; umount mnt",
    "refused": "! mount -t ext4 /dev/loop-control mnt; ! losetup /dev/loop99 mnt",
    "partitions": "d=$(losetup -P -f --show parts.img); blockdev --rereadpt $d; losetup -d $d",
}


class Held(NamedTuple):
    descriptors: list[str]
    threads: int
    jobs: int  # one is spare


@pytest.mark.parametrize("turn", TURNS)
def test_turns_leave_nothing(started: Start, turn: str) -> None:
    process = started(f"""
        set -e; exec 2>/dev/null; mkdir mnt
        truncate -s 4M disk.img parts.img; mkfs.ext4 -q disk.img
        echo size=1M | sfdisk -q parts.img
        turn() {{ {TURNS[turn]}; }}
        turn; turn; echo ready; read line
        for n in $(seq 40); do turn; done; echo done; read line
    """)
    supervisor, *_ = parts = parts_of(process.pid)

    def held() -> Held:
        jobs = max(len(children_of(parts.helper)), 1)
        return Held(descriptors(supervisor), threads(supervisor), jobs)

    wait_until(lambda: held().jobs == 1, "the last job has ended")
    before = held()
    go_on(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"

    def no_more() -> bool:
        now = held()  # some threads are kept, which wait for the next call
        return now._replace(threads=0) == before._replace(threads=0) and (
            now.threads <= before.threads + KEPT
        )

    # A release, or the end of a thread, may come after the call that caused it.
    wait_until(no_more, f"as little is held as before: {held()} {before}")


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
