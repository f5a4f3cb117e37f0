"""One sequence of random steps, in the working directory, which must be empty.

    python3 -m tests.bytes.program --seed N --steps N [--only I,J,…] [--native]

Inside ``loopfs run``, or natively as root. What it has done is in the file ``done``, a line before
each step that does something and after it. Exit status 1, and a sentence: something that must
hold does not.
"""

from __future__ import annotations

import argparse
import os
import sys

from tests.bytes import changes, guarded, mounts, transfers
from tests.bytes.model import Fault
from tests.bytes.steps import ACTIONS, Step, steps
from tests.bytes.world import World

MODULES = (transfers, guarded, mounts, changes)  # which have filled the table
BETWEEN_CHECKS = 40  # steps


def play(world: World, sequence: list[Step], done: int) -> None:
    """Carry steps out.

    Args:
        done: where they are noted.
    """
    for step in sequence:
        os.write(done, f"{step.turn} {step.kind}".encode())
        what = ACTIONS[step.kind](world, step)
        os.write(done, f": {what}\n".encode() if what else b": nothing to do\n")
        if step.turn % BETWEEN_CHECKS == 0:
            world.check_all()


def finish(world: World) -> None:
    """Unmount and close all; the images must have everything."""
    while any(filesystem.mounted for filesystem in world.filesystems):
        mounts.umount(world, Step(-1, "umount", (0, 0, 0, 0)))
    for node in world.nodes:
        node.close_all()
        node.view.flushed(node.disk.read, "the end")
    world.check_all()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--only", default="", help="the indices of those to be carried out")
    parser.add_argument("--native", action="store_true")
    options = parser.parse_args()
    sequence = steps(options.seed, options.steps)
    if options.only:
        only = {int(word) for word in options.only.split(",")}
        sequence = [step for step in sequence if step.turn in only]
    world = World(options.native)
    done = os.open("done", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    with world.clean_up:
        try:
            play(world, sequence, done)
            finish(world)
        except Fault as fault:
            print(fault)
            return 1
        finally:
            world.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
