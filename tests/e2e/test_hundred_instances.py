"""Many instances in one sandbox, each with a device; a hundred with LOOPFS_ALL."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from loopfs.filesystems.threads import KEPT
from tests.e2e.conftest import Start
from tests.support.parts import wait_until
from tests.support.rounds import rounds
from tests.support.supervisor import next_line, resources

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("places")]

# Twice the same, so that the supervisor can be looked at before and after. Prints what is wrong.
PROGRAM = r"""
from calls import *
import fcntl, sys
ADD, REMOVE, FREE, SET_FD = 0x4C80, 0x4C81, 0x4C82, 0x4C00
COUNT = int(sys.argv[1])
def control(directory, request, number=-1):
    with open(f"{directory}/loop-control", "r+b", 0) as node:
        try:
            return fcntl.ioctl(node, request, number)
        except OSError as problem:
            return errno.errorcode[problem.errno]
def expect(found, wanted):
    if found != wanted:
        print(f"{found} instead of {wanted}", flush=True)
def bind(n, number):
    image, device = os.open("disk.img", os.O_RDWR), os.open(f"i{n}/loop{number}", os.O_RDWR)
    fcntl.ioctl(device, SET_FD, image)
    os.close(device)
    os.close(image)
def bound():
    with open("/proc/partitions") as file:
        names = [line.split()[3] for line in file if line.split()[2:3] == [SIZE]]
    return {int(name.removeprefix("loop")) for name in names if name.startswith("loop")}
SIZE = str(os.stat("disk.img").st_size >> 10)
for n in range(COUNT):
    os.mkdir(f"i{n}")
before = bound()
for end in (0, 2):  # umount2(2) as it is, and MNT_DETACH
    numbers = []
    for n in range(COUNT):
        expect(libc.mount(b"none", b"i%d" % n, b"loop", 0, b"max=1"), 0)
        numbers.append(control(f"i{n}", FREE))
        bind(n, numbers[n])
    expect(len(set(numbers)), COUNT)
    expect(bound() - before, set(numbers))
    for n in range(COUNT):
        expect(sorted(os.listdir(f"i{n}")), ["loop-control", f"loop{numbers[n]}"])
        expect(control(f"i{n}", FREE), "ENOSPC")
        expect(control(f"i{n}", REMOVE, numbers[n - 1]), "EACCES")
        expect(control(f"i{n}", ADD, numbers[n - 1]), "EEXIST")
        expect(control(f"i{n}", REMOVE, numbers[n]), "EBUSY")
    for n in range(0, COUNT, 2):
        expect(libc.umount2(b"i%d" % n, end), 0)
    expect(bound() - before, set(numbers[1::2]))
    for n in range(1, COUNT, 2):
        expect(libc.umount2(b"i%d" % n, end), 0)
    expect(bound(), before)
    expect([n for n in range(COUNT) if os.listdir(f"i{n}")], [])
    for number in numbers:  # each is free again
        expect(control("/dev/loopfs", ADD, number), number)
        expect(control("/dev/loopfs", REMOVE, number), 0)
for n in range(COUNT):
    os.rmdir(f"i{n}")
"""


def test_each_has_a_number_of_its_own_and_leaves_nothing(started: Start, image: Path) -> None:
    """Also of the supervisor's descriptors and threads."""
    (image.parent / "program.py").write_text(PROGRAM)
    os.truncate(image, 16_789 << 10)  # no device of the host's has this size
    script = "export PYTHONDONTWRITEBYTECODE=1; {0}; echo ready; read -r go; {0}; echo; read -r go"
    process = started(script.format(f"python3 program.py {rounds(40, 100)} 2>&1"))
    before = resources(process.pid)
    assert next_line(process) == "\n"

    def no_more() -> bool:  # the last thread of an instance may be about to end
        (kinds, threads), (before_kinds, before_threads) = resources(process.pid), before
        return threads <= before_threads + KEPT and not Counter(kinds) - Counter(before_kinds)

    wait_until(no_more, "the supervisor has as little as before")
